"""ResNet-20 on CIFAR-10 with channels removed: accuracy on the 10,000 test images, parameters, MACs, and the time.

Importance is measured, and blocks are learned, on 512 training images:

    python -m benchmarks.prune_channels --share 0.3
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.batches import Batch, split_batch
from mixbit.evaluation import evaluate, graph_runner
from mixbit.task import Task

NUM_CALIBRATION = 512
TASK = Task.classification()


@dataclass(frozen=True)
class Data:
    """The network and its data."""

    graph: mb.Graph
    calibration: list[Batch]
    test: list[Batch]

    @classmethod
    def load(cls) -> "Data":
        """From the paths of `benchmarks.paths`."""
        source = paths.require("MIXBIT_CIFAR10")
        images, labels = cifar.load_images(source, "train", limit=NUM_CALIBRATION, seed=0)
        pairs = [split_batch(batch) for batch in cifar.batches(images, labels, 64)]
        test = [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "test"), 500)]
        return cls(mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), pairs[0][0].args), pairs, test)


def accuracy(data: Data, graph: mb.Graph) -> float:
    """On the test images."""
    return evaluate(graph_runner(graph, TASK), data.test, TASK, "evaluate").accuracy or 0.0


def row(data: Data, name: str, graph: mb.Graph, seconds: float) -> tuple[str, ...]:
    """One row of the table."""
    gone = mb.Removal.between(data.graph, graph)
    channels = sum(after for _, after in gone.layers.values())
    return (
        name,
        f"{accuracy(data, graph):.2%}",
        f"{channels:,}",
        f"{gone.parameters[1]:,} ({gone.parameters[1] / gone.parameters[0]:.1%})",
        f"{gone.macs[1]:,} ({gone.macs[1] / gone.macs[0]:.1%})",
        f"{seconds:.1f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.3)
    share, data = parser.parse_args(arguments).share, Data.load()
    table = Table("network", "accuracy", "channels", "parameters", "MACs", "seconds", title=f"ResNet-20, share {share}")
    table.add_row(*row(data, "dense", data.graph, 0.0))
    for name, iterations in (("pruned", 0), ("pruned, learned by blocks", 500)):
        began = time.perf_counter()
        smaller = mb.prune_channels(data.graph, data.calibration, share=share, task=TASK, iterations=iterations)
        table.add_row(*row(data, name, smaller, time.perf_counter() - began))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
