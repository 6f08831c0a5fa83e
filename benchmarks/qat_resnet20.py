"""ResNet-20 on CIFAR-10: quantized, then fine-tuned for three epochs on 10,000 training images with its float teacher.

Ranges and plans from 512 training images, the best epoch by 512 others; accuracy on the 10,000 test images, in
simulation and of the artefact:

    python -m benchmarks.qat_resnet20 --plans w4a4 mean_bits=2.5 --rounding nearest
    python -m benchmarks.qat_resnet20 --plans mean_bits=3 --target openvino
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import Batch, split_batch
from mixbit.core.target import find_target
from mixbit.core.task import Task
from mixbit.graph import Graph
from mixbit.graph.evaluate import evaluate
from mixbit.quantization import uniform_plan
from mixbit.targets.verify import artefact_runner
from mixbit.training import Training
from mixbit.training.finetune import FILE_NAME, train
from mixbit.training.loop import Objective

NUM_CALIBRATION, NUM_TRAIN, BATCH_SIZE = 512, 10_000, 64
CHOICES = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")
TASK = Task.classification()


@dataclass(frozen=True)
class Augmented:
    """Batches in a new order every epoch, each image shifted by up to four pixels and flipped with even odds.

    Attributes:
        images: Normalised, float32 [N, 3, 32, 32].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return math.ceil(len(self.images) / BATCH_SIZE)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for drawn in torch.randperm(len(self.images)).split(BATCH_SIZE):
            windows = F.pad(self.images[drawn], (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
            down, right = torch.randint(9, (2, len(drawn)))
            shifted = windows[torch.arange(len(drawn)), :, down, right]
            flipped = torch.rand(len(drawn), 1, 1, 1) < 0.5
            yield torch.where(flipped, shifted.flip(3), shifted), self.labels[drawn]


@dataclass(frozen=True)
class Data:
    """The network and its data."""

    graph: Graph
    calibration: list[Batch]
    train: Augmented
    held_out: list[Batch]
    test: list[Batch]


def load(num_train: int) -> Data:
    """From the paths of `benchmarks.paths`; each image serves for calibration, for training or is held out."""
    source = paths.require("MIXBIT_CIFAR10")
    count = 2 * NUM_CALIBRATION + num_train
    images, labels = cifar.load_images(source, "train", limit=count, seed=0)
    calibration = cifar.batches(images[:NUM_CALIBRATION], labels[:NUM_CALIBRATION], 64)
    held_out = cifar.batches(images[-NUM_CALIBRATION:], labels[-NUM_CALIBRATION:], 64)
    train_images = cifar.normalise(images[NUM_CALIBRATION:-NUM_CALIBRATION])
    graph = mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), calibration[0][0])
    return Data(
        graph,
        [split_batch(batch) for batch in calibration],
        Augmented(train_images, labels[NUM_CALIBRATION:-NUM_CALIBRATION]),
        [split_batch(batch) for batch in held_out],
        [split_batch(batch) for batch in cifar.batches(*cifar.load_images(source, "test"), 500)],
    )


def plan_for(data: Data, text: str, target: str) -> mb.Plan:
    """The uniform plan of a scheme, or the one that `fisher` and `ilp` make for a budget."""
    if "=" in text:
        inputs = [inputs for inputs, _ in data.calibration]
        return mb.search(mb.measure(data.graph, inputs, target=target, choices=CHOICES), mb.Budget.parse([text]))
    return uniform_plan(data.graph, text, target=target)


def row(data: Data, text: str, given: argparse.Namespace) -> tuple[str, ...]:
    """Accuracy and held-out loss of one plan before and after, and the minutes between."""
    simulated = mb.quantize(data.graph, plan_for(data, text, given.target), data.calibration, rounding=given.rounding)
    before = evaluate(simulated, data.test, TASK, "evaluate before")
    print(f"{text}: {before.accuracy:.2%} before", flush=True)
    settings = Training(**dict(given.settings))
    objective = Objective(TASK, data.graph, settings.distil, settings.temperature)
    path = None if given.folder is None else Path(given.folder) / text / FILE_NAME
    began = time.perf_counter()
    found = train(
        simulated, data.train, objective, epochs=given.epochs, settings=settings,
        eval_batches=data.held_out, path=path,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60
    after = evaluate(found.graph, data.test, TASK, "evaluate after")
    losses = " ".join(f"{loss:.4f}" for loss in found.losses)
    print(f"{text}: {after.accuracy:.2%} after {minutes:.1f} minutes; held-out loss {losses}", flush=True)
    run = deployed(data, found.graph, given.target)
    return text, f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", f"{run:.2%}", losses, f"{minutes:.1f}"


def deployed(data: Data, graph: Graph, target: str) -> float:
    """Accuracy of the graph's artefact, run in the target's runtime."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        mb.export(graph, path)
        run = artefact_runner(find_target(target).load(path, data.graph), data.graph)
        return evaluate(run, data.test, TASK, f"run in {target}").accuracy or math.nan


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", nargs="+", default=["w4a4", "mean_bits=2.5"], help="schemes or budgets")
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--target", default="packed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=NUM_TRAIN)
    parser.add_argument(
        "--settings", nargs="*", type=_setting, default=[], help="of mixbit.training.Training, as in lr=0.001"
    )
    parser.add_argument("--folder", help="for checkpoints: interrupted, the same command goes on")
    given = parser.parse_args(arguments)
    data = load(given.images)
    reference = evaluate(data.graph, data.test, TASK, "evaluate float")
    columns = ("plan", "before", "after", f"in {given.target}", "held-out loss before and after each epoch", "minutes")
    table = Table(*columns, title=f"ResNet-20, float32 {reference.accuracy:.2%}, {given.rounding}")
    for text in given.plans:
        table.add_row(*row(data, text, given))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
