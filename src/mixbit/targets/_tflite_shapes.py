"""What each of torch's operators is in TensorFlow Lite: those that move numbers, or pick among them.

They return in int8 what they read in int8, with the same factors.
"""
# ruff: noqa: PLR0917 the arguments are those of torch's operators

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mixbit.targets._tflite_between import in_integers, joined_in_integers
from mixbit.targets._tflite_table import (
    OPERATORS,
    Result,
    axis_of,
    broadcast,
    cast,
    elementwise,
    extended,
    moved,
    number,
    permuted,
    reshaped,
    writes,
)
from mixbit.targets._tflite_values import Extent, Value, channels_last, logical
from mixbit.targets._tflite_writer import Writer

_aten = torch.ops.aten


@writes(
    _aten.reshape.default, _aten.view.default, _aten._unsafe_view.default, _aten.flatten.using_ints,
    _aten.unflatten.int, _aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims,
)  # fmt: skip
def _reshape(w: Writer, out: Result, x: Value, *_: Any) -> Value:
    """Dimensions that are joined or split must lie in order; where only sizes of 1 come or go the order stays."""
    own, wanted = ([size for size in shape if size != 1] for shape in (x.shape, out.shape))
    if own != wanted or x.order == logical(x.rank):
        return reshaped(w, x, out.shape)
    long = [axis for axis in x.order if x.shape[axis] != 1]
    places = [axis for axis, size in enumerate(out.shape) if size != 1]
    numbers = [places[sorted(long).index(axis)] for axis in long]
    order = (*(axis for axis, size in enumerate(out.shape) if size == 1), *numbers)
    tensor = w.read(x, in_int8=x.factors is not None)
    vector = w.sizes([out.shape[axis] for axis in order], x)
    return w.made("RESHAPE", [tensor, vector], out.shape, x.dtype, order, x.factors)


@writes(_aten.permute.default)
def _permute(_w: Writer, _: Result, x: Value, dims: Sequence[int]) -> Value:
    return permuted(x, [axis_of(x, dim) for dim in dims])


@writes(_aten.transpose.int)
def _transpose(_w: Writer, _: Result, x: Value, one: int, other: int) -> Value:
    dims = [*range(x.rank)]
    if dims:
        one, other = axis_of(x, one), axis_of(x, other)
        dims[one], dims[other] = other, one
    return permuted(x, dims)


@writes(_aten.t.default, _aten.numpy_T.default)
def _turned(_w: Writer, _: Result, x: Value) -> Value:
    return permuted(x, [*reversed(range(x.rank))])


@writes(_aten.expand.default, _aten.expand_as.default)
def _expand(w: Writer, out: Result, x: Value, _: Any) -> Value:
    if out.shape == x.shape:
        return x
    x = extended(w, x, out.rank)
    return moved(w, "BROADCAST_TO", x, [_shape(w, x, out.shape)], out.shape, logical(out.rank))


def _shape(w: Writer, x: Value, shape: Sequence[Extent]) -> int:
    """The vector of all sizes, none left to the operator."""
    return w.whole_sizes(shape, x)


@writes(_aten.repeat.default)
def _repeat(w: Writer, out: Result, x: Value, times: Sequence[Any]) -> Value:
    x = extended(w, x, len(times))
    counts = w.whole_sizes([each if isinstance(each, int) else str(each.node.expr) for each in times], x)
    return moved(w, "TILE", x, [counts], out.shape, logical(x.rank))


def sliced(w: Writer, x: Value, axis: int, start: int, count: Extent) -> Value:
    """So many of one dimension from `start` on; all the rest where the count is of any size."""
    shape = [count if place == axis else size for place, size in enumerate(x.shape)]
    begins = [start if place == axis else 0 for place in x.order]
    known = isinstance(count, int)
    counts = [count if place == axis and known else -1 for place in x.order]
    return moved(w, "SLICE", x, [w.vector(begins), w.vector([int(each) for each in counts])], shape)


@writes(_aten.slice.Tensor)
def _slice(
    w: Writer, out: Result, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value | None:
    axis = axis_of(x, dim)
    if out.shape == x.shape and step == 1:
        return x
    size, start, end = x.shape[axis], 0 if start is None else start, 2**63 if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    if not isinstance(size, int):
        return sliced(w, x, axis, start, out.shape[axis]) if start >= 0 and end >= 2**31 and step == 1 else None
    start = max(start + size, 0) if start < 0 else start
    if step == 1:
        return sliced(w, x, axis, start, out.shape[axis])
    ends = [min(end + size if end < 0 else end, size) if place == axis else 0 for place in x.order]
    begins, steps = ([value if place == axis else rest for place in x.order] for value, rest in ((start, 0), (step, 1)))
    whole = sum(1 << place for place, own in enumerate(x.order) if own != axis)
    vectors = [w.vector(each) for each in (begins, ends, steps)]
    return moved(
        w, "STRIDED_SLICE", x, vectors, out.shape, beginMask=whole, endMask=whole, ellipsisMask=0, newAxisMask=0,
        shrinkAxisMask=0,
    )  # fmt: skip


@writes(_aten.select.int)
def _select(w: Writer, out: Result, x: Value, dim: int, index: Any) -> Value | None:
    axis, size = axis_of(x, dim), x.shape[axis_of(x, dim)]
    if not isinstance(index, int) or (index < 0 and not isinstance(size, int)):
        return None
    index = index + int(size) if index < 0 else index
    order = tuple(own - (own > axis) for own in x.order if own != axis)
    tensor, place = w.read(x, in_int8=x.factors is not None), x.order.index(axis)
    one = w.constant(np.array(index, np.int32))
    return w.made("GATHER", [tensor, one], out.shape, x.dtype, order, x.factors, axis=place, batchDims=0)


@writes(_aten.unbind.int)
def _unbind(w: Writer, out: Result, x: Value, dim: int = 0) -> tuple[Any, ...]:
    return tuple(_select(w, part, x, dim, index) for index, part in enumerate(out.parts))


@writes(_aten.split_with_sizes.default, _aten.split.Tensor, _aten.chunk.default)
def _split(w: Writer, out: Result, x: Value, _: Any, dim: int = 0) -> tuple[Value, ...] | None:
    axis, start, parts = axis_of(x, dim), 0, []
    for part in out.parts:
        count = part.shape[axis]
        if not isinstance(count, int):
            return None
        parts.append(sliced(w, x, axis, start, count))
        start += count
    return tuple(parts)


@writes(_aten.cat.default)
def _cat(w: Writer, out: Result, tensors: Sequence[Value], dim: int = 0) -> Value:
    """In int8 where all can have the factors of the result, or have one another's."""
    parts, axis = [part for part in tensors if part.shape != (0,) or out.rank == 1], dim % out.rank
    if len(parts) == 1:
        return parts[0]
    order = next((part.order for part in parts if not part.is_constant), logical(out.rank))
    if w.requantizes and in_integers(out, *parts):
        return joined_in_integers(w, out, parts, order, order.index(axis))
    factors = {part.factors for part in parts}
    shared = factors.pop() if len(factors) == 1 else None
    parts = parts if shared is not None else [cast(w, part, out.dtype) for part in parts]
    read = [w.read(part, order, in_int8=shared is not None) for part in parts]
    options = {"axis": order.index(axis), "fusedActivationFunction": 0}
    return w.made("CONCATENATION", read, out.shape, out.dtype, order, shared, **options)


@writes(_aten.stack.default)
def _stack(w: Writer, out: Result, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % out.rank
    shape = [1 if place == axis else size for place, size in enumerate(out.shape)]
    return _cat(w, out, [reshaped(w, part, shape) for part in tensors], axis)


@writes(_aten.roll.default)
def _roll(w: Writer, _: Result, x: Value, shifts: Any, dims: Any = ()) -> Value | None:
    shifts, dims = ([each] if isinstance(each, int) else list(each) for each in (shifts, dims))
    if not dims or not all(isinstance(x.shape[dim], int) and x.shape[dim] for dim in dims):
        return None
    for shift, axis in zip(shifts, [axis_of(x, dim) for dim in dims], strict=True):
        size = int(x.shape[axis])
        if place := -shift % size:
            parts = [sliced(w, x, axis, place, size - place), sliced(w, x, axis, 0, place)]
            x = _cat(w, Result(x.shape, x.dtype), parts, axis)
    return x


@writes(_aten.flip.default)
def _flip(w: Writer, _: Result, x: Value, dims: Sequence[int]) -> Value:
    for axis in [axis_of(x, dim) for dim in dims]:
        x = moved(w, "REVERSE_V2", x, [w.vector([x.order.index(axis)])], x.shape)
    return x


@writes(_aten.pixel_shuffle.default)
def _pixel_shuffle(w: Writer, out: Result, x: Value, factor: int) -> Value | None:
    """Torch has the channels of a block next to one another, DEPTH_TO_SPACE the blocks of a channel."""
    if x.rank != 4 or not isinstance(x.shape[1], int):
        return None
    channels = x.shape[1] // factor**2
    order = [block * channels + channel for channel in range(channels) for block in range(factor**2)]
    places = w.vector([int(place) for place in np.argsort(order)])
    own = channels_last(4)
    picked = moved(w, "GATHER", x, [places], x.shape, own, axis=3, batchDims=0)
    return moved(w, "DEPTH_TO_SPACE", picked, [], out.shape, own, blockSize=factor)


def _longer(size: Extent, more: int) -> Extent:
    return size + more if isinstance(size, int) else f"{size} + {more}" if more else size


def padded(w: Writer, x: Value, pads: Sequence[tuple[int, int]], value: float = 0) -> Value:
    """The value with so many numbers around each dimension, in int8 where it is."""
    shape = [_longer(size, sum(pad)) for size, pad in zip(x.shape, pads, strict=True)]
    around = w.constant(np.array([pads[axis] for axis in x.order], np.int32))
    if value == 0:
        return moved(w, "PAD", x, [around], shape)
    constant = w.read(number(value, x.dtype))
    return w.made("PADV2", [w.read(x), around, constant], shape, x.dtype, x.order)


@writes(_aten.pad.default)
def _pad(
    w: Writer, out: Result, x: Value, pads: Sequence[Any], mode: str = "constant", value: Any = None
) -> Value | None:
    if not all(isinstance(pad, int) for pad in pads):
        return None
    pairs = [(0, 0)] * (x.rank - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    for axis, pair in enumerate(pairs):  # negative ones cut off
        if min(pair) < 0:
            size = int(x.shape[axis]) + min(pair[0], 0) + min(pair[1], 0)
            x = sliced(w, x, axis, max(-pair[0], 0), size)
    pairs = [(max(first, 0), max(last, 0)) for first, last in pairs]
    if not any(map(any, pairs)):
        return x
    if any(any(pair) and not isinstance(size, int) for pair, size in zip(pairs, x.shape, strict=True)):
        return None
    if mode == "constant":
        return padded(w, x, pairs, value or 0)
    if mode == "reflect":
        around = w.constant(np.array([pairs[axis] for axis in x.order], np.int32))
        return moved(w, "MIRROR_PAD", x, [around], out.shape, mode=0)
    return None


OPERATORS[_aten.constant_pad_nd.default] = lambda w, out, x, pads, value=0: _pad(w, out, x, pads, "constant", value)
for _number in (1, 2, 3):
    OPERATORS[getattr(_aten, f"reflection_pad{_number}d").default] = lambda w, out, x, pads: _pad(
        w, out, x, pads, "reflect"
    )


@writes(_aten.index_select.default)
def _index_select(w: Writer, out: Result, x: Value, dim: int, index: Value) -> Value:
    place = x.order.index(axis_of(x, dim))
    return moved(w, "GATHER", x, [w.read(cast(w, index, torch.int32))], out.shape, axis=place, batchDims=0)


@writes(_aten.index.Tensor)
def _index(w: Writer, out: Result, x: Value, indices: Sequence[Any]) -> Value | None:
    """One index gathers along its dimension; several that lead, or follow one another, pick single places."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    given = [cast(w, indices[axis], torch.int32) for axis in axes]
    if any(indices[axis].dtype in (torch.bool, torch.uint8) for axis in axes):
        return None
    in_int8 = x.factors is not None
    if len(axes) == 1:
        read = [w.read(x, logical(x.rank), in_int8=in_int8), w.read(given[0], logical(given[0].rank))]
        return w.made("GATHER", read, out.shape, x.dtype, None, x.factors, axis=axes[0], batchDims=0)
    if axes != [*range(axes[0], axes[-1] + 1)]:
        return None
    others = [axis for axis in range(x.rank) if axis not in axes]
    shape = broadcast(*(index.shape for index in given))
    whole = [_expand(w, Result(shape, torch.int32), index, shape) for index in given]
    columns = [reshaped(w, index, (*shape, 1)) for index in whole]
    places = _cat(w, Result((*shape, len(columns)), torch.int32), columns, len(shape))
    read = [w.read(x, (*axes, *others), in_int8=in_int8), w.read(places, logical(places.rank))]
    before, count = [*range(axes[0])], len(shape)
    picked = (*shape, *(x.shape[axis] for axis in others))
    made = w.made("GATHER_ND", read, picked, x.dtype, None, x.factors)
    return permuted(made, [*(count + axis for axis in before), *range(count), *range(count + len(before), made.rank)])


@writes(_aten.topk.default)
def _topk(
    w: Writer, out: Result, x: Value, count: Any, dim: int = -1, largest: bool = True, _ordered: bool = True
) -> tuple[Value, Value] | None:  # fmt: skip
    """TOPK_V2 finds the largest along the last dimension."""
    if not isinstance(count, int):
        return None
    axis, first = axis_of(x, dim), out.parts[0]
    order = (*(other for other in range(x.rank) if other != axis), axis)
    x = x if largest else elementwise(w, "NEG", x.dtype, x)
    values, places = Value(first.shape, x.dtype, order), Value(first.shape, torch.int32, order)
    made = [w.empty(value, order, in_int8=False) for value in (values, places)]
    w.operator("TOPK_V2", [w.read(x, order), w.constant(np.array(count, np.int32))], made)
    return values if largest else elementwise(w, "NEG", x.dtype, values), cast(w, places, torch.int64)


@writes(_aten.sort.default)
def _sort(w: Writer, out: Result, x: Value, dim: int = -1, descending: bool = False) -> Any:
    return _topk(w, out, x, x.shape[axis_of(x, dim)], dim, descending) if x.rank else None


@writes(_aten.arange.default, _aten.arange.start, _aten.arange.start_step)
def _arange(w: Writer, out: Result, *given: Any) -> Value | None:
    """Of a size that a run knows: the numbers of the ones in a row, summed."""
    start, end, step = (0, *given, 1) if len(given) == 1 else (*given, 1) if len(given) == 2 else given
    if (start, step) != (0, 1) or not isinstance(out.shape[0], str):
        return None
    del end  # the size of the result says it
    source = w.inputs[0]
    ones = w.made(
        "BROADCAST_TO", [w.read(number(1, torch.int32)), w.whole_sizes(out.shape, source)], out.shape, torch.int32
    )
    options: dict[str, Any] = {"exclusive": True, "reverse": False}
    counted = w.made("CUMSUM", [w.read(ones), w.constant(np.array(0, np.int32))], out.shape, torch.int32, **options)
    return cast(w, counted, out.dtype)


@writes(_aten.diff.default)
def _diff(
    w: Writer, out: Result, x: Value, count: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> Value | None:  # fmt: skip
    axis, parts = axis_of(x, dim), [cast(w, part, out.dtype) for part in (prepend, x, append) if part is not None]
    size = out.shape[axis]
    if count != 1 or out.dtype == torch.bool or not isinstance(size, int):
        return None
    shape = tuple(size + 1 if place == axis else each for place, each in enumerate(out.shape))
    joined = _cat(w, Result(shape, out.dtype), parts, axis)
    return elementwise(w, "SUB", out.dtype, *(sliced(w, joined, axis, start, size) for start in (1, 0)))


# tensors of one number


def _filled(w: Writer, out: Result, value: float) -> Value:
    """That number in a shape of which a run knows some size."""
    sizes = w.whole_sizes(out.shape, w.inputs[0])
    return w.made("BROADCAST_TO", [w.read(number(value, out.dtype)), sizes], out.shape, out.dtype)


for _name, _value in {"zeros": 0, "ones": 1, "empty": 0}.items():
    for _target in (getattr(_aten, f"{_name}_like").default, getattr(_aten, f"new_{_name}").default):
        OPERATORS[_target] = lambda w, out, *_, value=_value: _filled(w, out, value)
for _target, _value in {_aten.zeros.default: 0, _aten.ones.default: 1, _aten.empty.memory_format: 0}.items():
    OPERATORS[_target] = lambda w, out, *_, value=_value: _filled(w, out, value)
OPERATORS[_aten.full.default] = OPERATORS[_aten.full_like.default] = lambda w, out, _, value: _filled(w, out, value)
OPERATORS[_aten.new_full.default] = lambda w, out, _x, _, value: _filled(w, out, value)


@writes(operator.getitem)
def _getitem(_w: Writer, _: Result, parts: Sequence[Any], index: int) -> Any:
    return parts[index]


def _resized(w: Writer, out: Result, x: Value, kind: str, align: bool) -> Value | None:
    if x.rank != 4 or not all(isinstance(size, int) for size in out.shape[2:]):
        return None
    own, sizes = channels_last(4), w.vector([int(size) for size in out.shape[2:]])
    if kind == "nearest":
        return moved(
            w, "RESIZE_NEAREST_NEIGHBOR", x, [sizes], out.shape, own, alignCorners=False, halfPixelCenters=False
        )
    options: dict[str, Any] = {"alignCorners": align, "halfPixelCenters": not align}
    return w.made("RESIZE_BILINEAR", [w.read(x, own), sizes], out.shape, out.dtype, own, **options)


def _by_matrices(w: Writer, out: Result, x: Value, align: bool) -> Value | None:
    """Bicubic interpolation, which is linear in rows and in columns: M x N', with what torch makes of unit vectors."""
    sizes = [*x.shape[2:], *out.shape[2:]]
    if x.rank != 4 or not all(isinstance(size, int) for size in sizes):
        return None
    matrices = []
    for size, made in zip(x.shape[2:], out.shape[2:], strict=True):
        units = torch.eye(int(size)).reshape(1, int(size), int(size), 1)
        options: dict[str, Any] = {"mode": "bicubic", "align_corners": align}
        rows = torch.nn.functional.interpolate(units, (int(made), 1), **options)
        matrices.append(rows[0, :, :, 0].numpy())  # [size, made]
    height, width = (Value(each.shape, out.dtype, (0, 1), array=each) for each in matrices)
    wide = w.made(
        "BATCH_MATMUL", [w.read(x, logical(4)), w.read(width)], (*x.shape[:3], out.shape[3]), out.dtype, adjX=False,
        adjY=False,
    )  # fmt: skip
    turned = (*x.shape[:2], out.shape[3], out.shape[2])
    read = [w.read(wide, (0, 1, 3, 2)), w.read(height)]
    return permuted(w.made("BATCH_MATMUL", read, turned, out.dtype, adjX=False, adjY=False), (0, 1, 3, 2))


for _overload in (_aten.upsample_bicubic2d.vec, _aten.upsample_bicubic2d.default):
    OPERATORS[_overload] = lambda w, out, x, _, align, *_rest: _by_matrices(w, out, x, align)
for _overload in (_aten.upsample_nearest2d.vec, _aten.upsample_nearest2d.default):
    OPERATORS[_overload] = lambda w, out, x, *_: _resized(w, out, x, "nearest", False)
for _overload in (_aten.upsample_bilinear2d.vec, _aten.upsample_bilinear2d.default):
    OPERATORS[_overload] = lambda w, out, x, _, align, *_rest: _resized(w, out, x, "linear", align)
