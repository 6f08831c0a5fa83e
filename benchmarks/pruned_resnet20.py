"""ResNet-20 on CIFAR-10 pruned, then fine-tuned for three epochs on training images with its float teacher.

Half of the weights zero (w8a8@2:4), and 30 % of the channels removed (fine-tuned in float, then w8a8), on 10,000
training images unless told otherwise; accuracy on the 10,000 test images, and bytes of the onnxruntime files:

    python -m benchmarks.pruned_resnet20
    python -m benchmarks.pruned_resnet20 --ways channels --settings lr=0.0004
    python -m benchmarks.pruned_resnet20 --ways channels --images 30000
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks.qat_resnet20 import TASK, Data, load
from benchmarks.sparse_resnet20 import DENSE, sparse_plan
from mixbit.graph import Graph
from mixbit.graph.evaluate import evaluate
from mixbit.pruning.prune import Removal
from mixbit.training import Training
from mixbit.training.finetune import train
from mixbit.training.loop import Objective

TARGET, SHARE, EPOCHS, ITERATIONS = "onnxruntime", 0.3, 3, 500
#: Way of pruning -> settings other than the defaults: what is lost is more, or the network that trains is in float.
TRAINING = {"2:4": {"lr": 9e-4}, "channels": {"lr": 3e-4}}


def accuracy(data: Data, graph: Graph) -> str:
    """On the test images."""
    return f"{evaluate(graph, data.test, TASK, 'evaluate').accuracy:.2%}"


def file_bytes(graph: Graph) -> str:
    """Of the target's file."""
    with TemporaryDirectory() as scratch:
        return f"{mb.export(graph, Path(scratch) / 'out').stat().st_size:,}"


def fine_tuned(data: Data, graph: Graph, settings: Training) -> Graph:
    """Trained as the table says."""
    objective = Objective(TASK, data.graph, settings.distil, settings.temperature)
    found = train(graph, data.train, objective, epochs=EPOCHS, settings=settings, eval_batches=data.held_out, path=None)
    print(" ".join(f"{loss:.4f}" for loss in found.losses), "held-out loss before and after each epoch", flush=True)
    return found.graph


def rows_for(data: Data, way: str, settings: Training) -> list[tuple[str, ...]]:
    """Before and after fine-tuning."""
    if way == "2:4":
        plan = sparse_plan(data.graph, "w8a8@2:4", TARGET)
        sparse = mb.quantize(data.graph, plan, data.calibration)
        trained = fine_tuned(data, sparse, settings)
        named = {"w8a8@2:4": sparse, "w8a8@2:4, fine-tuned": trained}
        return [(name, accuracy(data, graph), file_bytes(graph)) for name, graph in named.items()]
    cut, smaller = (
        mb.prune_channels(data.graph, data.calibration, share=SHARE, task=TASK, iterations=iterations)
        for iterations in (0, ITERATIONS)
    )
    print(Removal.between(data.graph, smaller), flush=True)
    name = f"{SHARE:.0%} of channels"
    rows = [(f"{name}, float", accuracy(data, cut), ""), (f"{name}, learned by blocks", accuracy(data, smaller), "")]
    trained = fine_tuned(data, smaller, settings)
    rows.append((f"{name}, float, fine-tuned", accuracy(data, trained), ""))
    quantized = mb.quantize(trained, sparse_plan(trained, DENSE, TARGET), data.calibration)
    return [*rows, (f"{name}, fine-tuned, w8a8", accuracy(data, quantized), file_bytes(quantized))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(TRAINING), choices=list(TRAINING))
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="of mixbit.training.Training")
    parser.add_argument("--images", type=int, default=10_000, help="to train on, of 48,976")
    given = parser.parse_args(arguments)
    data = load(given.images)
    dense = mb.quantize(data.graph, sparse_plan(data.graph, DENSE, TARGET), data.calibration)
    table = Table("network", "accuracy", "file bytes", title=f"ResNet-20, float32 {accuracy(data, data.graph)}")
    table.add_row(DENSE, accuracy(data, dense), file_bytes(dense))
    for way in given.ways:
        values = TRAINING[way] | {name: float(value) for name, value in (text.split("=", 1) for text in given.settings)}
        for row in rows_for(data, way, Training(**values)):
            print(*row, flush=True)
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
