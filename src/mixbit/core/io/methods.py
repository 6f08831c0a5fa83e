"""Methods by name, with options: `hawq`, `mixquant:multiplier=4,criterion=absolute`."""

import inspect
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mixbit.core.errors import InvalidInput

F = TypeVar("F", bound=Callable[..., Any])


def with_options(kind: str, method: str | F, known: Mapping[str, F]) -> tuple[str, Any]:
    """Name and function of a method, its options set.

    Args:
        kind: What it is, for errors: `metric`, `search`.
        method: A name, a name with options, or a function, which is returned as it is.
        known: Name -> function; its keyword-only arguments are its options.

    Returns:
        The name as given, and the function.

    Raises:
        InvalidInput: an unknown name or option, or a value that is not of the option's type.
    """
    if not isinstance(method, str):
        if not callable(method):
            raise InvalidInput(f"{kind}: a {type(method).__name__}; give a name or a function")
        plain = method.func if isinstance(method, partial) else method
        return getattr(plain, "__name__", type(plain).__name__), method
    name, _, text = method.partition(":")
    if name not in known:
        raise InvalidInput(f"{kind} {name!r} is unknown; known: {', '.join(known)}; or pass a function")
    if not text:
        return method, known[name]
    types_ = _option_types(known[name])
    values: dict[str, Any] = {}
    for part in text.split(","):
        option, separator, value = part.partition("=")
        if option not in types_ or not separator or option in values:
            has = (
                f"its options are {', '.join(types_)}, as in {name}:{next(iter(types_))}=..."
                if types_
                else "it has none"
            )
            raise InvalidInput(f"{kind} {name}: option {part!r} is not understood; {has}, each once")
        values[option] = _read(f"{kind} {name}: {option}={value}", value, types_[option])
    return method, partial(known[name], **values)  # type: ignore[return-value] a partial is called alike


def _option_types(method: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(method)
    parameters = inspect.signature(method).parameters.values()
    return {one.name: hints[one.name] for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def _read(place: str, text: str, wanted: Any) -> Any:
    """The text as a value of a type: bool, int, float, str, a Literal of texts, or one of these or None."""
    if get_origin(wanted) in (Union, types.UnionType):
        (wanted,) = (one for one in get_args(wanted) if one is not type(None))
    if get_origin(wanted) is Literal:
        if text not in get_args(wanted):
            raise InvalidInput(f"{place}: give one of {', '.join(get_args(wanted))}")
        return text
    if wanted is bool:
        if text not in ("true", "false"):
            raise InvalidInput(f"{place}: give true or false")
        return text == "true"
    try:
        return wanted(text)
    except ValueError:
        raise InvalidInput(f"{place}: not {'a whole number' if wanted is int else 'a number'}") from None
