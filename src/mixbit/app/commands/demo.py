"""`mixbit demo`: a small residual network on handwritten digits, through the whole loop for each runtime."""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_json, print_rows
from mixbit.core import Budget, InvalidInput, check_writable_folder, find_target, say, scratch_folder

MIXED = Budget(mean_bits=3)
RUNTIMES = ("openvino", "onnxruntime")
MODEL = "mixbit.demo.network:trained"


def demo(
    out: Annotated[Path | None, typer.Option(help="keep the folders here")] = None,
    as_json: options.AsJson = False,
) -> None:
    """The whole loop on the shipped network and data, for each runtime that is installed."""
    from mixbit.demo.data import BATCH_SIZE

    targets = installed()
    for name in [name for name in RUNTIMES if name not in targets]:
        say(f"{name} is left out: pip install 'mixbit[{name}]'")
    rows = run_demo(out, targets)
    if as_json:
        print_json({"rows": [row._asdict() for row in rows]})
        return
    forms = ("s", "s", ".2%", ",", ",", ".3f", ".2%")
    columns = ("target", "network", "accuracy", "file bytes", "weight bytes", f"ms, batch {BATCH_SIZE}", "agreement")
    print_rows("handwritten digits", columns, [tuple(map(format, row, forms)) for row in rows])
    say("every file ran in its runtime and matches its simulation and the predicted bytes")
    if out is not None:
        model = "" if targets[0] in RUNTIMES else f" --model {MODEL}"
        say(f"written to {out}; try: mixbit bench {out}/{targets[0]}-mixed{model}")


class Row(NamedTuple):
    """One network in one runtime, as deployed; latency of a batch of BATCH_SIZE."""

    target: str
    network: str
    accuracy: float
    file_bytes: int
    weight_bytes: int
    latency_ms: float
    agreement: float


def installed() -> list[str]:
    """The runtimes that are installed; without any, the target that PyTorch itself runs."""
    names = []
    for name in RUNTIMES:
        with suppress(InvalidInput):
            find_target(name).require()
            names.append(name)
    return names or ["packed"]


def run_demo(out: Path | None, targets: list[str]) -> list[Row]:
    """Deploy float, uniform int8 and a mixed plan for each target; one row each, latencies of a target paired.

    The folder keeps `TARGET-float`, `TARGET-int8` and `TARGET-mixed`; None keeps nothing. Raises InvalidInput where the
    folder is not empty, and TargetMismatch where an artefact is not as promised.
    """
    if out is not None:
        check_writable_folder(out, force=False)
    with scratch_folder() if out is None else nullcontext(out) as folder:
        return [row for target in targets for row in _deploy(target, folder)]


def _deploy(target: str, folder: Path) -> list[Row]:
    from mixbit.demo.data import BATCH_SIZE, calibration_batches, test_batches
    from mixbit.demo.network import trained
    from mixbit.graph.capture import capture
    from mixbit.pipeline.auto import auto_quantize
    from mixbit.pipeline.settings import Settings
    from mixbit.targets.latency import paired_times

    model, calibration, test = trained(), calibration_batches(), test_batches()
    whole, deployed = Budget(weight_ratio=1), {}
    for name, choices, budget in (("float", ["float"], whole), ("int8", ["w8a8"], whole), ("mixed", None, MIXED)):
        settings = Settings(choices=choices, model=MODEL)
        place = folder / f"{target}-{name}"
        deployed[name] = auto_quantize(
            model, calibration, target=target, budget=budget, out=place, eval_batches=test, settings=settings
        )
        deployed[name].comparison.check()
    load, graph = find_target(target).load, capture(model, test[0][0])
    runs = {name: load(result.folder, graph, batch_size=BATCH_SIZE).run for name, result in deployed.items()}
    latency = paired_times(runs, [test[0][0].numpy()], f"time {target}").medians
    rows = []
    for name, result in deployed.items():
        figures, network = result.comparison, name if name != "mixed" else f"mixed, {MIXED}"
        accuracy, agreement = figures.accuracy or 0.0, figures.agreement or 0.0
        rows.append(Row(target, network, accuracy, figures.file_bytes, figures.weight_bytes, latency[name], agreement))
    return rows
