"""ResNet-20 on CIFAR-10 with half of its weights zero: accuracy, and bytes of the files beside those of w8a8.

Uniform plans, calibrated on 512 training images and evaluated on the 10,000 test images, before any fine-tuning:

    python -m benchmarks.sparse_resnet20

Blocks of four do not divide the 27 weights of a row of the first convolution, which stays w8a8.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks.resnet20_table import TASK, Data
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph import Graph
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.graph.graph import Case, model_fingerprint
from mixbit.quantization.affine import misfit
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.masks import choose_masks
from mixbit.targets.verify import artefact_runner, compare, predicted_bytes

DENSE = "w8a8"
#: Scheme and importance.
PLANS = (
    (DENSE, None),
    ("w8a8@2:4", "magnitude"),
    ("w8a8@2:4", "fisher"),
    ("w8a8@50%", "magnitude"),
    ("w8a8@50%", "fisher"),
)


def sparse_plan(graph: Graph, scheme: str, target: str) -> mb.Plan:
    """That scheme for every layer, DENSE for those that its blocks do not fit."""
    layers, weight = graph.layers, Scheme.parse(scheme).weight
    sparsity = None if weight is None else weight.sparsity
    schemes = {
        layer.name: DENSE if sparsity and misfit(layer.shape, layer.axis, sparsity) else scheme for layer in layers
    }
    return mb.Plan(target=target, fingerprint=model_fingerprint(layers), layers=schemes, made_by=f"uniform {scheme}")


def calibration_with_masks(data: Data, scheme: str, importance: str | None) -> Calibration:
    """The data's calibration with the masks of that scheme."""
    calibration = dataclasses.replace(data.calibration, masks={}, weight_factors={})
    if importance is not None:
        weight = Scheme.parse(scheme).weight
        case = Case(data.graph, data.calibration_batches, TASK)
        choose_masks(case, calibration, data.graph.layers, [weight] if weight else [], importance)
    return calibration


def prepare(data: Data, scheme: str, importance: str | None, target: str) -> Graph:
    """The simulated graph that is evaluated and exported."""
    calibration = calibration_with_masks(data, scheme, importance)
    return mb.quantize(data.graph, sparse_plan(data.graph, scheme, target), calibration)


def row_for(data: Data, simulated: Graph, reference: Reference) -> tuple[str, ...]:
    """Exported to the plan's target, run there on the test images."""
    plan = simulated.plan
    if plan is None:
        raise InvalidInput("simulated: a graph in float")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        mb.export(simulated, folder)
        runner = find_target(plan.target).load(folder, data.graph)
        run = artefact_runner(runner, data.graph)
        deployed = evaluate(run, data.test, TASK, f"run in {plan.target}", differing_from=reference)
        predicted = predicted_bytes(simulated, plan)
        found = compare(folder, plan.target, predicted, deployed, environment=runner.environment)
    integers = sum("int8" in text for text in runner.executed().values())
    return (
        plan.target,
        f"{found.accuracy:.2%}",
        f"{found.weight_bytes:,}",
        f"{found.predicted_bytes:,}",
        f"{found.file_bytes:,}",
        f"{integers} of {len(predicted)}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["packed", "onnxruntime"])
    targets, data = parser.parse_args(arguments).targets, Data.load()
    reference = evaluate(data.graph, data.test, TASK, "evaluate float")
    columns = ("plan", "zeros by", "simulated", "target", "deployed", "weight bytes", "predicted", "file bytes", "int8")
    table = Table(*columns, title=f"ResNet-20, float32 {reference.accuracy:.2%}")
    for scheme, importance in PLANS:
        for target in targets:
            simulated = prepare(data, scheme, importance, target)
            outputs = Reference.recorded(simulated, TASK)
            found = evaluate(outputs, data.test, TASK, f"simulate {scheme}")
            figures = row_for(data, simulated, outputs)
            table.add_row(scheme, importance or "", f"{found.accuracy:.2%}", *figures)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
