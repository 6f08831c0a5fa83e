"""What a result came from: a digest of values, by which a run knows results of the same, and the machine it ran on."""

import hashlib
import inspect
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.fx import GraphModule

from mixbit.core.errors import InvalidInput


def digest(*values: Any) -> str:
    """16 hex digits that tell these values from others: tensors, functions, objects, and collections of them.

    A function or object is known by its source and the values that it holds: the arguments of a partial, the attributes
    of an object, the defaults of a function and what it takes from the function around it. Other functions that it
    calls, and global values, are not looked into.

    Raises:
        InvalidInput: the values are nested too deeply.
    """
    try:
        text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(_described(value, ()) for value in values))
    except RecursionError:
        names = ", ".join(getattr(value, "__name__", type(value).__name__) for value in values)
        raise InvalidInput(
            f"{names}: holds values that are nested too deeply to tell it from another; give a plain function"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(value: Any, around: tuple[int, ...]) -> str:
    """The value as text; `around` are the ids of those that hold it, which it may hold in turn."""
    held: Sequence[Any] = ()
    match value:
        case Tensor():
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            text = f"{value.dtype}{list(value.shape)}{hashlib.sha256(flat.data).hexdigest()}"
        case np.ndarray():
            text = f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        case Mapping():
            text, held = "mapping", [*value.items()]
        case list() | tuple():
            text, held = "sequence", value
        case set() | frozenset():
            text, held = "set", sorted(value, key=repr)
        case GraphModule():
            text, held = value.code, [value.state_dict()]
        case partial():
            text, held = "partial", [value.func, value.args, value.keywords]
        case MethodType():
            text, held = _source(value), [value.__self__]
        case FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            text, held = _source(value), [cells, value.__defaults__, value.__kwdefaults__]
        case type() | BuiltinFunctionType() | ModuleType():
            text = _source(value)
        case _ if value.__getstate__() is None and not callable(value):
            text = repr(value)
        case _:
            text, held = _source(type(value)), [value.__getstate__()]
    inside = (*around, id(value))
    parts = ("..." if id(part) in inside else _described(part, inside) for part in held)
    return f"{text}({', '.join(parts)})" if held else text


def _source(code: Any) -> str:
    """Its text, or its name where there is none to read."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return getattr(code, "__qualname__", code.__name__)


def environment() -> dict[str, str]:
    """What a run ran on: the processor and the versions of packages."""
    processor = platform.processor()
    with suppress(OSError):
        names = re.findall(r"^model name.*?:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        processor = names[0].strip() if names else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "processor": processor,
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
    }
