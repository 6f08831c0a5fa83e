"""What operators between layers are in TensorFlow Lite where they read int8 and return it, as the simulation rounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixbit.targets._tflite_table import Result, left_of, moved, read_together
from mixbit.targets._tflite_values import Factors, Order, Value, channels_last, parameters
from mixbit.targets._tflite_writer import Writer

#: How the schema numbers the padding that is none.
VALID = 1
#: How it numbers functions that operators can apply to what they return.
FUSED = {"RELU": 1, "RELU6": 3}


def in_integers(out: Result, *read: Any) -> bool:
    """Whether all that an operator reads is quantized, and what it returns too."""
    return out.factors is not None and all(isinstance(each, Value) and each.factors is not None for each in read)


def finished(w: Writer, out: Result, kind: str, read: Sequence[int], order: Order, **options: Any) -> Value:
    """What an operator returns in int8, clipped as it is read."""
    out.spared = True
    made = w.made(kind, read, out.shape, out.dtype, order, out.factors, **options)
    if out.ends is None or options.get("fusedActivationFunction"):
        return made
    for clip, end in zip(("MAXIMUM", "MINIMUM"), out.ends, strict=True):
        made = moved(w, clip, made, [w.integer(end, made)], made.shape)
    return made


def requantized(w: Writer, x: Value, factors: Factors | None) -> Value:
    """The integers of x with other factors: times one, which XNNPACK rounds as the simulation does.

    Its QUANTIZE of int8 multiplies by a number of 8 bits and differs in one of 27 integers (2.3.0).
    """
    if x.factors == factors:
        return x
    return w.made("MUL", _times_one(w, x), x.shape, x.dtype, x.order, factors, fusedActivationFunction=0)


def clipped_in_integers(w: Writer, out: Result, x: Value, kind: str) -> Value:
    """The same of one of FUSED, which no operator before it does."""
    return finished(w, out, "MUL", _times_one(w, x), x.order, fusedActivationFunction=FUSED[kind])


def _times_one(w: Writer, x: Value) -> list[int]:
    return [w.read(x, in_int8=True), _integers(w, np.ones((), np.int8), 1)]


def _integers(w: Writer, array: Any, scale: float) -> int:
    """A constant in int8."""
    return w.tensor(array.shape, "INT8", data=array, quantization=parameters([scale], [0]))


def sum_in_integers(w: Writer, out: Result, x: Value, y: Value) -> Value:
    """ADD: XNNPACK's factors have 21 bits, so that about one of 10^5 sums, next to a tie, rounds to its other side."""
    read, order = read_together(w, (x, y), out.rank, in_int8=True)
    return finished(w, out, "ADD", read, order, fusedActivationFunction=out.activation)


def joined_in_integers(w: Writer, out: Result, parts: Sequence[Value], order: Order, axis: int) -> Value:
    """CONCATENATION of parts that have the factors of the result."""
    read = [w.read(requantized(w, part, out.factors), order, in_int8=True) for part in parts]
    return finished(w, out, "CONCATENATION", read, order, axis=axis, fusedActivationFunction=0)


def mean_in_integers(w: Writer, out: Result, x: Value, dims: Any, keepdim: bool) -> Value:
    """MEAN over these dimensions, or all; XNNPACK rounds it as the simulation does."""
    places, _, order = left_of(x, dims, keepdim)
    return finished(w, out, "MEAN", [w.read(x, in_int8=True), w.vector(places)], order, keepDims=keepdim)


def pooled_in_integers(
    w: Writer, out: Result, x: Value, kernel: list[int], strides: list[int], share: float = 1
) -> Value:
    """The mean of windows times a share: MEAN of one window, else a depthwise convolution with ones.

    AVERAGE_POOL_2D in int8 must return the factors that it reads, and rounds halves away from zero (2.3.0).
    """
    if list(x.shape[2:]) == kernel and share == 1:
        return mean_in_integers(w, out, x, (2, 3), True)
    channels, step = int(x.shape[1]), share / (kernel[0] * kernel[1])
    ones = _integers(w, np.ones((1, *kernel, channels), np.int8), step)
    scale = 0 if x.factors is None else step * x.factors.scale
    bias = parameters([scale], [0])  # XNNPACK takes no depthwise convolution without factors here
    zeros = w.tensor((channels,), "INT32", data=np.zeros(channels, np.int32), quantization=bias)
    order = channels_last(4)
    return finished(
        w, out, "DEPTHWISE_CONV_2D", [w.read(x, order, in_int8=True), ones, zeros], order, padding=VALID,
        strideH=strides[0], strideW=strides[1], dilationHFactor=1, dilationWFactor=1, depthMultiplier=1,
        fusedActivationFunction=out.activation,
    )  # fmt: skip
