"""How many bytes the weights of a layer take in flash for an Ethos-U55 or U65, which decodes them as it reads them.

Weights are sent in blocks of 8 output and 8 input channels, what is missing filled with zeros, and coded by Golomb-Rice
codes. So their size follows the numbers, not the width: values near 0, or few values, take few bits.
"""

import numpy as np
from numpy.typing import NDArray

#: Channels of a block, input channels whose blocks follow one another, and weights of a kernel that are sent together.
BLOCK, BLOCKS, TOGETHER = 8, 32, 4
#: Values that a table may hold; further ones are numbered behind them.
TABLE = 32
#: Largest numbers: of a value, and of the part of it that is coded in unary, whole or cut short.
LARGEST, UNARY, SHORT_UNARY = 511, 31, 2
#: Low bits that are sent as they are, of weights and of runs of zeros.
LOW_BITS, LOW_BITS_OF_RUNS = range(6), range(4)
#: Zeros may be sent as runs where there are so many times as many as of any other value.
ZEROS = 4
#: Bits before the weights: their number, their code, and the end of the layer.
HEADER = 40
#: Bytes of the bias, factor and shift of a channel, and those that a stream is a multiple of.
CHANNEL_BYTES, ALIGNMENT = 10, 16


def coded_weight_bytes(kernel: NDArray[np.int8], *, depthwise: bool) -> int:
    """Bytes of a layer's integers [out, height, width, in] in flash, without what `channel_bytes` counts.

    Args:
        kernel: Integers of 8 bits or fewer.
        depthwise: Whether each output channel reads one input channel alone; then `in` is 1.
    """
    stream = in_blocks(kernel, depthwise=depthwise).astype(np.int64)
    bits = coded_bits(stream, zero_runs=False)
    if _has_zero_runs(stream):
        bits = min(bits, coded_bits(stream, zero_runs=True))
    return _up(-(-bits // 8), ALIGNMENT)


def channel_bytes(channels: int) -> int:
    """Bytes of biases and factors in flash."""
    return _up(CHANNEL_BYTES * channels, ALIGNMENT)


def in_blocks(kernel: NDArray[np.int8], *, depthwise: bool) -> NDArray[np.int8]:
    """The integers of [out, height, width, in] in the order in which they are sent, with the zeros between them."""
    out, height, width, inner = kernel.shape
    size = height * width
    by_kernel = not depthwise and _sends_kernels_first(inner, size)
    sent = _up(size, TOGETHER) if by_kernel or depthwise else size
    block = 1 if depthwise else BLOCK
    filled = np.zeros((_up(out, BLOCK), sent, _up(inner, block)), kernel.dtype)
    filled[:out, :size, :inner] = kernel.reshape(out, size, inner)
    blocks = filled.reshape(-1, BLOCK, sent, filled.shape[2] // block, block)
    if by_kernel:
        return blocks.transpose(3, 0, 2, 1, 4).reshape(-1)
    step = BLOCKS // BLOCK
    parts = [blocks[:, :, :, start : start + step] for start in range(0, blocks.shape[3], step)]
    return np.concatenate([part.transpose(0, 2, 3, 1, 4).reshape(-1) for part in parts])


def _sends_kernels_first(inner: int, size: int) -> bool:
    """Whether that, or sending 32 input channels first, keeps more of the multipliers busy."""
    kernels_first = inner / _up(inner, BLOCK) * size / _up(size, TOGETHER)
    return inner <= BLOCK or kernels_first >= inner / _up(inner, BLOCKS)


def _has_zero_runs(stream: NDArray[np.int64]) -> bool:
    """Whether zeros are common enough, and at least half of them neighbours of others."""
    values, counts = np.unique(stream, return_counts=True)
    zeros, others = counts[values == 0].sum(), counts[values != 0]
    is_zero = np.concatenate([[False], stream == 0, [False]])
    alone = (is_zero[1:-1] & ~is_zero[:-2] & ~is_zero[2:]).sum()
    return bool(zeros > ZEROS * others.max(initial=0) and 2 * alone <= zeros)


def coded_bits(stream: NDArray[np.int64], *, zero_runs: bool) -> int:
    """Bits of the integers, with one table and one code for all of them."""
    runs = 0
    if zero_runs:
        places = np.flatnonzero(stream)
        lengths = np.diff(np.concatenate([[-1], places, [stream.size]])) - 1
        runs = min(int(((lengths >> low) + 1 + low).sum()) for low in LOW_BITS_OF_RUNS)
        stream = stream[places]
    if not stream.size:
        return HEADER + runs
    # the sign is the lowest bit, so that numbers near 0 are small
    values, counts = np.unique(2 * np.abs(stream) + (stream < 0), return_counts=True)
    numbers, plain, table = _numbered(values, counts)
    return HEADER + table + runs + _least_bits(numbers, counts, plain)


def _numbered(values: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None, int]:
    """The numbers that stand for values, bits of one that is sent as it is, None where none may be, and of the table.

    A table of the most common values is used where it holds more than half of all weights.
    """
    largest = int(values.max())
    size = min(TABLE, len(values)) if len(values) <= TABLE else min(TABLE, LARGEST - largest)
    common = np.argsort(-counts, kind="stable")[:size]
    numbers = values - values[0]
    if 2 * counts[common].sum() <= counts.sum():
        return numbers, max(2, largest.bit_length()), 0
    numbers = numbers + size
    numbers[common] = np.arange(size)
    plain = max(1, (size - 1).bit_length()) if len(values) <= TABLE else None
    return numbers, plain, size * max(2, largest.bit_length())


def _least_bits(numbers: NDArray[np.int64], counts: NDArray[np.int64], plain: int | None) -> int:
    """Bits of so many of each number by the code that takes fewest: as they are, or high bits in unary, low as is."""
    sizes = [] if plain is None else [plain * int(counts.sum())]
    for low in LOW_BITS:
        unary = numbers >> low
        if unary.max() <= UNARY:
            sizes.append(int(counts @ (unary + 1 + low)))
        if unary.max() <= SHORT_UNARY:
            sizes.append(int(counts @ (np.minimum(unary + 1, SHORT_UNARY) + low)))
    return min(sizes)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
