"""How many bytes the weights of a layer take in flash for an Ethos-U55 or U65, which decodes them as it reads them.

Weights are sent in blocks of 8 output and 8 input channels, what is missing filled with zeros, and coded by Golomb-Rice
codes. So their size follows the numbers, not the width: values near 0, or few values, take few bits. The format, and
when codes are changed, are those of the encoder in Arm's ethos-u-vela 5.2.0; sizes were compared with its reports.
"""

import numpy as np
from numpy.typing import NDArray

#: Channels of a block, input channels whose blocks follow one another, and weights of a kernel that are sent together.
BLOCK, BLOCKS, TOGETHER = 8, 32, 4
#: Values that a table may hold; further ones are numbered behind them.
TABLE = 32
#: Signed values next to 0, of those that do not occur, that are not numbered: 0, -1, 1, and so on.
MOST_UNUSED = 31
#: Largest numbers: of a value, and of the part of it that is coded in unary, whole or cut short.
LARGEST, UNARY, SHORT_UNARY = 511, 31, 2
#: Low bits that are sent as they are, of weights and of runs of zeros.
LOW_BITS, LOW_BITS_OF_RUNS = range(6), range(4)
#: Zeros are sent as runs where there are more than so many times as many as of any other value. For an Ethos-U55 the
#: encoder asks that of parts that it chooses itself; of so many weights some less are enough, as it turned out.
ZEROS, FIRST, ZEROS_OF_FIRST = 5, 4096, 4.5
#: Bits that another code has to spare, and those that it takes before its weights, what is left of the last ones too.
SPARED, HEADER = 40, 32
#: Weights for which one code is chosen, and of how many such parts the choice is made at most.
PART, PARTS = 8, 8192
#: Bits that no code may take.
NEVER = 2**20
#: Bytes of the bias, factor and shift of a channel, and those that a stream is a multiple of.
CHANNEL_BYTES, ALIGNMENT = 10, 16


def coded_weight_bytes(kernel: NDArray[np.int8], *, depthwise: bool) -> int:
    """Bytes of a layer's integers [out, height, width, in] in flash, without what `channel_bytes` counts.

    Args:
        kernel: Integers of 8 bits or fewer.
        depthwise: Whether each output channel reads one input channel alone; then `in` is 1.
    """
    stream = in_blocks(kernel, depthwise=depthwise).astype(np.int64)
    bits = coded_bits(stream, zero_runs=has_zero_runs(stream[:FIRST], ZEROS_OF_FIRST))
    return _up(-(-bits // 8), ALIGNMENT)


def channel_bytes(channels: int) -> int:
    """Bytes of biases and factors in flash."""
    return _up(CHANNEL_BYTES * channels, ALIGNMENT)


def in_blocks(kernel: NDArray[np.int8], *, depthwise: bool) -> NDArray[np.int8]:
    """The integers of [out, height, width, in] in the order in which they are sent, with the zeros between them."""
    out, size, inner = len(kernel), kernel.shape[1] * kernel.shape[2], kernel.shape[3]
    by_kernel = not depthwise and _sends_kernels_first(inner, size)
    sent = _up(size, TOGETHER) if by_kernel or depthwise else size
    block = 1 if depthwise else BLOCK
    width = inner if depthwise else _up(inner, BLOCK if by_kernel else BLOCKS)
    filled = np.zeros((_up(out, BLOCK), sent, width), kernel.dtype)
    filled[:out, :size, :inner] = kernel.reshape(out, size, inner)
    blocks = filled.reshape(-1, BLOCK, sent, width // block, block)
    if by_kernel:
        return blocks.transpose(3, 0, 2, 1, 4).reshape(-1)
    step = BLOCKS // BLOCK
    parts = [blocks[:, :, :, start : start + step] for start in range(0, blocks.shape[3], step)]
    return np.concatenate([part.transpose(0, 2, 3, 1, 4).reshape(-1) for part in parts])


def _sends_kernels_first(inner: int, size: int) -> bool:
    """Whether that, or sending 32 input channels first, keeps more of the multipliers busy."""
    kernels_first = inner / _up(inner, BLOCK) * size / _up(size, TOGETHER)
    return inner <= BLOCK or kernels_first >= inner / _up(inner, BLOCKS)


def has_zero_runs(stream: NDArray[np.int64], times: float = ZEROS) -> bool:
    """Whether there are so many times as many zeros as of others, and at least half of them neighbours of others."""
    values, counts = np.unique(stream, return_counts=True)
    zeros, others = counts[values == 0].sum(), counts[values != 0]
    is_zero = np.concatenate([[False], stream == 0, [False]])
    alone = (is_zero[1:-1] & ~is_zero[:-2] & ~is_zero[2:]).sum()
    return bool(zeros > times * others.max(initial=0) and 2 * alone <= zeros)


def coded_bits(stream: NDArray[np.int64], *, zero_runs: bool) -> int:
    """Bits of the integers, with one table for all of them, and a code for each part."""
    runs = 0
    if zero_runs:
        places = np.flatnonzero(stream)
        lengths = np.diff(np.concatenate([[-1], places, [stream.size]])) - 1
        bits = np.array([(lengths >> low) + 1 + low for low in LOW_BITS_OF_RUNS])
        runs = int(bits[bits[:, :-1].sum(1).argmin()].sum())  # the last run comes too late to change the code
        stream = stream[places]
    if not stream.size:
        return HEADER + runs
    # the sign is the lowest bit, so that numbers near 0 are small
    signed = 2 * np.abs(stream) + (stream < 0)
    values, places, counts = np.unique(signed, return_inverse=True, return_counts=True)
    numbers, plain, table = _numbered(values, counts)
    return table + runs + _least_bits(_bits_of_codes(numbers, plain), places)


def _numbered(values: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None, int]:
    """The numbers that stand for values, bits of one that is sent as it is, None where none may be, and of the table.

    A table of the most common values is used where it holds more than half of all weights.
    """
    largest = int(values.max())
    size = min(TABLE, len(values)) if len(values) <= TABLE else min(TABLE, LARGEST - largest)
    common = np.argsort(-counts, kind="stable")[:size]
    numbers = values - min(int(values[0]), MOST_UNUSED)
    if 2 * counts[common].sum() <= counts.sum():
        return numbers, max(2, largest.bit_length()), 0
    numbers = numbers + size
    numbers[common] = np.arange(size)
    plain = max(1, (size - 1).bit_length()) if len(values) <= TABLE else None
    return numbers, plain, size * max(2, largest.bit_length())


def _bits_of_codes(numbers: NDArray[np.int64], plain: int | None) -> NDArray[np.int64]:
    """[codes, numbers] bits of each number: as it is, or its high bits in unary and its low bits as they are."""
    rows = [] if plain is None else [np.full_like(numbers, plain)]
    for low in LOW_BITS:
        unary = numbers >> low
        rows.append(np.where(unary <= UNARY, unary + 1 + low, NEVER))
        rows.append(np.where(unary <= SHORT_UNARY, np.minimum(unary + 1, SHORT_UNARY) + low, NEVER))
    return np.array(rows)


def _least_bits(codes: NDArray[np.int64], places: NDArray[np.int64]) -> int:
    """Bits of the numbers at these places, with the codes that the coder comes to, a part after the other.

    It sums up what each code would have taken from the beginning, or, of one that could not take a number before, from
    there on. It changes the code where another has taken SPARED bits less, or where its own cannot go on.
    """
    starts = np.arange(0, places.size, max(PART, _up(-(-places.size // PARTS), PART)))
    parts = np.array([np.add.reduceat(bits[places], starts) for bits in codes]).T
    taken, since, took = np.zeros(len(codes)), np.zeros(len(codes), int), parts[0] < NEVER
    code, begin, ends = int(parts[0].argmin()), 0, []
    for place, bits in enumerate(parts):
        takes = bits < NEVER
        taken[takes & ~took] = taken[code]
        taken[takes] += bits[takes]
        since[~takes], took = place + 1, takes
        best = int(np.where(takes, taken, np.inf).argmin())
        if takes[code] and taken[best] + SPARED >= taken[code]:
            continue
        if not takes[code] or since[best] > begin:
            ends.append((code, begin, place))
            begin = place
        code = best
    return sum(HEADER + int(parts[start:end, own].sum()) for own, start, end in (*ends, (code, begin, len(parts))))


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
