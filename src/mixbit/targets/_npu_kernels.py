"""The kernels that Vela makes of a layer's weight for an Ethos-U, each coded by itself, with channels of its own.

Groups become convolutions of their own; where a group reads one channel, those are depthwise convolutions, as many as a
group has outputs. An NPU leaves out at most every second number between taps; where they lie further apart, there are
zeros between them. So it is in Arm's ethos-u-vela 5.2.0; sizes were compared with its reports.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How far apart taps may lie without zeros between them.
MOST_DILATION = 2


def is_depthwise(layer: Any, operation: Any) -> bool:
    """Whether each output channel reads one input channel alone."""
    return operation.groups > 1 and layer.shape[1] == 1


def num_kernels(layer: Any, operation: Any) -> int:
    """How many kernels the operator becomes, all with as many output channels."""
    return layer.shape[layer.axis] // operation.groups if is_depthwise(layer, operation) else operation.groups


def kernels(layer: Any, operation: Any, integers: NDArray[Any]) -> list[NDArray[Any]]:
    """The integers of a weight in its own order as kernels [out, height, width, in]."""
    whole = np.moveaxis(np.moveaxis(integers, layer.axis, 0), 1, -1)
    out, *sides, inner = whole.shape
    whole = _dilated(whole, operation.dilation) if max(operation.dilation, default=1) > MOST_DILATION else whole
    sides = list(whole.shape[1:-1])
    whole = whole.reshape(out, math.prod(sides[:-1]), sides[-1] if sides else 1, inner)
    count = num_kernels(layer, operation)
    if is_depthwise(layer, operation):
        return [whole[place::count] for place in range(count)]
    return np.split(whole, count)


def _dilated(kernel: NDArray[Any], dilation: tuple[int, ...]) -> NDArray[Any]:
    """[out, *sides, in] with zeros between taps that lie further apart; half as many where that is a multiple of 2."""
    apart = [each // (1 if each % 2 else 2) for each in dilation]
    sides = [(size - 1) * each + 1 for size, each in zip(kernel.shape[1:-1], apart, strict=True)]
    wide = np.zeros((len(kernel), *sides, kernel.shape[-1]), kernel.dtype)
    wide[:, *(slice(None, None, each) for each in apart)] = kernel
    return wide
