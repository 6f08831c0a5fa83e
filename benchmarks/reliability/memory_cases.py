"""What `memory` measures: run one case on so many batches, and print its peak in MB and its seconds as JSON.

python -m benchmarks.reliability.memory_cases measure 30
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import mixbit as mb
from mixbit.pipeline.settings import Settings
from mixbit.quantization import calibrate, uniform_plan

BATCH_SIZE, SIZE, CLASSES = 64, 12, 10
#: Tokens of a sequence, and how many there are: a batch of logits takes a megabyte.
TOKENS, VOCABULARY = 8, 512


def images(count: int, seed: int) -> Iterator[Any]:
    """Batches of images with labels, from a generator."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(BATCH_SIZE, 3, SIZE, SIZE, generator=generator)
        yield x, torch.randint(0, CLASSES, (BATCH_SIZE,), generator=generator)


def sequences(count: int, seed: int) -> Iterator[Any]:
    """Batches of tokens, which are their own labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(0, VOCABULARY, (BATCH_SIZE, TOKENS), generator=generator)
        yield tokens, tokens


def convolutions() -> Any:
    """A small network of convolutions."""
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16 * 9, CLASSES)).eval()


def measure(count: int, _: Path) -> None:
    """Calibrate, and measure what choices cost."""
    graph = mb.capture(convolutions(), next(images(1, 0))[:1])
    mb.measure(graph, images(count, 0), target="packed")


def quantize(count: int, folder: Path, rounding: str = "nearest") -> None:
    """The whole loop, evaluated on as many batches."""
    budget, settings = mb.Budget(mean_bits=4), Settings(rounding=rounding)
    model, evaluation = convolutions(), images(count, 1)
    mb.auto_quantize(
        model,
        images(count, 0),
        target="packed",
        budget=budget,
        out=folder / "out",
        eval_batches=evaluation,
        settings=settings,
    )


def brecq(count: int, folder: Path) -> None:
    """The same, with roundings learned block by block."""
    quantize(count, folder, "brecq:iterations=20")


def language(count: int, folder: Path) -> None:
    """Quantize, export and verify a language model, whose outputs are larger than the data."""
    model = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, VOCABULARY))
    graph = mb.capture(model.eval(), next(sequences(1, 0))[:1])
    plan = uniform_plan(graph, "w8a8", target="packed")
    simulated = mb.quantize(graph, plan, calibrate(graph, sequences(30, 0)))
    mb.export(simulated, folder / "out")
    mb.verify(folder / "out", graph, simulated, sequences(count, 1), task=mb.Task.language())


CASES: dict[str, Callable[[int, Path], None]] = {
    "measure": measure,
    "quantize": quantize,
    "brecq": brecq,
    "language": language,
}


def main(case: str, count: int) -> None:
    """Run a case, and print its peak and seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        CASES[case](count, Path(folder))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([peak_mb, time.perf_counter() - began]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
