"""Numbers beside tensors: what an ONNX file computes from shapes and constants.

ONNX has no numbers but tensors, so that a file reads the shape of a tensor, takes numbers out of it, and puts them
together to another shape. torch.export follows sizes only as numbers. So a constant of a few integers, a shape, and
whatever is computed from these alone, is a number of Python, or a list of them, nested for more dimensions; sizes that
torch.export holds free are among them as its symbols.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: A number, or a list of numbers or lists.
Number = Any
_SCALARS = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
#: Constants of more numbers stay tensors.
MOST_NUMBERS = 64


def is_number(value: Any) -> bool:
    """Whether the value is a number or a list of numbers."""
    return isinstance(value, (*_SCALARS, list))


def tensor(value: Tensor | Number, like: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """The value as a tensor, on the device of `like`; numbers are int64, float32 or bool where no type is given."""
    if isinstance(value, Tensor):
        return value
    device = None if like is None else like.device
    leaves = pytree.tree_leaves(value)
    if dtype is None:
        is_float = any(isinstance(leaf, float | torch.SymFloat) for leaf in leaves)
        is_bool = bool(leaves) and all(isinstance(leaf, bool | torch.SymBool) for leaf in leaves)
        dtype = torch.float32 if is_float else torch.bool if is_bool else torch.int64
    if not any(isinstance(leaf, _SYMBOLS) for leaf in leaves):
        return torch.tensor(value, dtype=dtype, device=device)
    parts = [torch.full((), leaf, dtype=dtype, device=device) for leaf in leaves]
    return torch.stack(parts).reshape(shape_of(value))


def operand(value: Tensor | Number, like: Tensor) -> Any:
    """The value as torch's arithmetic takes it beside `like`: one number, or a tensor; among integers, of its type."""
    while isinstance(value, list) and len(value) == 1 and _depth(value) <= like.ndim:
        value = value[0]
    if not isinstance(value, list):
        return value
    made = tensor(value, like)
    both = made.dtype is torch.int64 and not like.is_floating_point() and like.dtype is not torch.bool
    return made.to(like.dtype) if both else made


def combined(on_tensors: Callable[..., Any], on_numbers: Callable[..., Any], *values: Any) -> Any:
    """What a function of single numbers makes of numbers, and its like of tensors where there is one among them."""
    like = next((value for value in values if isinstance(value, Tensor)), None)
    if like is None:
        return elementwise(on_numbers, *values)
    return on_tensors(*(operand(value, like) for value in values))


def elementwise(function: Callable[..., Any], *values: Number) -> Number:
    """The function of each number; shapes are broadcast."""
    made = np.frompyfunc(function, len(values), 1)(*map(array, values))
    return made.tolist() if isinstance(made, np.ndarray) else made


def array(value: Number) -> np.ndarray[Any, Any]:
    """The numbers as an array of Python's objects."""
    made = np.empty(shape_of(value), dtype=object)
    made[...] = value
    return made


def shape_of(value: Number) -> tuple[int, ...]:
    """The shape that the numbers have as a tensor."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else 0
    return tuple(shape)


def listed(value: Any) -> list[Any]:
    """One number or several, as a list; what a small tensor of constants holds, too."""
    if isinstance(value, Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) else [value]


def one(value: Any) -> Any:
    """The number that a scalar, or a list of one, holds."""
    while isinstance(value, list):
        (value,) = value
    return value.item() if isinstance(value, Tensor) else value


def truncated(a: Any, b: Any) -> Any:
    """The quotient; of integers, rounded toward zero, as ONNX divides them."""
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return math.trunc(a / b) if abs(a) < 2**52 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if isinstance(b, int) and b > 0:
        return torch.sym_max(a, 0) // b - torch.sym_max(-a, 0) // b
    return a // b  # sizes are not negative


def _depth(value: Any) -> int:
    return len(shape_of(value))
