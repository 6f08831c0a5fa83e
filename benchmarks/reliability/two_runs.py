"""Starts a second run on the folder of the first: it is refused at once, with exit code 2, and names the first.

`python -m benchmarks.reliability.two_runs`
"""

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.runs import exit_code, left_overs, started, warm_up, words

SOON_S = 5.0


def main() -> None:
    warm_up()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = folder / "results" / "out"
        first = started(words("brecq", out), folder / "first.log")
        while not list(folder.rglob("*.mixbit-lock")):
            time.sleep(0.05)
        began = time.perf_counter()
        refused = [
            exit_code(started(words(phase, out, "--force"), folder / "second.log")) for phase in ("brecq", "nearest")
        ]
        seconds, said = (time.perf_counter() - began) / 2, (folder / "second.log").read_text(encoding="utf-8")
        still = first.exitcode is None
        status = exit_code(first)
        names_it = re.search(rf"process {first.pid}, since \d{{4}}-", said) is not None
        clean = [path.name for path in out.parent.iterdir()] == ["out"] and not left_overs(out)
    good = status == 0 and refused == [2, 2] and seconds < SOON_S and still and names_it and clean
    print(f"two runs on one folder: the first ends with {status}, others with {refused} after {seconds:.2f} s: {said}")
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
