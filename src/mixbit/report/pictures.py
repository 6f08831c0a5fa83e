"""Samples as small PNG pictures, where inputs are images."""

import base64
import struct
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Longest side of a picture, in pixels; larger ones are thinned.
LONGEST = 128
#: Smallest side of an image, and how many channels it may have.
SHORTEST, CHANNELS = 4, (1, 3)


def pictures_of(inputs: Tensor, rows: list[int]) -> list[str]:
    """A `data:` address for each of the rows; none where the inputs [N, C, H, W] or [N, H, W, C] are no images.

    Normalisation is undone as far as the samples tell: each channel is stretched from its least value in them all to
    its largest, which is exact where some pixel is black and some is white.
    """
    images = _channels_last(inputs)
    if images is None:
        return []
    images = images.double().nan_to_num(0, 0, 0)
    low, high = images.amin((0, 1, 2)), images.amax((0, 1, 2))
    step = -(-max(images.shape[1:3]) // LONGEST)
    chosen = (images[rows][:, ::step, ::step] - low) / (high - low).clamp(min=1e-12)
    pixels = (255 * chosen).round().to(torch.uint8).numpy()
    return ["data:image/png;base64," + base64.b64encode(png(image)).decode() for image in pixels]


def _channels_last(inputs: Tensor) -> Tensor | None:
    if inputs.ndim != 4 or inputs.is_complex():
        return None
    for images in (inputs.movedim(1, -1), inputs):
        if images.shape[-1] in CHANNELS and min(images.shape[1:3]) >= SHORTEST:
            return images
    return None


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of the pixels [H, W, 1 or 3]: ISO/IEC 15948, each line unfiltered."""
    height, width, channels = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
