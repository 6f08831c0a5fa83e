"""How long commands take that load no torch: wall and processor time of a process each, the median of RUNS.

python -m benchmarks.startup
"""

import os
import statistics
import subprocess
import sys
import time

RUNS = 9
COMMANDS = (
    "--version", "--help", "quantize --help", "list metrics", "list targets --json", "schema plan", "plan diff --help",
)  # fmt: skip


def seconds(words: list[str]) -> tuple[float, float]:
    """Wall and processor time of one process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "mixbit.app.main", *words], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    for text in COMMANDS:
        times = [seconds(text.split()) for _ in range(RUNS)]
        wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"mixbit {text:24} {wall:.2f} s, {processor:.2f} s of the processor")


if __name__ == "__main__":
    main()
