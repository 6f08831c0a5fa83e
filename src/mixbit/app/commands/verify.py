"""`mixbit verify` and `mixbit bench`: what a folder holds, run again; `mixbit list`: what there is to choose from."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_json, print_rows, say_what_runs_in_float
from mixbit.app.schemas import SCHEMAS
from mixbit.core import (
    METHOD_PLACES,
    RESOURCES,
    TARGETS,
    InvalidInput,
    clean,
    described_methods,
    described_targets,
    pick,
    say,
)

ADVICE = (
    "float16 where a GPU computes; w8a8 and narrower where a CPU does, which is faster than float in integers alone; "
    "w8a8d and the like for transformers without calibration data"
)
Network = Annotated[str | None, typer.Option("--model", help="MODEL, for target packed: no code that DIR names is run")]
LISTS = ("targets", *METHOD_PLACES, "budgets", "schemas")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    model: Network = None,
    layers: Annotated[bool, typer.Option("--layers", help="name the first tensor inside that differs")] = False,
    against: Annotated[
        Path | None, typer.Option(help="FILE of another quantizer, .onnx, .xml or .tflite, to run on the same samples")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the artefact in DIR on its check set and compare it with the simulation and the prediction."""
    options.check_run(folder)
    from mixbit.models.load import load_model
    from mixbit.results.against import compare_with
    from mixbit.results.recheck import recheck
    from mixbit.results.result import Result

    network = None if model is None else load_model(model).module
    other = None if against is None else compare_with(folder, against, network)
    comparison = recheck(folder, model=network, layers=layers)
    if as_json:
        told = dataclasses.asdict(comparison) | ({} if other is None else {"against": dataclasses.asdict(other)})
        print_json(_in_json(told))
    else:
        print(clean(str(comparison)))
        print(f"when it was made: {clean(Result.load(folder).speed)}")
        if layers and comparison.first_difference is None:
            print("no tensor inside differs from the simulation")
        if other is not None:
            print(clean(str(other)))
    comparison.check()


def _in_json(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _in_json(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    model: Network = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, max=2**20, help="batch sizes; 1 and 32 by default")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time the artefact in DIR, and say for every layer how it is stored and how the runtime executed it."""
    options.check_run(folder)
    from mixbit.models.load import load_model
    from mixbit.results.recheck import bench as bench_

    report = bench_(folder, tuple(batch or (1, 32)), model=None if model is None else load_model(model).module)
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


def list_(
    what: Annotated[
        str,
        typer.Argument(metavar="|".join(LISTS), autocompletion=options.completing(lambda: LISTS)),
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="of targets: what runs in each scheme, and how")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Name the targets, metrics, searches, ranges of activations, roundings, recipes, budgets, or schemas of files."""
    pick("list", what, LISTS)
    if verbose:
        _list_capabilities(what, as_json=as_json)
        return
    if what in METHOD_PLACES:
        rows = described_methods(METHOD_PLACES[what])
    else:
        rows = {"targets": described_targets, "schemas": lambda: SCHEMAS, "budgets": lambda: RESOURCES}[what]()
    if as_json:
        print_json(rows)
    else:
        print_rows(what, ("name", "what it does"), list(rows.items()))
    if what == "targets":
        say(ADVICE)


def _list_capabilities(what: str, *, as_json: bool) -> None:
    if what != "targets":
        raise InvalidInput(f"list {what}: --verbose tells more of targets alone")
    from mixbit.targets.capabilities import COLUMNS, between_layers, capabilities, summary

    rows = {name: capabilities(name) for name in TARGETS}
    if as_json:
        print_json({name: [dataclasses.asdict(row) for row in some] for name, some in rows.items()})
        return
    for name, some in rows.items():
        print_rows(f"{name}. {between_layers(name)}", COLUMNS, summary(some))
