"""sweep(): models x targets x budgets x roundings, every cell verified in a folder of its own."""

import hashlib
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from pydantic import JsonValue

from mixbit.core import (
    Engine,
    InvalidInput,
    MixbitError,
    Store,
    check_writable_folder,
    file_errors,
    find_target,
    reserved,
    run_jobs,
    track,
    write_text,
)
from mixbit.pipeline.cells import WORK, Answer, Cells, Given, budget_of, is_known, work_of
from mixbit.pipeline.settings import Run, Settings
from mixbit.report.sweep import PAGE_FILE, sweep_page_of
from mixbit.results.result import RESULT_FILE, files_of_a_result
from mixbit.results.sweep import SWEEP_FILE, Sweep, SweepCell

_log = logging.getLogger("mixbit")
#: File by which workers see that the folder is the one that the caller writes to.
CALL = "call"
#: Longest name of a folder that is made of a budget, a target or a rounding; longer ones are cut.
LONGEST = 80


@dataclass(frozen=True)
class SweepModel:
    """One model of a sweep.

    Attributes:
        setup: Loads the model and its data, the same on every call; with several processes it is pickled, and each of
            them calls it.
        settings: Rounding, as the sweep names it -> settings of its cells, without data: to be checked before the work.
        noted: What sweep.json says of it; the sweep goes on only where that is the same.
    """

    setup: Callable[[], Given]
    settings: Mapping[str, Settings]
    noted: Mapping[str, JsonValue]


def sweep(
    models: Mapping[str, SweepModel],
    *,
    targets: Sequence[str],
    budgets: Sequence[str],
    out: Path,
    noted: Mapping[str, JsonValue],
    engine: Engine | None = None,
    force: bool = False,
) -> Sweep:
    """Run every cell of models x targets x budgets x roundings, and write sweep.json and sweep.html as they end.

    A model is captured and calibrated once in each process, a table of sensitivities measured once for each model and
    target. The same call takes up tables and finished cells, where network, data and settings are still the same. A
    cell that fails says why, and the others go on.

    Args:
        models: Name, of letters, digits, dots, dashes and underscores -> the model.
        targets: Names of targets, with options where they have some.
        budgets: As `budget_of` reads them.
        out: Folder for the results.
        noted: Settings of all cells, for sweep.json.
        engine: Where cells run, in one thread each: they are the same bits wherever that is. The folder must be one
            that all nodes share. None for one after the other in this process, with all threads, as auto_quantize does.
        force: Whether to start over: results of these cells are removed first.

    Raises:
        InvalidInput: names, settings or the folder cannot be used, cells would share a folder, or the folder holds a
            sweep with other settings.
    """
    cells = cells_of(models, targets, budgets)
    made = Sweep(settings={**noted}, models={name: {**model.noted} for name, model in models.items()}, cells=cells)
    check_writable_folder(out, force=force or (out / SWEEP_FILE).exists())
    with reserved(out):
        if not force:
            _check_same(out, made)
        for cell in cells:
            _check(cell, models[cell.model].settings[cell.rounding], out, force=force or is_known(out, cell))
        if force:
            _clear(out, cells)
        with file_errors(f"{out}: cannot be made", "; choose another folder"):
            (out / WORK).mkdir(parents=True, exist_ok=True)
        made = _written(out, made, cells)
        call = f"{platform.node()} {os.getpid()} {time.time_ns()}"
        write_text(out / WORK / CALL, call)
        start = partial(_start, {name: model.setup for name, model in models.items()}, out, call, force)
        rows = {cell.folder: cell for cell in cells}
        with closing(_answers(engine, start, cells)) as answers:
            for row, taken_up in track(answers, "run cells", total=len(cells)):
                rows[row.folder] = row
                made = _written(out, made, [*rows.values()])
                _log.info("%s: %s", row.name, _in_words(row, taken_up=taken_up))
    return made


def cells_of(models: Mapping[str, SweepModel], targets: Sequence[str], budgets: Sequence[str]) -> list[SweepCell]:
    """The cells, each with its folder; raises InvalidInput for an empty list, and for two that would share a folder."""
    for what, texts in (("models", models), ("targets", targets), ("budgets", budgets)):
        if not texts:
            raise InvalidInput(f"{what}: empty; give one or more")
    cells: dict[str, SweepCell] = {}
    for name, target, budget in product(models, targets, budgets):
        limits, runtime = str(budget_of(budget)), find_target(target).name
        for rounding in models[name].settings:
            folder = "/".join(map(_in_path, (name, runtime, f"{limits}-{rounding}")))
            cell = SweepCell(model=name, target=runtime, budget=limits, rounding=rounding, folder=folder)
            if (other := cells.setdefault(folder.lower(), cell)) is not cell:  # as file systems without case have it
                same = "stands twice" if other.name == cell.name else f"has the folder of {other.name}"
                raise InvalidInput(f"{cell.name}: {same} ({folder}); leave one out, or write it another way")
    return [*cells.values()]


def _in_path(text: str) -> str:
    """The text as the name of a folder: long ones are cut, with a hash of the whole."""
    plain = re.sub(r"[^A-Za-z0-9_.=+-]+", "-", text.replace("%", "pct")).strip("-.")
    whole = hashlib.sha256(text.encode()).hexdigest()[:12]
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 13]}-{whole}"


def _check(cell: SweepCell, settings: Settings, out: Path, *, force: bool) -> None:
    """Raise InvalidInput where target, budget and settings do not go together, or the folder holds something else."""
    try:
        Run(cell.target, budget_of(cell.budget), out / cell.folder, settings, force=force)
    except MixbitError as error:
        raise InvalidInput(f"{cell.name}: {error}") from error


def _check_same(out: Path, made: Sweep) -> None:
    """Raise InvalidInput where the folder holds a sweep with other settings, or another model of a name."""
    if not (out / SWEEP_FILE).exists():
        return
    stored = Sweep.load(out)
    names = [name for name in made.models if name in stored.models]
    models = [(f"model {name}: ", stored.models[name], made.models[name]) for name in names]
    for which, before, now in (("", stored.settings, made.settings), *models):
        for key in dict.fromkeys((*before, *now)):
            if before.get(key) != now.get(key):
                raise InvalidInput(
                    f"{out}: holds a sweep with another setting: {which}{key} was {before.get(key)!r}, and is "
                    f"{now.get(key)!r} here; choose another folder, or pass --force to start over"
                )


def _clear(out: Path, cells: Sequence[SweepCell]) -> None:
    """Remove the results of these cells, and what is stored of them and of their tables."""
    for cell in cells:
        place = out / cell.folder
        for name in (RESULT_FILE, *files_of_a_result(place)):  # without the first, the others are no result
            (place / name).unlink(missing_ok=True)
        Store(work_of(out, cell)).clear()


def _written(out: Path, made: Sweep, cells: Sequence[SweepCell]) -> Sweep:
    """The sweep with these cells, whose files are written."""
    made = made.model_copy(update={"cells": [*cells]})
    made.save(out)
    write_text(out / PAGE_FILE, sweep_page_of(made))
    return made


def _answers(
    engine: Engine | None, start: Callable[[], Cells], cells: Sequence[SweepCell]
) -> Generator[Answer, None, None]:
    """Yield the answers as they come; where several work, one cell of each table goes first: none is to wait for it."""
    if engine is None:
        yield from map(start(), cells)
        return
    first = {(cell.model, cell.target): cell for cell in reversed(cells)}
    if not engine.is_this_process:  # this one keeps what cells of a model share, and goes model by model
        cells = sorted(cells, key=lambda cell: first[cell.model, cell.target] is not cell)
    with closing(run_jobs(engine, start, cells)) as answered:
        yield from (answer for _, answer in answered)


def _start(setups: Mapping[str, Callable[[], Given]], out: Path, call: str, force: bool) -> Cells:
    """What answers cells in a process; raises InvalidInput where it sees another folder than the caller."""
    file = out / WORK / CALL
    if not file.is_file() or file.read_text(encoding="utf-8") != call:
        raise InvalidInput(f"{out}: is not the folder that the sweep writes to; give one that all nodes share")
    return Cells(setups, out, force=force)


def _in_words(cell: SweepCell, *, taken_up: bool) -> str:
    """How a cell ended."""
    if cell.state == "failed":
        return f"failed: {cell.reason}"
    figures = f"{cell.weight_bytes:,.0f} bytes of weights"
    if cell.accuracy is not None:
        figures += f", accuracy {cell.accuracy:.2%}"
    ended = "finished by an earlier call" if taken_up else "done"
    return f"{ended}: {figures}" + (f"; the file differs: {cell.reason}" if cell.state == "differs" else "")
