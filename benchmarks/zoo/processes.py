"""Rows of a subject, each made in a process that may die."""

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.zoo.names import make
from benchmarks.zoo.run import Options, Row, row_of

#: Longest seconds of one process.
LONGEST_S = 1200


def subject_rows(name: str, targets: Sequence[str], options: Options, folder: Path) -> list[Row]:
    """The rows of one subject: those in the folder, and the others from a process that writes them there."""
    paths = {target: folder / f"{name}.{target}.json" for target in targets}
    while missing := [target for target, path in paths.items() if not path.exists()]:
        process = multiprocessing.get_context("spawn").Process(
            target=_write_rows, args=(name, missing, options, folder)
        )
        process.start()
        process.join(LONGEST_S)
        ended = f"the process ended with {process.exitcode}"
        if process.is_alive():
            process.kill()
            process.join()
            ended = f"no end after {LONGEST_S} s"
        if not paths[missing[0]].exists():
            _save(Row(name, missing[0], error=ended), folder)
    return [Row(**json.loads(path.read_text("utf-8"))) for path in paths.values()]


def _write_rows(name: str, targets: Sequence[str], options: Options, folder: Path) -> None:
    torch.set_num_threads(1)
    subject = make(name)
    for target in targets:
        _save(row_of(name, subject, target, options), folder)


def _save(row: Row, folder: Path) -> None:
    (folder / f"{row.name}.{row.target}.json").write_text(json.dumps(row.to_json(), indent=1), "utf-8")
