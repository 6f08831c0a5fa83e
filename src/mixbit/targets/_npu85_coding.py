"""How many bytes the weights of a layer take in flash for an Ethos-U85.

They are coded as those of an Ethos-U55, in another order with more zeros between them, or sent as they are, where that
is less: a byte each, half of one where there are at most 16 values, a quarter where there are 4. The order, and which
of two suits a kernel, are those of the encoder in Arm's ethos-u-vela 5.2.0; sizes were compared with its reports.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mixbit.targets._npu_coding import ALIGNMENT, CHANNEL_BYTES, coded_bits, has_zero_runs

#: Output channels of a stream that follow one another, and sides of a part of a kernel.
GROUP, SIDE = 4, 8
#: Weights of a kernel that are sent together where each output channel reads one input channel alone.
DEPTHWISE = 10
#: Bytes before weights that are sent as they are; most values of which two, and four, take a byte.
PLAIN_HEADER, TWO_A_BYTE, FOUR_A_BYTE = 32, 16, 4
#: Channels whose biases and factors are sent together.
CHANNELS = 16


@dataclass(frozen=True)
class Npu:
    """What decides the order of weights.

    Attributes:
        streams: Streams that are coded apart.
        channels: Output channels that are computed together by convolutions and matrices.
        depthwise_channels: The same of depthwise convolutions.
        depthwise_zeros: Further weights of a kernel, all zero, behind DEPTHWISE of them.
    """

    streams: int
    channels: int
    depthwise_channels: int
    depthwise_zeros: int


@dataclass(frozen=True)
class Order:
    """How weights of convolutions and matrices are sent.

    Attributes:
        kernels_first, channels_first: Input channels that are sent together, and weights of a kernel.
        brick: Input channels of an output channel that follow one another.
        least: A kernel pays for so many weights of its last part at least.
    """

    kernels_first: tuple[int, int]
    channels_first: tuple[int, int]
    brick: int
    least: int

    def sends_kernels_first(self, inner: int, size: int) -> bool:
        """Whether that keeps more of the multipliers busy."""
        unit, together = self.kernels_first
        paid = size // together * together + max(size % together, self.least)
        return inner / _up(inner, unit) * size / paid >= inner / _up(inner, self.channels_first[0])


#: Of any weights, and of those that are zero twice in four inputs, half of which the NPU leaves out.
DENSE, SPARSE = Order((16, 5), (64, 1), 8, 2), Order((16, 10), (128, 1), 16, 4)
NPUS = {"ethos-u85-128": Npu(1, 8, 16, 0), "ethos-u85-256": Npu(1, 8, 16, 0), "ethos-u85-512": Npu(2, 16, 16, 2)}


def coded_weight_bytes(kernel: NDArray[np.int8], npu: Npu, *, depthwise: bool, matrix: bool) -> int:
    """Bytes of a layer's integers [out, height, width, in] in flash, without what `channel_bytes` counts.

    Args:
        kernel: Integers of 8 bits or fewer.
        npu: What sends them.
        depthwise: Whether each output channel reads one input channel alone; then `in` is 1.
        matrix: Whether they are those of a matrix, not of a convolution of one position.
    """
    streams = in_streams(kernel, npu, depthwise=depthwise, matrix=matrix).astype(np.int64)
    coded = sum(_up(-(-coded_bits(each, zero_runs=has_zero_runs(each)) // 8), ALIGNMENT) for each in streams)
    if depthwise:
        return coded
    values = len(np.unique(streams))
    a_byte = 4 if values <= FOUR_A_BYTE else 2 if values <= TWO_A_BYTE else 1
    return min(coded, _up(PLAIN_HEADER + -(-streams.size // a_byte), ALIGNMENT))


def channel_bytes(channels: int) -> int:
    """Bytes of biases and factors in flash."""
    return CHANNEL_BYTES * _up(channels, CHANNELS)


def in_streams(kernel: NDArray[np.int8], npu: Npu, *, depthwise: bool, matrix: bool) -> NDArray[np.int8]:
    """[streams] of the integers of [out, height, width, in] in the order in which they are sent, with zeros between.

    The streams take groups of GROUP output channels in turn.
    """
    out, height, width, inner = kernel.shape
    if depthwise:
        (unit, together), channels, brick = (1, DEPTHWISE), npu.depthwise_channels, 1
    else:
        order = SPARSE if _is_sparse(kernel) else DENSE
        kernels_first = not matrix and order.sends_kernels_first(inner, height * width)
        unit, together = order.kernels_first if kernels_first else order.channels_first
        channels, brick = npu.channels, order.brick
    parts = []
    for left, top in product(range(0, width, SIDE), range(0, height, SIDE)):
        part = kernel[:, top : top + SIDE, left : left + SIDE].copy()
        part[:, 1::2] = part[:, 1::2, ::-1]  # every other row from its end
        taps = part.shape[1] * part.shape[2]
        zeros = npu.depthwise_zeros * -(-taps // together) if depthwise else 0
        filled = np.zeros((_up(out, channels), _up(taps, together) + zeros, _up(inner, unit)), kernel.dtype)
        filled[:out, :taps, :inner] = part.reshape(out, taps, inner)
        parts.append(filled.reshape(-1, channels, filled.shape[1], filled.shape[2] // unit, unit // brick, brick))
    # [parts][blocks of input channels, output channels, weights of a kernel, bricks, output channels, input channels]
    sent = [part.transpose(3, 0, 2, 4, 1, 5) for part in parts]
    stream = np.concatenate([each[block].reshape(-1) for block in range(len(sent[0])) for each in sent])
    return stream.reshape(-1, npu.streams, GROUP * brick).swapaxes(0, 1).reshape(npu.streams, -1)


def _is_sparse(kernel: NDArray[np.int8]) -> bool:
    """Whether two of every four inputs are zero, and no integer lacks its opposite."""
    filled = np.zeros((*kernel.shape[:-1], _up(kernel.shape[-1], 4)), kernel.dtype)
    filled[..., : kernel.shape[-1]] = kernel
    zeros = (filled.reshape(-1, 4) == 0).sum(1)
    return bool((zeros >= 2).all() and kernel.min(initial=0) > -128)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
