"""A small residual network for Fashion-MNIST, trained here: 0.15 million parameters.

Data: Debian's dataset-fashion-mnist (MIT), 60,000 and 10,000 labelled images of 28x28. The network is trained once by
one thread, seeded, for about two minutes, and its weights are kept in the cache.
"""

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import paths
from benchmarks.networks._network import ACCURACY, SEED, Network, batches, shuffled
from benchmarks.networks._packages import deb, file_in
from mixbit.core import track
from mixbit.core.task import Task

EPOCHS, BATCH, RATE, NUM_CALIBRATION = 2, 128, 6e-3, 512
MEAN, STD = 0.2860, 0.3530


class Residual(nn.Module):
    """Two convolutions, added to what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_unit(width, width), _unit(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to the same shape."""
        return x + self.body(x)


def untrained() -> nn.Sequential:
    """Logits [N, 10] of images [N, 1, 28, 28]."""
    return nn.Sequential(
        _unit(1, 16, 2), _unit(16, 32), Residual(32), _unit(32, 64, 2), Residual(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def images(part: str) -> tuple[Tensor, Tensor]:
    """Normalised images [N, 1, 28, 28] and labels [N] of `train` or `t10k`."""
    folder = deb("dataset-fashion-mnist")
    pixels = np.frombuffer(_unzipped(file_in(folder, f"{part}-images-idx3-ubyte.gz"), 16), dtype=np.uint8)
    labels = np.frombuffer(_unzipped(file_in(folder, f"{part}-labels-idx1-ubyte.gz"), 8), dtype=np.uint8)
    values = (torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32)) / 255 - MEAN) / STD
    return values, torch.from_numpy(labels.astype(np.int64))


def train(inputs: Tensor, labels: Tensor, untrained: Callable[[], nn.Module] = untrained) -> nn.Module:
    """The network after EPOCHS passes of AdamW, half the batches mirrored; the same bits every time."""
    with _alone():
        network = untrained().train()
        steps = len(inputs) // BATCH
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
        order = [torch.randperm(len(inputs))[: steps * BATCH].view(-1, BATCH) for _ in range(EPOCHS)]
        for rows in track(torch.cat(order), "train on Fashion-MNIST"):
            batch = inputs[rows].flip(3) if torch.rand(()) < 0.5 else inputs[rows]
            loss = functional.cross_entropy(network(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def load() -> Network:
    """The network, 512 training images to calibrate on, and the 10,000 test images."""
    return Network("fashion_mnist", *trained("fashion_mnist", untrained), Task.classification(), ACCURACY)


def trained(name: str, untrained: Callable[[], nn.Module]) -> tuple[nn.Module, list[Any], list[Any]]:
    """A network, whose weights the cache keeps under that name, and its data."""
    inputs, labels = images("train")
    weights = paths.cache() / f"{name}.safetensors"
    if not weights.exists():
        safetensors.torch.save_file(train(inputs, labels, untrained).state_dict(), weights)
    network = untrained()
    network.load_state_dict(safetensors.torch.load_file(weights))
    some = shuffled(len(inputs))[:NUM_CALIBRATION]
    return network.eval(), batches(64, inputs[some], labels[some]), batches(500, *images("t10k"))


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _unzipped(path: Path, header: int) -> bytes:
    with gzip.open(path) as file:
        return file.read()[header:]


@contextmanager
def _alone() -> Iterator[None]:
    """One thread and seeded random numbers, which make training repeatable; the caller's come back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)
