"""CIFAR-10 from JPEG images: `train/<class>/*.jpg` and `test/<class>/*.jpg` in a folder or a zip file."""

from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixbit.core import track
from mixbit.core.errors import InvalidInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_images(
    source: Path, split: Literal["train", "test"], limit: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Decode the images of one split: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Without a limit all images come in the order of their names, class by class. With one, that many come as drawn
    without replacement by the seed, in drawn order; a smaller limit gives the beginning of a larger one's images.

    Raises:
        InvalidInput: for a source without images of this split, or a limit that is not in 1..number of images.
    """
    names = _draw(_names(source, split), limit, seed)
    pixels = np.empty((len(names), 32, 32, 3), dtype=np.uint8)
    for i, content in enumerate(track(_contents(source, names), f"decoding {split} images", len(names))):
        pixels[i] = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    labels = torch.tensor([CLASSES.index(name.split("/")[1]) for name in names])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def normalise(images: Tensor) -> Tensor:
    """Turn uint8 pixels [N, 3, H, W] into float32: scaled to 0..1, minus MEAN, divided by STD, channel by channel."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return (images.to(torch.float32) / 255 - mean) / std


def batches(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut into (normalised float32 [size, 3, H, W], labels [size]), the last one perhaps smaller."""
    return [(normalise(part), classes) for part, classes in zip(images.split(size), labels.split(size), strict=True)]


def _names(source: Path, split: str) -> list[str]:
    """Sorted names `split/class/file.jpg` relative to the folder or the root of the zip file."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.glob(f"{split}/*/*.jpg")]
    else:
        names = [name for name in _archive(source).namelist() if name.startswith(f"{split}/") and name.endswith(".jpg")]
    if not names:
        raise InvalidInput(f"{source}: no images at {split}/<class>/*.jpg; give the folder or zip that holds {split}/")
    return sorted(names)


def _draw(names: list[str], limit: int | None, seed: int) -> list[str]:
    if limit is None:
        return names
    if not 1 <= limit <= len(names):
        raise InvalidInput(f"limit {limit}: give a number of images in 1..{len(names)}, or None for all")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return [names[i] for i in order[:limit].tolist()]


def _contents(source: Path, names: list[str]) -> Iterator[bytes]:
    if source.is_dir():
        yield from ((source / name).read_bytes() for name in names)
    else:
        yield from map(_archive(source).read, names)


@cache
def _archive(source: Path) -> ZipFile:
    """Kept open, since it takes a second to open: of some ten thousand names."""
    return ZipFile(source)
