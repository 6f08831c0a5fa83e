"""ResNet-20 on CIFAR-10 through the whole loop: accuracy simulated and deployed, bytes, latency.

Calibrated on 512 training images, evaluated on the 10,000 test images:

    python -m benchmarks.resnet20_table

Latencies are medians over runs that alternate between the plans, one batch of 32 images.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import Batch, split_batch
from mixbit.core.target import Runner, find_target
from mixbit.core.task import Task
from mixbit.graph import Graph
from mixbit.graph.evaluate import Evaluation, Reference, evaluate
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.targets.latency import paired_times
from mixbit.targets.verify import Comparison, artefact_runner, compare, predicted_bytes

NUM_CALIBRATION = 512
BUDGETS = (("uniform w8a8", None), ("mean 4 bits", 4), ("mean 3 bits", 3))
TASK = Task.classification()


@dataclass(frozen=True)
class Data:
    """The network and its data."""

    graph: Graph
    calibration_batches: list[Batch]
    test: list[Batch]
    calibration: Calibration

    @classmethod
    def load(cls) -> "Data":
        """From the paths of `benchmarks.paths`."""
        source = paths.require("MIXBIT_CIFAR10")
        images, labels = cifar.load_images(source, "train", limit=NUM_CALIBRATION, seed=0)
        pairs = [split_batch(batch) for batch in cifar.batches(images, labels, 64)]
        test = [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "test"), 500)]
        graph = mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), pairs[0][0].args)
        calibration = calibrate(graph, pairs)
        return cls(graph, pairs, test, calibration)


def plan_for(data: Data, target: str, mean_bits: float | None) -> mb.Plan:
    """The plan that `fisher` and `ilp` make for that mean weight width; uniform w8a8 for None."""
    if mean_bits is None:
        return uniform_plan(data.graph, "w8a8", target=target)
    table = mb.measure(data.graph, data.calibration, target=target)
    return mb.search(table, mb.Budget(mean_bits=mean_bits))


def deploy(data: Data, plan: mb.Plan, folder: Path) -> tuple[Evaluation, Comparison, Runner]:
    """Simulate, export into the folder, run the artefact on the test images and compare."""
    simulated = mb.quantize(data.graph, plan, data.calibration)
    outputs = Reference.recorded(simulated, TASK)
    reference = evaluate(outputs, data.test, TASK, f"simulate for {plan.target}")
    mb.export(simulated, folder)
    module = find_target(plan.target)
    runner = module.load(folder, data.graph)
    run = artefact_runner(runner, data.graph)
    deployed = evaluate(run, data.test, TASK, f"run in {plan.target}", differing_from=outputs)
    predicted = predicted_bytes(simulated, plan)
    comparison = compare(folder, plan.target, predicted, deployed, environment=runner.environment)
    return reference, comparison, module.load(folder, data.graph, batch_size=32)


def rows_for(data: Data, target: str) -> list[tuple[str, ...]]:
    """One row of the table per plan."""
    float_bytes = 4 * sum(layer.numel for layer in data.graph.layers)
    found = []
    with TemporaryDirectory() as scratch:
        for name, mean_bits in BUDGETS:
            plan = plan_for(data, target, mean_bits)
            found.append((name, *deploy(data, plan, Path(scratch) / name)))
        inputs = [data.test[0][0].tensors[0][:32].numpy()]
        latency = paired_times({name: runner.run for name, *_, runner in found}, inputs, f"time {target}").medians
    slowest = latency[BUDGETS[0][0]]
    return [
        (
            target,
            name,
            f"{reference.accuracy:.2%}",
            f"{comparison.accuracy:.2%}",
            f"{comparison.agreement:.2%}",
            f"{comparison.weight_bytes:,}",
            f"{comparison.weight_bytes / float_bytes:.4f}",
            f"{comparison.predicted_bytes / comparison.weight_bytes:.4f}",
            f"{comparison.file_bytes:,}",
            f"{latency[name]:.3f}",
            f"{latency[name] / slowest:.3f}",
        )
        for name, reference, comparison, _ in found
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["openvino", "onnxruntime", "packed"])
    given = parser.parse_args(arguments)
    data = Data.load()
    reference = evaluate(data.graph, data.test, TASK, "evaluate float")
    columns = ("target", "plan", "simulated", "deployed", "agreement", "weight bytes", "of float", "predicted/actual",
               "file bytes", "ms", "of w8a8")  # fmt: skip
    table = Table(*columns, title=f"ResNet-20, float32 {reference.accuracy:.2%}")
    for target in given.targets:
        for row in rows_for(data, target):
            table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
