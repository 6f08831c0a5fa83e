"""What tells one subject, loss or metric from another, so that a study takes up only results that still hold."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

import mixbit
from mixbit.errors import InvalidInput
from mixbit.metrics import Metric
from mixbit.studies.truth import Subject


def digests(subject: Subject) -> dict[str, str]:
    """What tells this subject from another: hashes of the graph's code and tensors, of the user's loss, of the data."""
    weights, loss = subject.graph.module.state_dict(), subject.task.own_loss
    found = {
        "code": _hash(subject.graph.module.code),
        "loss": "the task's" if loss is None else source_digest(loss),
        "weights": _tensors_digest(weights[name] for name in sorted(weights)),
    }
    for name in ("calibration", "evaluation"):
        pairs = subject.pairs(name)
        found[name] = _tensors_digest(
            leaf for inputs, labels in pairs for leaf in (*inputs.tensors, labels) if leaf is not None
        )
    return found


def same_subject(setup: Callable[[], Subject], expected: Mapping[str, str]) -> Subject:
    """What the setup returns; raises InvalidInput where that is not what it returned before."""
    subject = setup()
    for name, found in digests(subject).items():
        if found != expected[name]:
            raise InvalidInput(
                f"setup: returns other {name} each time it is called; seed what it draws, and load weights from a file "
                "instead of training them, which gives others with another number of threads; or pass processes=1 "
                "(--processes 1), which calls it once"
            )
    return subject


def metric_digest(metric: str | Metric) -> str:
    """Of one of mixbit's by name, a hash of mixbit's source; of the user's own, of its own."""
    return _own_source() if isinstance(metric, str) else source_digest(metric)


@cache
def _own_source() -> str:
    package = Path(mixbit.__file__).parent
    return _hash("".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))))


def source_digest(value: Any) -> str:
    """A hash of what a function or an object does: its source, and the values that it holds.

    These are the arguments of a partial, the attributes of an object, the defaults of a function and what it takes
    from the function around it. Other functions that it calls, and global values, are not looked into.

    Raises:
        InvalidInput: the values are nested too deeply.
    """
    try:
        return _hash(re.sub(r" at 0x[0-9a-f]+", "", _told(value, ())))
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
            found = _tensors_digest([value]), ()
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


def _tensors_digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
