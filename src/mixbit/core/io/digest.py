"""What tells one function, object or set of tensors from another: digests, to take up only results that still hold."""

import hashlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from mixbit.core.errors import InvalidInput


def source_digest(value: Any) -> str:
    """A hash of what a function or an object does: its source, and the values that it holds.

    These are the arguments of a partial, the attributes of an object, the defaults of a function and what it takes
    from the function around it. Other functions that it calls, and global values, are not looked into.

    Raises:
        InvalidInput: the values are nested too deeply.
    """
    try:
        return text_digest(re.sub(r" at 0x[0-9a-f]+", "", _told(value, ())))
    except RecursionError:
        name = getattr(value, "__name__", type(value).__name__)
        raise InvalidInput(
            f"{name}: holds values that are nested too deeply to tell it from another; give a plain function"
        ) from None


def _told(value: Any, around: tuple[int, ...]) -> str:
    """The value as text; `around` are the ids of those that hold it, which it may hold in turn."""
    if id(value) in around:
        return "..."
    text, held = _parts(value)
    return f"{text}({', '.join(_told(one, (*around, id(value))) for one in held)})" if held else text


def _parts(value: Any) -> tuple[str, Sequence[Any]]:
    """The value's own text, and what it holds."""
    match value:
        case Tensor():
            found = tensors_digest([value]), ()
        case np.ndarray():
            found = f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}", ()
        case Mapping():
            found = "mapping", [*value.items()]
        case list() | tuple():
            found = "sequence", value
        case set() | frozenset():
            found = "set", sorted(value, key=repr)
        case GraphModule():
            found = value.code, [value.state_dict()]
        case partial():
            found = "partial", [value.func, value.args, value.keywords]
        case MethodType():
            found = _source(value), [value.__self__]
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            found = _source(value), [cells, value.__defaults__, value.__kwdefaults__]
        case type() | BuiltinFunctionType() | ModuleType():
            found = _source(value), ()
        case _ if value.__getstate__() is None and not callable(value):
            found = repr(value), ()
        case _:
            found = _source(type(value)), [value.__getstate__()]
    return found


def _source(code: Any) -> str:
    """Its text, or its name where there is none to read."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return getattr(code, "__qualname__", code.__name__)


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """A hash of the tensors' types, shapes and values, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def text_digest(text: str) -> str:
    """A hash of a text: 16 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
