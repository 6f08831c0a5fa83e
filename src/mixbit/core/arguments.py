"""Arguments: each is of the type that its annotation says, checked once, where a user calls."""

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from mixbit.core.errors import InvalidInput, pick

F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K", bound=type)

#: Type -> what it is to users, and for classes of this package, by name, where an object comes from.
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
    Callable: "a function",
    "Budget": "a Budget, as Budget(mean_bits=4)",
    "Graph": "what capture() or quantize() returned",
    "Module": "an nn.Module, as the model's function returns it",
    "Plan": "a Plan, as search() returns it and Plan.load() reads it",
    "Sensitivity": "a Sensitivity, as measure() returns it and Sensitivity.load() reads it",
    "Settings": "Settings, of mixbit.pipeline",
    "Task": "Task.classification() or another, or Task.named(name)",
    "Training": "Training, of mixbit.training",
}
_SCALARS = (int, float, bool, str)
_NUMBERS: dict[Any, type] = {int: Integral, float: Real}


def checked(function: F) -> F:
    """The function, which raises InvalidInput for arguments that it does not have or of types other than annotated.

    Example:
        >>> @checked
        ... def half(x: float) -> float:
        ...     return x / 2
        >>> half("8")
        Traceback (most recent call last):
        ...
        mixbit.core.errors.InvalidInput: half(): x='8': give a number
    """

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        signature, place = _signature(function), f"{function.__qualname__.removesuffix('.__init__')}()"
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
            known = [name for name in signature.parameters if name not in ("self", "cls")]
            for name in () if takes_any else options:
                pick(f"{place}: argument", name, known)
            raise InvalidInput(f"{place}: {error}") from None
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            is_several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if not is_several and parameter.annotation is not parameter.empty:
                check_value(f"{place}: {name}", value, parameter.annotation)
        return function(*args, **options)

    return cast("F", call)


def checked_class(kind: K) -> K:
    """The class, whose `__init__` is `checked`; a dataclass gets one that names its fields."""
    kind.__init__ = checked(kind.__init__)  # type: ignore[misc] it is made here
    return kind


def check_value(place: str, value: Any, hint: Any) -> None:
    """Raise InvalidInput, which names the place, unless the value is of the type."""
    if _fits(value, hint):
        return
    given = f"={value!r:.60}:" if _is_scalar(hint) else f": a {type(value).__name__};"
    raise InvalidInput(f"{place}{given} give {_words(hint)}")


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function, eval_str=True)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type; of what is no class, or generic in a way not known here, always."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value is part or value == part for part in parts)
    if origin is None and hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, parts[0]) and _fits(item, parts[1]) for key, item in value.items()
        )
    if origin in (Sequence, Collection):
        some = isinstance(value, origin) and not isinstance(value, str | bytes)
        return some and all(_fits(item, parts[0]) for item in value)
    kind = origin or hint
    if kind in (Any, Iterable) or not isinstance(kind, type):  # data is checked where it is read
        return True
    return isinstance(value, kind)


def _is_scalar(hint: Any) -> bool:
    """Whether the type is of numbers and texts, which errors quote."""
    return get_origin(hint) is Literal or hint in _SCALARS or any(map(_is_scalar, get_args(hint)))


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts if part is not type(None)))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Mapping:
        return f"a dict from {_words(parts[0])} to {_words(parts[1])}"
    if origin in (Sequence, Collection):
        return f"a list, each {_words(parts[0])}"
    kind = origin or hint
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or _WORDS.get(name) or f"a {name}"
