"""ResNet-20 on CIFAR-10 under the options of static quantization: uniform w8a8 and w4a4, simulated for `packed`.

Calibrated on 512 training images, evaluated on 2,000 test images:

    python -m benchmarks.static_table

Each row changes one thing; the first is the default. The divergence is the mean from the float network, in nats.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from torch import nn

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import Batch, Inputs, split_batch
from mixbit.core.task import Task
from mixbit.graph import Graph
from mixbit.graph.evaluate import Evaluation, Reference, evaluate
from mixbit.quantization import equalized, uniform_plan
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.prepare import reestimated
from mixbit.quantization.ranges import RANGES

NUM_CALIBRATION, NUM_TEST = 512, 2000
SCHEMES = ("w8a8", "w4a4")
TASK = Task.classification()


@dataclass(frozen=True)
class Data:
    """The network and its data."""

    model: nn.Module
    calibration: list[Inputs]
    test: list[Batch]

    @classmethod
    def load(cls, num_test: int) -> "Data":
        """From the paths of `benchmarks.paths`."""
        source = paths.require("MIXBIT_CIFAR10")
        images, labels = cifar.load_images(source, "train", limit=NUM_CALIBRATION, seed=0)
        pairs = [split_batch(batch) for batch in cifar.batches(images, labels, 64)]
        test = [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "test", num_test), 500)]
        return cls(resnet20.load(paths.require("MIXBIT_RESNET20")), [inputs for inputs, _ in pairs], test)


@dataclass(frozen=True)
class Way:
    """One way to quantize: how, and what is done to the model and the graph before."""

    ranges: str = "mse"
    bias_correction: str = "at_once"
    model: Callable[[nn.Module, list[Inputs]], nn.Module] = lambda model, _: model
    graph: Callable[[Graph], Graph] = lambda graph: graph


DEFAULT = Way()
WAYS = {
    "default: ranges mse, biases corrected at once": DEFAULT,
    **{f"ranges {name}": replace(DEFAULT, ranges=name) for name in RANGES if name != "mse"},
    "ranges percentile:share=0.999": replace(DEFAULT, ranges="percentile:share=0.999"),
    "biases not corrected": replace(DEFAULT, bias_correction="off"),
    "biases corrected in sequence": replace(DEFAULT, bias_correction="sequential"),
    "batch norms re-estimated": replace(DEFAULT, model=reestimated),
    "equalized": replace(DEFAULT, graph=equalized),
}


def evaluated(network: Graph | Reference, data: Data, name: str, reference: Reference | None = None) -> Evaluation:
    """What it does on the test images, and how far from the reference it is."""
    return evaluate(network, data.test, TASK, name, diverging_from=reference)


def rows(data: Data) -> Iterator[tuple[str, ...]]:
    """One row of the table per way: accuracy and divergence under each scheme."""
    reference = Reference.recorded(mb.capture(data.model, data.calibration[0].args), TASK)
    calibrations: dict[tuple[object, object], tuple[Graph, Calibration]] = {}
    for name, way in WAYS.items():
        known = (way.model, way.graph)
        if known not in calibrations:
            graph = way.graph(mb.capture(way.model(data.model, data.calibration), data.calibration[0].args))
            calibrations[known] = graph, calibrate(graph, data.calibration)
        graph, calibration = calibrations[known]
        cells = [name]
        if way.ranges != "mse":
            calibration = calibrate(graph, data.calibration, ranges=way.ranges)
        for scheme in SCHEMES:
            plan = uniform_plan(graph, scheme, target="packed")
            simulated = mb.quantize(graph, plan, calibration, bias_correction=way.bias_correction)
            found = evaluated(simulated, data, f"{name}, {scheme}", reference)
            cells += [f"{found.accuracy:.2%}", f"{found.divergence:.4f}"]
        yield tuple(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=NUM_TEST, help="test images")
    data = Data.load(parser.parse_args(arguments).images)
    reference = evaluated(mb.capture(data.model, data.calibration[0].args), data, "float")
    columns = ("way", *(text for scheme in SCHEMES for text in (scheme, "nats")))
    table = Table(*columns, title=f"ResNet-20, float32 {reference.accuracy:.2%}")
    for row in rows(data):
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
