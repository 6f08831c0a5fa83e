"""Handwritten digits, 1,797 grey images of 8x8 pixels in ten classes: 1,000 for training, 797 for testing.

The shipped file holds the images in a shuffled order fixed by `benchmarks/make_digits.py`, so that splits and batches
need no randomness. README.md in this folder names the source and the licence.
"""

from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor

NUM_TRAIN = 1000
NUM_CALIBRATION = 512
BATCH_SIZE = 64
MEAN, STD = 0.305, 0.376
"""Of the pixels scaled to 0..1."""


def images_and_labels() -> tuple[Tensor, Tensor]:
    """All pixels, uint8 [1797, 8, 8] in 0..16, and labels, uint8 [1797] in 0..9, as the shipped file holds them."""
    tensors = safetensors.torch.load(files("mixbit.demo").joinpath("digits.safetensors").read_bytes())
    return tensors["images"], tensors["labels"]


def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pixels and labels for training, the first 1,000, and for testing, the other 797."""
    images, labels = images_and_labels()
    return (images[:NUM_TRAIN], labels[:NUM_TRAIN]), (images[NUM_TRAIN:], labels[NUM_TRAIN:])


def normalise(images: Tensor) -> Tensor:
    """Turn pixels [N, 8, 8] in 0..16 into what the network takes: float32 [N, 1, 8, 8], mean 0 and deviation 1."""
    return (images.unsqueeze(1).to(torch.float32) / 16 - MEAN) / STD


def train_batches() -> list[tuple[Tensor, Tensor]]:
    """The 1,000 training images in batches of 64: (float32 [N, 1, 8, 8], int64 [N])."""
    return _batches(*split()[0])


def test_batches() -> list[tuple[Tensor, Tensor]]:
    """The 797 test images in batches of 64: (float32 [N, 1, 8, 8], int64 [N])."""
    return _batches(*split()[1])


def calibration_batches() -> list[tuple[Tensor, Tensor]]:
    """The first 512 training images in eight batches of 64: (float32 [64, 1, 8, 8], int64 [64])."""
    return train_batches()[: NUM_CALIBRATION // BATCH_SIZE]


def _batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    return [(normalise(pixels), classes.to(torch.int64)) for pixels, classes in parts]
