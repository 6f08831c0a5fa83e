"""Kills runs at random times: the folder is whole or absent, and the same command then ends with the same bits.

`python -m benchmarks.reliability.kills --count 200`
"""

import argparse
import os
import random
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.runs import PHASES, contents, exit_code, is_half, left_overs, started, timed, warm_up, words


def outcome(phase: str, place: Path, after_s: float, wanted: dict[str, bytes | str]) -> str:
    """What comes of a run that is killed after so many seconds and started again: `good`, or what is wrong."""
    place.mkdir()
    out, log = place / "out", place.with_suffix(".log")
    process = started(words(phase, out), log)
    process.join(after_s)
    if process.exitcode is None and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if is_half(out):
        return "half a folder"
    if not out.exists() and (status := exit_code(started(words(phase, out), log))):
        return f"exit code {status} when started again: {log.read_text(encoding='utf-8')[-300:]}"
    if differing := [name for name, content in wanted.items() if contents(out).get(name) != content]:
        return f"other content in {', '.join(differing)}"
    beside = [path.name for path in place.iterdir() if path != out]
    return f"left over: {beside}" if beside or left_overs(place) else "good"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3600, help="end earlier, after this time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warm_up()
    draws, began, outcomes = random.Random(given.seed), time.monotonic(), list[str]()
    with TemporaryDirectory() as scratch:
        folder, wanted, lasting = Path(scratch), dict[str, dict[str, bytes | str]](), dict[str, float]()
        for phase in PHASES:
            lasting[phase] = timed(words(phase, folder / f"{phase}-whole"), folder / f"{phase}.log")
            wanted[phase] = contents(folder / f"{phase}-whole")
        while len(outcomes) < given.count and time.monotonic() < began + given.seconds:
            number, phase = len(outcomes), list(PHASES)[len(outcomes) % len(PHASES)]
            after_s = draws.uniform(0.05, 1) * lasting[phase]
            outcomes.append(outcome(phase, folder / str(number), after_s, wanted[phase]))
            if outcomes[-1] != "good":
                print(f"{phase}, killed after {after_s:.2f} s: {outcomes[-1]}", flush=True)
    good = outcomes.count("good")
    print(f"random kill -9 in {', '.join(PHASES)}: whole or absent, then the same bits: {good} of {len(outcomes)}")
    raise SystemExit(good < given.count)


if __name__ == "__main__":
    main()
