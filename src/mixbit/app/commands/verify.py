"""`mixbit verify` and `mixbit bench`: what a folder holds, run again."""

from pathlib import Path
from typing import Annotated

import typer

from mixbit.app.commands import options
from mixbit.app.printing import print_json, print_rows, say_what_runs_in_float


def verify(folder: Annotated[Path, typer.Argument(metavar="DIR")], as_json: options.AsJson = False) -> None:
    """Run the artefact in DIR on its check set and compare it with the simulation and the prediction."""
    from mixbit.pipeline.folder import recheck

    comparison = recheck(folder)
    if as_json:
        print_json(vars(comparison))
    else:
        print(comparison)
    comparison.check()


def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, max=2**20, help="batch sizes; 1 and 32 by default")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time the artefact in DIR, and say for every layer how it is stored and how the runtime executed it."""
    from mixbit.pipeline.folder import bench as bench_

    report = bench_(folder, tuple(batch or (1, 32)))
    if as_json:
        print_json(report)
        return
    rows = [
        (name, row["scheme"], f"{row['weight_bytes']:,}", row["stored"], row["executed"])
        for name, row in report["layers"].items()
    ]
    print_rows("layers", ("layer", "scheme", "bytes", "stored", "executed"), rows)
    latency, default = report["latency_ms"], report["default_latency_ms"]
    timed = [(size, f"{latency[size]:.3f}", f"{default[size]:.3f}") for size in latency]
    print_rows("latency", ("batch", "ms", "ms with the runtime's default settings"), timed)
    say_what_runs_in_float(report["in_float"], len(rows))
