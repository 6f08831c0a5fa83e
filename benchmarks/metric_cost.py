"""What metrics cost in time, against one plain forward and backward pass over the same samples.

    python -m benchmarks.metric_cost resnet20       # 512 images in batches of 64
    python -m benchmarks.metric_cost minilm         # 128 sentences of 64 tokens in batches of 32; extra `text`

Five weight widths and two input widths; calibration and scales are made before. Fast metrics: medians over rounds that
alternate with the plain pass; `hawq` and `measured` once. `hawq` draws 5 vectors, and its time counts ten times, as 50
would take: each vector is a pass of its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import Batch, Inputs
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.metrics import METRICS, MetricInput
from mixbit.metrics.hawq import hawq
from mixbit.metrics.measure import choose_all_scales
from mixbit.quantization.calibrate import calibrate

SCHEMES = tuple(Scheme.parse(f"w{weight}a{input_}") for weight in (2, 3, 4, 6, 8) for input_ in (4, 8))
FAST, SLOW = ("fisher", "fit", "modelopt", "autoround", "output_error"), ("hawq", "measured")
ROUNDS = 3


def images() -> tuple[nn.Module, list[Batch], Task]:
    """ResNet-20 and 512 training images."""
    pixels, labels = cifar.load_images(paths.require("MIXBIT_CIFAR10"), "train", limit=512, seed=0)
    batches = [(Inputs.of(part), classes) for part, classes in cifar.batches(pixels, labels, 64)]
    return resnet20.load(paths.require("MIXBIT_RESNET20")), batches, Task.classification()


def sentences() -> tuple[nn.Module, list[Batch], Task]:
    """The sentence encoder and 128 sentences; as labels, embeddings that the network does not return."""
    from benchmarks import minilm  # noqa: PLC0415 the extra `text` is for the encoder alone

    texts = minilm.draw(minilm.sentences(paths.require("MIXBIT_TEXT")), 128, seed=0)
    generator = torch.Generator().manual_seed(0)
    batches = [(Inputs.of(one), torch.randn(32, 384, generator=generator)) for one in minilm.batches(texts, 32)]
    return minilm.load(), batches, Task.regression()


def metric_input(network: nn.Module, batches: list[Batch], task: Task) -> MetricInput:
    """What metrics are given, with the calibration and all scales at hand."""
    graph = mb.capture(network, batches[0][0])
    calibration = calibrate(graph, batches)
    choose_all_scales(graph, calibration, SCHEMES)
    return MetricInput(graph, SCHEMES, calibration, batches, task, 0)


def plain(network: nn.Module, batches: list[Batch], task: Task) -> None:
    """One forward and backward pass, gradients of the weights included."""
    for inputs, labels in batches:
        network.zero_grad()
        returned: Tensor = network(*inputs.args, **inputs.kwargs)
        task.loss(returned, labels).backward()


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a ratio for each metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("resnet20", "minilm"))
    network, batches, task = images() if parser.parse_args(arguments).network == "resnet20" else sentences()
    asked = metric_input(network, batches, task)
    plain(network, batches, task)
    for name in (*FAST, *SLOW):
        metric = partial(hawq, asked, vectors=5) if name == "hawq" else partial(METRICS[name], asked)
        pairs = [
            (seconds(lambda: plain(network, batches, task)), seconds(metric))
            for _ in range(ROUNDS if name in FAST else 1)
        ]
        pass_, took = (statistics.median(times) for times in zip(*pairs, strict=True))
        took *= 10 if name == "hawq" else 1
        print(f"{name:14s} {took:8.2f} s, plain pass {pass_:.2f} s: {took / pass_:.2f}x", flush=True)


if __name__ == "__main__":
    main()
