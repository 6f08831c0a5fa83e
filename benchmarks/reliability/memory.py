"""Peak memory of runs over many batches beside that over 30, each in a process of its own.

    python -m benchmarks.reliability.memory [--batches 3000] [--cases measure ...]

The data is a generator of batches of 64 small images, or of 64 sequences. Ends with 1 where a peak is more than 1.15
times as high.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

#: Those of `memory_cases`, which this process does not import: it must stay small, since a child starts from its peak.
CASES = ("measure", "quantize", "brecq", "language")
#: Batches of the run that others are compared with, and how many times its peak theirs may be.
FEW, MOST_TIMES = 30, 1.15


def measured(case: str, count: int) -> tuple[float, float]:
    """Peak in MB and seconds of a process that runs the case."""
    command = [sys.executable, "-m", "benchmarks.reliability.memory_cases", case, str(count)]
    with TemporaryDirectory() as scratch:
        printed = subprocess.run(command, env=os.environ | {"TMPDIR": scratch}, stdout=subprocess.PIPE, check=True)
    peak_mb, seconds = json.loads(printed.stdout.splitlines()[-1])
    return peak_mb, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each case; 1 where one is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args(arguments)
    failed = []
    for case in given.cases:
        (few, _), (many, seconds) = (measured(case, count) for count in (FEW, given.batches))
        kept = 1024 * (many - few) / (given.batches - FEW)
        line = f"{case}: {many:.0f} MB at {given.batches} batches, {few:.0f} MB at {FEW}: {many / few:.3f}x"
        print(f"{line}, {kept:.2f} KB kept a batch, {seconds:.0f} s", flush=True)
        if many > MOST_TIMES * few:
            failed.append(case)
    print(f"{len(given.cases) - len(failed)} of {len(given.cases)} within {MOST_TIMES}x; too high: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
