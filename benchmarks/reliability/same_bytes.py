"""Runs the same command in two processes whose hashes differ: the same bytes in all files, but for times.

`python -m benchmarks.reliability.same_bytes`
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.runs import contents, words

TARGETS = ("packed", "onnxruntime", "openvino")


def main() -> None:
    differing = []
    with TemporaryDirectory() as scratch:
        folder, count = Path(scratch), 0
        for target in TARGETS:
            found = []
            for number in ("1", "2"):
                (folder / number).mkdir(exist_ok=True)
                subprocess.run(
                    [sys.executable, "-m", "mixbit.app.main", *words("nearest", Path(target), target=target)],
                    cwd=folder / number,
                    env=os.environ | {"PYTHONHASHSEED": number, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    capture_output=True,
                    check=True,
                )
                found.append(contents(folder / number / target))
            count += len(found[0])
            one, other = found
            differing += [f"{target}/{name}" for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    print(f"two processes, the same command, {count} files: {', '.join(sorted(differing)) or 'none'} differ")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
