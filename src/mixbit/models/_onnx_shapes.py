"""What ONNX's operators on shapes and places are in torch: views, slices, joins, look-ups, constants.

Each function has the name and the attributes of its operator; an input that is left out is None. What gives a shape,
an axis or a place is a number, or a list of them.
"""
# ruff: noqa: N802 names and arguments are ONNX's, and so is what they mean

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixbit.models._onnx_elementwise import TYPES, Value
from mixbit.models._onnx_numbers import MOST_NUMBERS, Number, array, is_number, listed, one, shape_of, tensor

#: Ends of slices from here on are beyond every size.
FAR = 2**27


def Shape(x: Value, *, start: int = 0, end: int | None = None) -> Number:
    sizes = list(x.shape if isinstance(x, Tensor) else shape_of(x))
    return sizes[start:end]


def Size(x: Value) -> Number:
    return math.prod(x.shape if isinstance(x, Tensor) else shape_of(x))


def Reshape(x: Value, shape: Number = None, *, allowzero: int = 0) -> Value:
    have, sizes = x.shape if isinstance(x, Tensor) else shape_of(x), listed(shape)
    if not allowzero:
        sizes = [have[axis] if _is(size, 0) else size for axis, size in enumerate(sizes)]
    return array(x).reshape(sizes).tolist() if is_number(x) else x.reshape(sizes)


def _is(size: Any, number: int) -> bool:
    """Whether it is that number, not a symbol."""
    return isinstance(size, int) and size == number


def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis += x.ndim if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    return x.reshape(1, -1) if axis == 0 else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def Squeeze(x: Value, given: Number = None, *, axes: Number = None) -> Value:
    axes = given if axes is None else axes
    if is_number(x):
        return array(x).squeeze(None if axes is None else tuple(listed(axes))).tolist()
    return torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(listed(axes)))


def Unsqueeze(x: Value, given: Number = None, *, axes: Number = None) -> Value:
    ndim = x.ndim if isinstance(x, Tensor) else len(shape_of(x))
    places = listed(given if axes is None else axes)
    places = sorted(place % (ndim + len(places)) for place in places)
    if is_number(x):
        made = array(x)
        for place in places:
            made = made[(slice(None),) * place + (None,)]
        return made.tolist()
    for place in places:
        x = x.unsqueeze(place)
    return x


def Transpose(x: Value, *, perm: list[int] | None = None) -> Value:
    if is_number(x):
        return array(x).transpose(perm).tolist()
    return x.permute(tuple(reversed(range(x.ndim))) if perm is None else tuple(perm))


def Concat(*parts: Value, axis: int = 1) -> Value:
    like = next((part for part in parts if isinstance(part, Tensor)), None)
    if like is not None:
        return torch.cat([tensor(part, like, like.dtype) for part in parts], axis)
    if axis % len(shape_of(parts[0])) == 0:
        return [number for part in parts for number in part]
    return torch.cat([tensor(part) for part in parts], axis)


def Split(
    x: Value, given: Number = None, *, axis: int = 0, split: Number = None, num_outputs: int | None = None, outputs: int
) -> Any:
    size = x.shape[axis] if isinstance(x, Tensor) else shape_of(x)[axis]
    sizes = given if split is None else split
    if sizes is None:
        part = -(-size // (num_outputs or outputs))
        sizes = [part] * (outputs - 1)
        sizes.append(size - part * (outputs - 1))
    sizes = listed(sizes)
    if isinstance(x, Tensor):
        made = torch.split(x, sizes, axis)
    else:
        ends = [sum(sizes[: place + 1]) for place in range(len(sizes) - 1)]
        made = tuple(part.tolist() for part in np.split(array(x), ends, axis))
    return made if outputs > 1 else made[0]


def Slice(
    x: Value,
    first: Number = None,
    last: Number = None,
    given: Number = None,
    steps: Number = None,
    *,
    starts: Number = None,
    ends: Number = None,
    axes: Number = None,
) -> Value:
    begins, limits = (listed(a if b is None else b) for a, b in ((first, starts), (last, ends)))
    axes = given if axes is None else axes
    axes = range(len(begins)) if axes is None else listed(axes)
    steps = [1] * len(begins) if steps is None else listed(steps)
    made: Any = array(x) if is_number(x) else x
    for begin, limit, axis, step in zip(begins, limits, axes, steps, strict=True):
        made = _sliced(made, begin, limit, axis % made.ndim, step)
    return made.tolist() if is_number(x) else made


def _sliced(x: Any, begin: Any, end: Any, axis: int, step: int) -> Any:
    before = (slice(None),) * axis
    if step > 0:
        begin = None if _is(begin, 0) else begin
        end = None if isinstance(end, int) and end >= FAR else end
        return x if begin is end is None and step == 1 else x[(*before, slice(begin, end, step))]
    if isinstance(end, int) and end <= -FAR:
        end = None
    if not isinstance(x, Tensor):
        return x[(*before, slice(begin, end, step))]
    if end is None and (_is(begin, -1) or (isinstance(begin, int) and begin >= FAR)):
        x = x.flip(axis)
        return x if step == -1 else x[(*before, slice(None, None, -step))]
    places = list(range(*slice(begin, end, step).indices(int(x.shape[axis]))))
    return x.index_select(axis, tensor(places, x))


def Expand(x: Value, shape: Number, *, like: Tensor) -> Tensor:
    made, sizes = tensor(x, like), listed(shape)
    sizes = [1] * (made.ndim - len(sizes)) + sizes
    own = [1] * (len(sizes) - made.ndim) + list(made.shape)
    return made.expand([size if _is(have, 1) else have for have, size in zip(own, sizes, strict=True)])


def Tile(x: Value, repeats: Number, along: Number = None, *, like: Tensor, opset: int) -> Tensor:
    made = tensor(x, like)
    if opset < 6:
        return made.repeat([one(repeats) if axis == one(along) else 1 for axis in range(made.ndim)])
    return made.repeat(listed(repeats))


def Pad(
    x: Tensor,
    given: Number = None,
    constant: Value = None,
    axes: Number = None,
    *,
    mode: str = "constant",
    pads: Number = None,
    value: float = 0.0,
) -> Tensor:
    sizes = listed(given if pads is None else pads)
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in listed(axes)]
    around = [(0, 0)] * x.ndim
    for number, axis in enumerate(places):
        around[axis] = sizes[number], sizes[number + len(places)]
    if mode == "constant":
        fill = value if constant is None else one(constant)
        first = next((axis for axis in range(x.ndim) if not all(_is(size, 0) for size in around[axis])), x.ndim)
        flat = [size for pair in reversed(around[first:]) for size in pair]
        return functional.pad(x, flat, value=fill) if flat else x
    plain = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    padded = [axis for axis in range(x.ndim) if around[axis] != (0, 0)]
    last = range(max(2, x.ndim - 3), x.ndim)
    if 3 <= x.ndim <= 5 and set(padded) <= set(last) and all(size >= 0 for pair in around for size in pair):
        return functional.pad(x, [size for axis in reversed(last) for size in around[axis]], mode=plain)
    for axis in padded:
        x = x.index_select(axis, tensor(_places(mode, int(x.shape[axis]), *around[axis]), x))
    return x


def _places(mode: str, size: int, before: int, behind: int) -> list[int]:
    """The places that are read, of a dimension of that size, where it is padded by others than a constant."""
    period = 2 * (size - 1) if mode == "reflect" else size
    places = []
    for place in range(-before, size + behind):
        if mode == "edge":
            places.append(min(max(place, 0), size - 1))
        else:
            place = place % period if period else 0  # noqa: PLW2901 as it lies within a period
            places.append(period - place if place >= size else place)
    return places


def Gather(x: Value, indices: Value, *, axis: int = 0) -> Value:
    if is_number(x) and is_number(indices):
        numbers = array(x)
        made = numbers.take(array(indices).astype(int), axis)
        return made.tolist() if hasattr(made, "tolist") else made
    x = tensor(x, indices if isinstance(indices, Tensor) else None)
    axis %= x.ndim
    if not isinstance(indices, Tensor | list):
        return x.select(axis, indices)
    indices = tensor(indices, x)
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return functional.embedding(indices, x)
    return x[(slice(None),) * axis + (indices,)]


def GatherElements(x: Tensor, indices: Value, *, axis: int = 0) -> Tensor:
    return torch.gather(tensor(x), axis, _wrapped(indices, x, axis))


def _wrapped(indices: Value, x: Tensor, axis: int) -> Tensor:
    """The indices, from 0 on."""
    indices = tensor(indices, x).long()
    return torch.where(indices < 0, indices + x.shape[axis], indices)


def GatherND(x: Value, indices: Value, *, batch_dims: int = 0) -> Tensor:
    x = tensor(x, indices if isinstance(indices, Tensor) else None)
    places = tensor(indices, x).unbind(-1)
    depth = max((place.ndim for place in places), default=0)
    samples = [
        torch.arange(x.shape[axis], device=x.device).reshape([1] * axis + [-1] + [1] * (depth - axis - 1))
        for axis in range(batch_dims)
    ]
    return x[(*samples, *places)]


def ScatterElements(x: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none") -> Tensor:
    x = tensor(x, updates if isinstance(updates, Tensor) else None)
    places, updates = _wrapped(indices, x, axis), tensor(updates, x, x.dtype)
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    name = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return torch.scatter_reduce(x, axis, places, updates, name)


def Scatter(x: Value, indices: Value, updates: Value, *, axis: int = 0) -> Tensor:
    return ScatterElements(x, indices, updates, axis=axis)


def ScatterND(x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise ValueError(f"reduction {reduction} is not followed; scatter elements, or write it with other operators")
    x = tensor(x, updates if isinstance(updates, Tensor) else None)
    places = tensor(indices, x).unbind(-1)
    return torch.index_put(x, places, tensor(updates, x, x.dtype), accumulate=reduction == "add")


def Range(start: Value, limit: Value, delta: Value, *, like: Tensor) -> Value:
    numbers = one(start), one(limit), one(delta)
    if all(isinstance(number, int) for number in numbers):
        made = list(range(*numbers))
        return made if len(made) <= MOST_NUMBERS else torch.tensor(made, device=like.device)
    return torch.arange(*numbers, device=like.device)


def ConstantOfShape(shape: Number, *, value: float = 0.0, like: Tensor) -> Value:
    sizes = listed(shape)
    if all(isinstance(size, int) for size in sizes) and 0 < math.prod(sizes) <= MOST_NUMBERS:
        made = np.full(sizes, value, dtype=object)
        return made.tolist()
    return torch.full(sizes, value, dtype=tensor(value).dtype, device=like.device)


def OneHot(indices: Value, depth: Number, values: Value, *, axis: int = -1, like: Tensor) -> Tensor:
    indices, size = tensor(indices, like), one(depth)
    off, on = tensor(values, like)
    axis %= indices.ndim + 1
    places = torch.arange(size, device=indices.device).reshape([-1] + [1] * (indices.ndim - axis))
    wrapped = torch.where(indices < 0, indices + size, indices)
    return torch.where(wrapped.unsqueeze(axis) == places, on, off)


def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (columns.unsqueeze(0) - rows.unsqueeze(1) == k).to(x.dtype if dtype is None else TYPES[dtype])


def Trilu(x: Tensor, k: Number = 0, *, upper: int = 1) -> Tensor:
    x = tensor(x)
    return torch.triu(x, one(k)) if upper else torch.tril(x, one(k))


def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    count, channels, height, width = x.shape
    x = x.reshape(count, blocksize, blocksize, channels // blocksize**2, height, width)
    x = x.permute(0, 3, 4, 1, 5, 2)
    return x.reshape(count, channels // blocksize**2, height * blocksize, width * blocksize)


def SpaceToDepth(x: Tensor, *, blocksize: int) -> Tensor:
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    x = x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(count, channels * blocksize**2, height // blocksize, width // blocksize)


def SequenceConstruct(*parts: Value) -> tuple[Value, ...]:
    return parts


def SplitToSequence(x: Tensor, split: Number = None, *, axis: int = 0, keepdims: int = 1) -> tuple[Tensor, ...]:
    if split is None:
        return x.split(1, axis) if keepdims else x.unbind(axis)
    return torch.split(x, split, axis)


def SequenceAt(sequence: tuple[Value, ...], position: Number) -> Value:
    return sequence[one(position)]


def ConcatFromSequence(sequence: tuple[Tensor, ...], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)
