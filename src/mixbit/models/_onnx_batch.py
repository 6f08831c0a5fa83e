"""Files for one batch size: where a constant holds it, the size of the batch takes its place.

Each function takes the operator's arguments, what they are for the declared batch and for a larger one, and what the
operator makes for the declared batch. A dimension is that of the batch where the two differ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixbit.models._onnx_numbers import listed, tensor
from mixbit.models._onnx_shapes import FAR


@dataclass(frozen=True)
class Batch:
    """The declared batch size, what adds a node, and the node of the size that there is."""

    declared: int
    call: Callable[..., Any]
    size: Any


def size(x: Tensor, axis: int) -> int:
    """The size of that dimension."""
    return x.shape[axis]


def lifted(name: str, args: list[Any], declared: list[Any], larger: list[Any], made: Any, batch: Batch) -> list[Any]:
    """The arguments with the batch size in the place of its number."""
    lift = _LIFTS.get(name)
    return args if lift is None else lift(args, declared, larger, made, batch)


def differing(declared: Any, larger: Any) -> int | None:
    """The dimension of the batch; None where the tensors have none."""
    if not isinstance(declared, Tensor) or not isinstance(larger, Tensor):
        return None
    pairs = zip(declared.shape, larger.shape, strict=True)
    return next((axis for axis, (a, b) in enumerate(pairs) if a != b), None)


def _reshape(args: list[Any], declared: list[Any], larger: list[Any], made: Any, batch: Batch) -> list[Any]:
    axis = differing(declared[0], larger[0])
    if axis is None or not isinstance(args[1], list):
        return args
    have, want = list(declared[0].shape), list(made.shape)
    place = _place(have, want, axis)
    if args[1][place] in (-1, 0):
        return args
    there, shape = batch.call(size, args[0], axis), list(args[1])
    shape[place] = _times(there, want[place], have[axis], batch)
    return [args[0], shape, *args[2:]]


def _place(have: list[int], want: list[int], axis: int) -> int:
    """The dimension of the new shape that holds the given one of the old shape."""
    before, exact = math.prod(have[:axis]), -1
    for place in range(len(want)):
        if math.prod(want[:place]) == before and (want[place] % have[axis] == 0 or have[axis] % want[place] == 0):
            exact = place
            break
    holds = (place for place in range(len(want)) if math.prod(want[: place + 1]) > before)
    return exact if exact >= 0 else next(holds, 0)


def _times(there: Any, want: int, have: int, batch: Batch) -> Any:
    """The size `there`, which is `have` for the declared batch, as a multiple or part that is then `want`."""
    if want == have:
        return there
    if want % have == 0:
        return batch.call(_multiplied, there, want // have)
    return batch.call(_divided, batch.call(_multiplied, there, want), have)


def _multiplied(a: int, b: int) -> int:
    return a * b


def _divided(a: int, b: int) -> int:
    return a // b


def _constant_shape(args: list[Any], _: list[Any], __: list[Any], ___: Any, batch: Batch) -> list[Any]:
    shape = args[0]
    if not isinstance(shape, list) or not shape or shape[0] != batch.declared or batch.declared == 1:
        return args  # of one sample, all others can be repeated
    return [[batch.size, *shape[1:]], *args[1:]]


def _expand(args: list[Any], declared: list[Any], larger: list[Any], _: Any, batch: Batch) -> list[Any]:
    axis, shape = differing(declared[0], larger[0]), args[1]
    if not isinstance(shape, list):
        return args
    if axis is None:
        return [args[0], *_constant_shape([shape], [], [], None, batch)]
    place = len(shape) - declared[0].ndim + axis
    kept = list(shape)
    if place >= 0:
        kept[place] = 1  # the size that there is stays
    return [args[0], kept]


def _tile(args: list[Any], declared: list[Any], larger: list[Any], _: Any, batch: Batch) -> list[Any]:
    axis, repeats = differing(declared[0], larger[0]), args[1]
    is_batch = axis is None and isinstance(repeats, list) and batch.declared > 1 and repeats[0] == batch.declared
    return [args[0], [batch.size, *repeats[1:]], *args[2:]] if is_batch else args


def _concat(args: list[Any], declared: list[Any], larger: list[Any], _: Any, batch: Batch) -> list[Any]:
    """Parts that all samples share, repeated for each."""
    axes = [differing(a, b) for a, b in zip(declared, larger, strict=True)]
    axis = next((axis for axis in axes if axis is not None), None)
    if axis is None or axis != 0:
        return args
    parts = []
    for part, own, value in zip(args, axes, declared, strict=True):
        value = tensor(value)  # noqa: PLW2901 of numbers too
        if own is None and value.shape[0] == batch.declared and (value == value[:1]).all():
            part = batch.call(repeated, part, batch.size)  # noqa: PLW2901 what is joined
        parts.append(part)
    return parts


def repeated(x: Any, count: int) -> Tensor:
    """The first of equal samples, so many times."""
    x = tensor(x)[:1]
    return x.expand(count, *x.shape[1:])


def _slice(args: list[Any], declared: list[Any], larger: list[Any], _: Any, batch: Batch) -> list[Any]:
    """An end that is the batch size is that of the dimension."""
    axis = differing(declared[0], larger[0])
    if axis is None or len(args) < 3 or not all(isinstance(arg, list) for arg in args[1:]):
        return args
    axes = listed(args[3]) if len(args) > 3 else list(range(len(args[1])))
    ends = [
        FAR if place % declared[0].ndim == axis and begin == 0 and end == batch.declared else end
        for place, begin, end in zip(axes, args[1], args[2], strict=True)
    ]
    return [args[0], args[1], ends, *args[3:]]


def _resize(args: list[Any], declared: list[Any], larger: list[Any], _: Any, batch: Batch) -> list[Any]:
    axis = differing(declared[0], larger[0])
    if axis is None or len(args) < 4 or not isinstance(args[3], list) or len(args[3]) != declared[0].ndim:
        return args
    sizes = list(args[3])
    sizes[axis] = batch.call(size, args[0], axis)
    return [*args[:3], sizes]


_LIFTS: dict[str, Callable[..., list[Any]]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_shape,
    "Tile": _tile,
    "Concat": _concat,
    "Slice": _slice,
    "Resize": _resize,
}
