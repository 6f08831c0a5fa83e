"""What ONNX's reductions and orders are in torch.

Each function has the name and the attributes of its operator; axes are an attribute or, in later versions, an input.
"""
# ruff: noqa: A002, N802 names are ONNX's, and so is what they mean

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixbit.models._onnx_elementwise import Value
from mixbit.models._onnx_numbers import Number, is_number, listed, one, shape_of, tensor


def _reduced(
    x: Value, axes: Number, keepdims: int, noop: int, on_tensor: Callable[[Tensor, list[int], bool], Tensor],
    on_numbers: Callable[[list[Any]], Any] | None = None,
) -> Value:  # fmt: skip
    """The reduction of those axes, or of all where none is named; a list of numbers stays numbers."""
    axes = [] if axes is None else listed(axes)
    if is_number(x) and on_numbers is not None and axes in ([], [0], [-1]) and len(shape_of(x)) < 2:
        if not isinstance(x, list) or (noop and not axes):
            return x
        made = on_numbers(x)
        return [made] if keepdims else made
    x = tensor(x)
    if not axes and noop:  # then it is of each number
        return on_tensor(x.unsqueeze(-1), [-1], False)
    return on_tensor(x, axes or list(range(x.ndim)), bool(keepdims))


def ReduceSum(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, _total, sum)


def ReduceMean(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, torch.mean)


def ReduceMax(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, torch.amax, _largest)


def ReduceMin(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, torch.amin, _smallest)


def ReduceProd(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, _product, math.prod)


def ReduceL1(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    on_tensor = lambda y, dims, keep: y.abs().sum(dims, keep)  # noqa: E731 three letters of a formula
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, on_tensor)


def ReduceL2(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    on_tensor = lambda y, dims, keep: y.square().sum(dims, keep).sqrt()  # noqa: E731 as above
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, on_tensor)


def ReduceSumSquare(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    on_tensor = lambda y, dims, keep: y.square().sum(dims, keep)  # noqa: E731 as above
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, on_tensor)


def ReduceLogSum(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    on_tensor = lambda y, dims, keep: y.sum(dims, keep).log()  # noqa: E731 as above
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, on_tensor)


def ReduceLogSumExp(
    x: Value, given: Number = None, *, axes: Number = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Value:
    return _reduced(x, given if axes is None else axes, keepdims, noop_with_empty_axes, torch.logsumexp)


def _total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.sum(x, axes, keep)
    return torch.sum(x, axes, keep, dtype=x.dtype)  # which torch would make int64


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _largest(numbers: list[Any]) -> Any:
    made = numbers[0]
    for number in numbers[1:]:
        made = torch.sym_max(made, number)
    return made


def _smallest(numbers: list[Any]) -> Any:
    made = numbers[0]
    for number in numbers[1:]:
        made = torch.sym_min(made, number)
    return made


def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(torch.argmax, x, axis, keepdims, select_last_index)


def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(torch.argmin, x, axis, keepdims, select_last_index)


def _place(function: Any, x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    made = function(x.flip(axis) if last else x, axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - made if last else made


def TopK(
    x: Tensor,
    count: Number = None,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
    k: Number = None,
    outputs: int,
) -> Any:
    made = torch.topk(x, one(count if k is None else k), axis, bool(largest), bool(sorted))
    return tuple(made) if outputs > 1 else made[0]


def CumSum(x: Value, axis: Number, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    x, axis = tensor(x), one(axis)
    made = (x.flip(axis) if reverse else x).cumsum(axis, dtype=x.dtype)
    if exclusive:
        made = made - (x.flip(axis) if reverse else x)
    return made.flip(axis) if reverse else made
