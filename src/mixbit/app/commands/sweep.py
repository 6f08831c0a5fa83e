"""`mixbit sweep`: models x targets x budgets x roundings, each verified."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_rows
from mixbit.core import InvalidInput, say

if TYPE_CHECKING:
    from mixbit.results.sweep import Sweep, SweepCell


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.TOML", help="lists of models, targets, budgets and roundings")],
    out: Annotated[Path | None, typer.Option(help="folder for the results, in the place of the file's `out`")] = None,
    processes: options.Sharing = None,
    engine: options.EngineName = "local",
    ray_address: options.RayAddress = None,
    force: Annotated[bool, typer.Option("--force", help="remove the results of these cells and start over")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run every combination of models, targets, budgets and roundings that a file lists; the same call goes on."""
    from mixbit.app.sweeps import models_of, read_sweep
    from mixbit.pipeline.sweep import PAGE_FILE, sweep as sweep_

    shared, words = options.sharing_of(engine, processes, ray_address), read_sweep(file)
    if out is None and words.out is None:
        raise InvalidInput(f'{file}: names no folder for the results; write out = "DIR" there, or give --out DIR')
    place = Path(words.out or "" if out is None else out).absolute()  # the user's code may change the working folder
    with redirect_stdout(sys.stderr):  # standard output is for results, whatever the user's code prints
        result = sweep_(
            models_of(words, file, ("mixbit", *sys.argv[1:])),
            targets=words.targets,
            budgets=words.budgets,
            out=place,
            noted=words.noted,
            engine=shared,
            force=force,
        )
    if as_json:
        print(result.to_json(), end="")
    else:
        print_sweep(result)
        say(f"written to {place}; the page is {place / PAGE_FILE}")
    raise typer.Exit(result.exit_code)


def print_sweep(result: "Sweep") -> None:
    """Print all cells, and why some failed."""
    columns = (
        "model",
        "target",
        "budget",
        "rounding",
        "accuracy",
        "nats",
        "weight bytes",
        "file bytes",
        "ms",
        "chosen",
    )
    print_rows("sweep", columns, [_row(cell) for cell in result.cells])
    done = sum(cell.state == "done" for cell in result.cells)
    say(f"{done} of {len(result.cells)} cells are verified")


def _row(cell: "SweepCell") -> tuple[str, ...]:
    forms = {"accuracy": ".2%", "divergence": ".3g", "weight_bytes": ",.0f", "file_bytes": ",.0f", "latency_ms": ".3f"}
    values = [(getattr(cell, name), form) for name, form in forms.items()]
    figures = ["" if value is None else format(value, form) for value, form in values]
    words = {"done": cell.schemes_in_words, "waiting": "not run yet"}.get(cell.state, f"{cell.state}: {cell.reason}")
    return (cell.model, cell.target, cell.budget, cell.rounding, *figures, words)
