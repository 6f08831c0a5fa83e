"""Take every subject of the zoo through `mixbit.auto_quantize` on each target, and judge what comes out.

    python -m benchmarks.zoo
    python -m benchmarks.zoo --only resnet,lstm --target openvino --choices w8a8

Each subject runs in a process of its own, so one that dies is a row of the table too. Rows are kept as JSON in a
folder, and the same call goes on where it stopped: remove the folder to judge changed code. The subjects of
transformers need `pip install 'transformers==5.23.*'`, and are left out without it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo import report
from benchmarks.zoo.names import NAMES, available
from benchmarks.zoo.processes import subject_rows
from benchmarks.zoo.run import RUNTIMES, Options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print each row as it comes, then the tables and the counts."""
    given = _parser().parse_args(arguments)
    options = Options(
        tuple(given.choices.split(",")) if given.choices else None,
        tuple(given.budget or [f"mean_bits={32 if given.choices else 6}"]),
    )
    targets, chosen = given.target or list(RUNTIMES), given.only.split(",") if given.only else list(NAMES)
    if unknown := [name for name in chosen if name not in NAMES]:
        sys.exit(f"no subject {unknown[0]}; there are {', '.join(NAMES)}")
    names = [name for name in chosen if name in available()]
    if left := len(chosen) - len(names):
        print(f"{left} subjects are left out: pip install 'transformers==5.23.*'")
    folder = given.out / " ".join((given.choices or "default", *options.budget))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes
    rows = []
    for number, name in enumerate(names, 1):
        print(f"{number} of {len(names)}: {name}", flush=True)
        rows += subject_rows(name, targets, options, folder)
        for row in rows[-len(targets) :]:
            print(f"    {report.line(row)}", flush=True)
    report.show(rows, targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of subjects, with commas between")
    parser.add_argument("--target", action="append", choices=list(RUNTIMES), help="may be given twice; all by default")
    parser.add_argument("--choices", help="schemes, with commas between; the target's own by default")
    parser.add_argument(
        "--budget", action="append", help="name=value, may be given twice; mean_bits=6 by default, any with --choices"
    )
    parser.add_argument("--out", type=Path, default=Path("zoo-rows"), help="folder of the rows")
    return parser


if __name__ == "__main__":
    main()
