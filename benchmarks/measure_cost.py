"""What memory `measure` takes against one plain forward and backward pass over the same batches.

    python -m benchmarks.measure_cost

ResNet-20, 512 images in batches of 64, five weight widths: the growth of the peak resident set in a fresh process
each. `benchmarks.speed` prints seconds.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.graph import Graph

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Loaded:
    """The network, its captured graph, and 512 training images in batches of 64."""

    network: nn.Module
    graph: Graph
    batches: list[tuple[Tensor, Tensor]]

    @classmethod
    def from_paths(cls) -> "Loaded":
        """From the paths of `benchmarks.paths`."""
        images, labels = cifar.load_images(paths.require("MIXBIT_CIFAR10"), "train", limit=512, seed=0)
        batches = cifar.batches(images, labels, 64)
        network = resnet20.load(paths.require("MIXBIT_RESNET20"))
        return cls(network, mb.capture(network, (batches[0][0],)), batches)


def plain(loaded: Loaded) -> None:
    """One forward and backward pass, gradients of the weights included."""
    for images, labels in loaded.batches:
        loaded.network.zero_grad()
        torch.nn.functional.cross_entropy(loaded.network(images), labels).backward()


def measured(loaded: Loaded) -> None:
    """Calibration and the table of five weight widths."""
    mb.measure(loaded.graph, [(images,) for images, _ in loaded.batches], target="openvino")


def peak_growth(run: Callable[[Loaded], None]) -> float:
    """Megabytes by which the peak resident set of a fresh process grows while it runs."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(run, sender))
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def _grow(run: Callable[[Loaded], None], sender: Connection) -> None:
    loaded = Loaded.from_paths()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(loaded)
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    """Print the ratio."""
    before, now = peak_growth(plain), peak_growth(measured)
    print(f"peak MB: plain {before:.2f}, measure {now:.2f}: {now / before:.2f}x")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
