"""Ends runs by SIGINT, SIGTERM and SIGHUP in five phases: exit codes 130, 143 and 129, and nothing is left.

`python -m benchmarks.reliability.signals --count 15`
"""

import argparse
import os
import signal
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.runs import PHASES, exit_code, left_overs, started, timed, warm_up, words

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: When the signal comes, as a share of the whole run; earlier where the run has ended by then.
SHARES = (0.6, 0.4, 0.2)


def outcome(phase: str, number: int, place: Path, after_s: float) -> str | None:
    """What comes of a run that gets the signal after so many seconds: `good`, or what is wrong; None if it ended."""
    scratch, out, log = place / "tmp", place / "results" / "out", place / "log"
    scratch.mkdir(parents=True)
    process = started(words(phase, out), log, partial(setattr, tempfile, "tempdir", str(scratch)))
    process.join(after_s)
    if process.exitcode is not None or process.pid is None:
        return None
    os.kill(process.pid, number)
    status, said = exit_code(process), log.read_text(encoding="utf-8")
    if status != 128 + number or "Traceback" in said or "mixbit: interrupted" not in said:
        return f"exit code {status}: {said[-500:]}"
    left = [*left_overs(place), *(path.name for path in scratch.iterdir()), *(["out"] if out.exists() else [])]
    return f"left over: {left}" if left else "good"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=15)
    given = parser.parse_args()
    warm_up()
    outcomes = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for phase, number in [*product(PHASES, SIGNALS)][: given.count]:
            if number is SIGNALS[0]:
                seconds = timed(words(phase, folder / phase), folder / "log")
            places = ((folder / f"{phase}-{number.name}-{share}", share * seconds) for share in SHARES)
            said = (outcome(phase, number, place, after_s) for place, after_s in places)
            outcomes.append(next(filter(None, said), "ends before every signal"))
            if outcomes[-1] != "good":
                print(f"{phase}, {number.name}: {outcomes[-1]}", flush=True)
    good = outcomes.count("good")
    print(f"SIGINT, SIGTERM, SIGHUP in {', '.join(PHASES)}: {good} of {len(outcomes)}")
    raise SystemExit(good < len(outcomes) or not outcomes)


if __name__ == "__main__":
    main()
