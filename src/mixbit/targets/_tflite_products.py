"""What each of torch's operators is in TensorFlow Lite: layers, products of tensors, pools."""
# ruff: noqa: PLR0913, PLR0917 the arguments are those of torch's operators

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mixbit.targets._tflite_between import VALID, finished, in_integers, mean_in_integers, pooled_in_integers
from mixbit.targets._tflite_shapes import padded
from mixbit.targets._tflite_table import (
    OPERATORS,
    Result,
    each,
    elementwise,
    moved,
    number,
    permuted,
    reshaped,
    writes,
)
from mixbit.targets._tflite_values import Order, Value, channels_last, logical, parameters
from mixbit.targets._tflite_weights import weight_integers
from mixbit.targets._tflite_writer import Writer

_aten = torch.ops.aten
#: How the schema numbers paddings.
SAME = 0
#: Orders of a kernel's dimensions: output channels, inputs, height, width.
_OHWI, _HWO = (0, 2, 3, 1), (1, 2, 3, 0)


def _product(
    w: Writer, out: Result, kind: str, x: Value, orders: tuple[Order, Order], weight: Value, bias: Value | None,
    **options: Any,
) -> Value:  # fmt: skip
    """A layer's operator, which reads x and its weight in these orders; in int8 where all three tensors can be.

    It returns a tensor in the order of x.
    """
    order, of_weight = orders
    channels: Any = out.shape[1] if kind != "FULLY_CONNECTED" else out.shape[-1]
    integers = weight_integers(w, weight, of_weight, of_weight.index(0)) if in_integers(out, x) else None
    if integers is None or x.factors is None or weight.weight is None:
        read = [w.read(x, order), w.read(weight, of_weight), _bias_in_float(w, bias, channels)]
        return w.made(kind, read, out.shape, out.dtype, order, fusedActivationFunction=0, **options)
    scale = weight.weight.scale.astype(np.float64) * x.factors.scale
    read = [w.read(x, order, in_int8=True), integers, _bias_in_steps(w, bias, scale, channels)]
    return finished(w, out, kind, read, order, fusedActivationFunction=out.activation, **options)


def _bias_in_float(w: Writer, bias: Value | None, channels: int) -> int:
    """The bias, zeros where there is none: the runtime opens no CONV_2D in float without one."""
    if bias is not None and not bias.is_constant:
        return w.read(bias)
    numbers = np.float32(0) if bias is None else bias.array
    return w.constant(np.array(np.broadcast_to(numbers, (channels,))))


def _bias_in_steps(w: Writer, bias: Value | None, scale: Any, channels: int) -> int:
    """The bias in int32, in whole multiples of input scale x weight scale."""
    numbers = np.zeros(channels) if bias is None else np.broadcast_to(bias.array, (channels,)).astype(np.float64)
    steps = np.rint(numbers / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
    return w.tensor((channels,), "INT32", data=steps, quantization=parameters(scale, np.zeros(scale.shape)))


@writes(_aten.linear.default)
def _linear(w: Writer, out: Result, x: Value, weight: Value, bias: Value | None = None) -> Value | None:
    if weight.rank != 2:
        return None
    orders = logical(x.rank), (0, 1)
    return _product(w, out, "FULLY_CONNECTED", x, orders, weight, bias, keepNumDims=True)


@writes(_aten.matmul.default, _aten.mm.default, _aten.bmm.default)
def _matmul(w: Writer, out: Result, x: Value, y: Value) -> Value:
    if y.layer and y.rank == 2:
        return _linear(w, out, x, permuted(y, (1, 0)))
    if y.rank == 1:
        columns = reshaped(w, y, (*y.shape, 1))
        shape = (*out.shape, 1)
        return reshaped(w, _matmul(w, Result(shape, out.dtype), x, columns), out.shape)
    if x.rank == 1:
        shape = (*out.shape[:-1], 1, out.shape[-1])
        return reshaped(w, _matmul(w, Result(shape, out.dtype), reshaped(w, x, (1, *x.shape)), y), out.shape)
    read = [w.read(each, logical(each.rank)) for each in (x, y)]
    return w.made("BATCH_MATMUL", read, out.shape, out.dtype, adjX=False, adjY=False)


@writes(_aten.addmm.default)
def _addmm(w: Writer, out: Result, added: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value | None:
    if (alpha, beta) != (1, 1):
        return None
    if y.layer and added.is_constant and added.rank <= 1:
        return _linear(w, out, x, permuted(y, (1, 0)), added)
    product = _matmul(w, Result(out.shape, out.dtype), x, y)
    return elementwise(w, "ADD", out.dtype, product, added)


@writes(_aten.baddbmm.default)
def _baddbmm(w: Writer, out: Result, added: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value:
    product = _matmul(w, Result(out.shape, out.dtype), x, y)
    product = product if alpha == 1 else elementwise(w, "MUL", out.dtype, product, float(alpha))
    added = added if beta == 1 else elementwise(w, "MUL", out.dtype, added, float(beta))
    return elementwise(w, "ADD", out.dtype, product, added)


@writes(_aten.scaled_dot_product_attention.default)
def _attention(
    w: Writer, out: Result, query: Value, key: Value, value: Value, mask: Any = None, dropout: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Value | None:  # fmt: skip
    size, rank = query.shape[-1], query.rank
    if dropout or not isinstance(size, int) or (enable_gqa and query.shape[-3] != key.shape[-3]):
        return None
    scaled = elementwise(w, "MUL", out.dtype, query, 1 / math.sqrt(size) if scale is None else scale)
    turned = permuted(key, (*range(rank - 2), rank - 1, rank - 2))
    shape = (*out.shape[:-1], key.shape[-2])
    scores, lowest = _matmul(w, Result(shape, out.dtype), scaled, turned), float(torch.finfo(out.dtype).min)
    if is_causal:
        sizes = query.shape[-2], key.shape[-2]
        if not all(isinstance(each, int) for each in sizes):
            return None
        ahead = torch.full([int(each) for each in sizes], lowest).triu(1).numpy()
        mask = Value(ahead.shape, out.dtype, (0, 1), array=ahead)
    elif mask is not None and mask.dtype == torch.bool:
        mask = elementwise(w, "SELECT_V2", out.dtype, mask, number(0, out.dtype), number(lowest, out.dtype))
    scores = scores if mask is None else elementwise(w, "ADD", out.dtype, scores, mask)
    shares = w.made("SOFTMAX", [w.read(scores, logical(rank))], shape, out.dtype, beta=1.0)
    return _matmul(w, Result(out.shape, out.dtype), shares, value)


@writes(_aten.embedding.default)
def _embedding(w: Writer, out: Result, weight: Value, indices: Value, *_: Any) -> Value:
    table, places = w.read(weight, (0, 1)), w.read(indices, logical(indices.rank))
    return w.made("GATHER", [table, places], out.shape, out.dtype, axis=0, batchDims=0)


# convolutions


def _windows(
    x: Value, out: Result, kernel: list[int], stride: list[int], padding: list[tuple[int, int]], dilation: list[int]
) -> int | None:
    """SAME or VALID where that is this padding; None where it is neither."""
    if not any(map(any, padding)):
        return VALID
    for place, (size, made) in enumerate(zip(x.shape[2:], out.shape[2:], strict=True)):
        if not isinstance(size, int) or not isinstance(made, int):
            return None
        total = max(
            (math.ceil(size / stride[place]) - 1) * stride[place] + dilation[place] * (kernel[place] - 1) + 1 - size, 0
        )
        if made != math.ceil(size / stride[place]) or padding[place][0] != total // 2 or sum(padding[place]) < total:
            return None
    return SAME


def _padding(padding: Any, kernel: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    """Before and behind each dimension."""
    count = len(kernel)
    if not isinstance(padding, str):
        return [(size, size) for size in each(padding, count)]
    whole = [own * (size - 1) if padding == "same" else 0 for own, size in zip(dilation, kernel, strict=True)]
    return [(size // 2, size - size // 2) for size in whole]


@writes(_aten.conv2d.default, _aten.conv2d.padding)
def _convolution(
    w: Writer, out: Result, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value | None:  # fmt: skip
    if x.rank != 4 or not (weight.layer or weight.is_constant):
        return None
    kernel, strides, dilations = [int(size) for size in weight.shape[2:]], each(stride, 2), each(dilation, 2)
    pads = _padding(padding, kernel, dilations)
    same = _windows(x, out, kernel, strides, pads, dilations)
    if same is None:
        x, same = padded(w, x, [(0, 0), (0, 0), *pads]), VALID
    options: dict[str, Any] = {
        "padding": same, "strideH": strides[0], "strideW": strides[1], "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }  # fmt: skip
    kind, order = "CONV_2D", _OHWI
    if groups > 1 and groups == x.shape[1]:
        kind, order, options["depthMultiplier"] = "DEPTHWISE_CONV_2D", _HWO, int(weight.shape[0]) // groups
    return _product(w, out, kind, x, (channels_last(4), order), weight, bias, **options)


@writes(_aten.conv1d.default, _aten.conv1d.padding)
def _convolution_of_lines(
    w: Writer, out: Result, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value | None:  # fmt: skip
    """A convolution of images of height 1."""
    if x.rank != 3 or not (weight.layer or weight.is_constant):
        return None
    flat = replace(out, shape=(*out.shape[:2], 1, out.shape[2]))
    pads = padding if isinstance(padding, str) else [0, *each(padding, 1)]
    both = [[1, *each(given, 1)] for given in (stride, dilation)]
    images = Value((*x.shape[:2], 1, x.shape[2]), x.dtype, channels_last(4), x.factors)
    source, in_int8 = channels_last(3), x.factors is not None
    index = images.tensors[images.order, in_int8] = w.empty(images, images.order, in_int8)
    w.operator("RESHAPE", [w.read(x, source, in_int8=in_int8), w.sizes(images.stored(images.order), x)], [index])
    made = _convolution(w, flat, images, weight.as_images(), bias, both[0], pads, both[1], groups)
    if made is None:
        return None
    out.spared = flat.spared
    tensor = w.read(made, in_int8=made.factors is not None)
    shape = w.sizes([out.shape[axis] for axis in source], made)
    return w.made("RESHAPE", [tensor, shape], out.shape, out.dtype, source, made.factors)


@writes(_aten.conv_transpose2d.input)
def _transposed_convolution(
    w: Writer, out: Result, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value | None:  # fmt: skip
    """TRANSPOSE_CONV without padding, whose result is cut; with output padding it is that much larger."""
    strides, pads, more = each(stride, 2), each(padding, 2), each(output_padding, 2)
    known = all(isinstance(size, int) for size in (*x.shape[1:], *out.shape[1:]))
    if x.rank != 4 or groups != 1 or each(dilation, 2) != [1, 1] or not known:
        return None
    kernel, own = [int(size) for size in weight.shape[2:]], channels_last(4)
    whole = [(int(size) - 1) * step + own for size, step, own in zip(x.shape[2:], strides, kernel, strict=True)]
    reached = [max(size, int(made) + pad) for size, made, pad in zip(whole, out.shape[2:], pads, strict=True)]
    if any(size - made >= step for size, made, step in zip(reached, whole, strides, strict=True)):
        return None
    del more  # the sizes of the result say it
    shape = (*out.shape[:2], *reached)
    sizes = w.whole_sizes([shape[axis] for axis in own], x)
    read = [sizes, w.read(weight, (1, 2, 3, 0)), w.read(x, own), _bias_in_float(w, bias, int(shape[1]))]
    made = w.made(
        "TRANSPOSE_CONV", read, shape, out.dtype, own, padding=VALID, strideH=strides[0], strideW=strides[1],
        fusedActivationFunction=0,
    )  # fmt: skip
    if shape == out.shape:
        return made
    begins, counts = [0, *pads, 0], [-1, *(int(size) for size in out.shape[2:]), -1]
    return moved(w, "SLICE", made, [w.vector(begins), w.vector(counts)], out.shape)


@writes(_aten.conv_transpose1d.default)
def _transposed_convolution_of_lines(
    w: Writer, out: Result, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value | None:  # fmt: skip
    """One of images of height 1."""
    if x.rank != 3:
        return None
    images = reshaped(w, x, (*x.shape[:2], 1, x.shape[2]))
    flat = Result((*out.shape[:2], 1, out.shape[2]), out.dtype)
    wide = [[least, *each(given, 1)] for least, given in ((1, stride), (0, padding), (0, output_padding))]
    made = _transposed_convolution(w, flat, images, weight.as_images(), bias, *wide, groups, [1, *each(dilation, 1)])
    return None if made is None else reshaped(w, made, out.shape)


@writes(_aten.convolution.default)
def _any_convolution(
    w: Writer, out: Result, x: Value, weight: Value, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value | None:  # fmt: skip
    if transposed:
        return _transposed_convolution(w, out, x, weight, bias, stride, padding, output_padding, groups, dilation)
    write = {3: _convolution_of_lines, 4: _convolution}.get(x.rank)
    return None if write is None else write(w, out, x, weight, bias, stride, padding, dilation, groups)


# pools


def _pooled(
    w: Writer, kind: str, x: Value, out: Result, kernel: list[int], stride: list[int], padding: int
) -> Value:  # fmt: skip
    options: dict[str, Any] = {
        "padding": padding, "filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0],
        "strideW": stride[1], "fusedActivationFunction": 0,
    }  # fmt: skip
    own = channels_last(4)
    if kind == "MAX_POOL_2D":
        return moved(w, kind, x, [], out.shape, own, **options)
    return w.made(kind, [w.read(x, own)], out.shape, out.dtype, own, **options)


def _behind(size: int, made: int, kernel: int, stride: int, padding: int) -> int:
    """What must stand behind a dimension so that windows without padding give so many."""
    return max((made - 1) * stride + kernel - size - padding, 0)


def _max_pool(
    w: Writer, out: Result, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value | None:  # fmt: skip
    """Padding stands for no number: the lowest that there is, in int8 too."""
    kernel, pads = each(kernel, 2), each(padding, 2)
    strides = each(stride, 2) if stride else kernel
    sizes = [*x.shape[2:], *out.shape[2:]]
    if x.rank != 4 or each(dilation, 2) != [1, 1] or not all(isinstance(size, int) for size in sizes):
        return None
    del ceil_mode  # the sizes of the result say it
    around = [
        (pad, _behind(int(size), int(made), own, step, pad))
        for size, made, own, step, pad in zip(x.shape[2:], out.shape[2:], kernel, strides, pads, strict=True)
    ]
    same = _windows(x, out, kernel, strides, around, [1, 1])
    if same is None:
        x, same = _around(w, x, around), VALID
    return _pooled(w, "MAX_POOL_2D", x, out, kernel, strides, same)


def _around(w: Writer, x: Value, pads: list[tuple[int, int]]) -> Value:
    """Images with the lowest number of their type around them."""
    own = channels_last(4)
    around = w.constant(np.array([(0, 0), *pads, (0, 0)], np.int32))
    shape = (*x.shape[:2], *(int(size) + sum(pad) for size, pad in zip(x.shape[2:], pads, strict=True)))
    in_float = np.array(np.finfo(np.float32).min, np.float32)
    lowest = w.constant(in_float) if x.factors is None else w.integer(-128, x)
    return w.made(
        "PADV2", [w.read(x, own, in_int8=x.factors is not None), around, lowest], shape, x.dtype, own, x.factors
    )


def _avg_pool(
    w: Writer, out: Result, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    counted: bool = True, divisor: int | None = None,
) -> Value | None:  # fmt: skip
    """The mean of windows without padding, times the share that torch gives to them where that is not all."""
    kernel, pads = each(kernel, 2), each(padding, 2)
    strides = each(stride, 2) if stride else kernel
    sizes = [*x.shape[2:], *out.shape[2:]]
    if x.rank != 4 or not all(isinstance(size, int) for size in sizes):
        return None
    around = [
        (pad, _behind(int(size), int(made), own, step, pad))
        for size, made, own, step, pad in zip(x.shape[2:], out.shape[2:], kernel, strides, pads, strict=True)
    ]
    wide = padded(w, x, [(0, 0), (0, 0), *around]) if any(map(any, around)) else x
    shares = _shares(x, kernel, strides, pads, around, (ceil_mode, counted, divisor))
    if w.requantizes and in_integers(out, x) and isinstance(x.shape[1], int) and np.all(shares == shares.flat[0]):
        return pooled_in_integers(w, out, wide, kernel, strides, float(shares.flat[0]))
    mean = _pooled(w, "AVERAGE_POOL_2D", wide, out, kernel, strides, VALID)
    if np.all(shares == 1):
        return mean
    return elementwise(w, "MUL", out.dtype, mean, Value(shares.shape, out.dtype, logical(4), array=shares))


def _shares(
    x: Value, kernel: list[int], strides: list[int], pads: list[int], around: list[tuple[int, int]], options: Any
) -> Any:
    """[1, 1, height, width]: what torch's pool makes of ones, of what the mean of windows of the padded image does."""
    ones = torch.ones(1, 1, *(int(size) for size in x.shape[2:]), dtype=torch.float64)
    given = torch.nn.functional.avg_pool2d(ones, kernel, strides, pads, *options)
    filled = torch.nn.functional.pad(ones, [*around[1], *around[0]])
    own = torch.nn.functional.avg_pool2d(filled, kernel, strides)[..., : given.shape[2], : given.shape[3]]
    return (given / own.clamp(min=1e-30)).float().numpy()


def _of_lines(
    pool: Any, w: Writer, out: Result, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any
) -> Value | None:
    """A pool over one dimension, as one over images of height 1."""
    if x.rank not in (2, 3):
        return None
    front = (*x.shape[:1], 1) if x.rank == 2 else x.shape[:2]
    images = reshaped(w, x, (*front, 1, x.shape[-1]))
    flat = replace(out, shape=(*front, 1, out.shape[-1]))
    wide = [
        [least, *each(given, 1)] if given != () else () for least, given in ((1, kernel), (1, stride), (0, padding))
    ]
    rest = tuple(
        [1, *each(given, 1)] if place == 0 and pool is _max_pool else given for place, given in enumerate(rest)
    )
    made = pool(w, flat, images, *wide, *rest)
    out.spared = flat.spared
    return None if made is None else reshaped(w, made, out.shape)


OPERATORS[_aten.max_pool2d.default], OPERATORS[_aten.avg_pool2d.default] = _max_pool, _avg_pool
OPERATORS[_aten.max_pool1d.default] = partial(_of_lines, _max_pool)
OPERATORS[_aten.avg_pool1d.default] = partial(_of_lines, _avg_pool)


def _adaptive_pool(count: int, mean: bool, w: Writer, out: Result, x: Value, _: Any) -> Value | None:
    """Windows of one size, where it divides."""
    own, wanted = x.shape[-count:], out.shape[-count:]
    if list(wanted) == [1] * count:
        if mean and w.requantizes and in_integers(out, x):
            return mean_in_integers(w, out, x, range(-count, 0), True)
        places = [x.order.index(axis) for axis in range(x.rank - count, x.rank)]
        read = [w.read(x, in_int8=not mean and x.factors is not None), w.vector(places)]
        kind, factors = ("MEAN", None) if mean else ("REDUCE_MAX", x.factors)
        return w.made(kind, read, out.shape, out.dtype, x.order, factors, keepDims=True)
    pairs = list(zip(own, wanted, strict=True))
    if count != 2 or not all(
        isinstance(size, int) and isinstance(made, int) and size % made == 0 for size, made in pairs
    ):
        return None
    kernel = [int(size) // int(made) for size, made in pairs]
    if mean and w.requantizes and in_integers(out, x) and isinstance(x.shape[1], int):
        return pooled_in_integers(w, out, x, kernel, kernel)
    return _pooled(w, "AVERAGE_POOL_2D" if mean else "MAX_POOL_2D", x, out, kernel, kernel, VALID)


for _number in (1, 2):
    OPERATORS[getattr(_aten, f"adaptive_avg_pool{_number}d").default] = partial(_adaptive_pool, _number, True)
    OPERATORS[getattr(_aten, f"adaptive_max_pool{_number}d").default] = lambda w, out, x, size, count=_number: (
        _adaptive_pool(count, False, w, out.parts[0], x, size),
        None,
    )
