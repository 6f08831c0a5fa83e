"""Methods by name, with options: `hawq`, `mixquant:multiplier=4,criterion=absolute`; one method a file."""

import ast
import importlib
import inspect
import math
import operator
import pkgutil
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache, cached_property, partial, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from mixbit.core.errors import InvalidInput, pick

F = TypeVar("F", bound=Callable[..., Any])

#: (layers, choices) -> what a method costs, in runs of the network over the data.
Passes = Callable[[int, int], float]
_MARK = "__mixbit_method__"
#: Kind of method, as lists of them are called -> where its methods are, see `Methods`.
METHOD_PLACES = {
    "metrics": "mixbit.metrics",
    "searches": "mixbit.searches",
    "ranges": "mixbit.quantization.ranges",
    "roundings": "mixbit.roundings",
    "recipes": "mixbit.recipes",
}
_BOUNDS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Gt: ("more than", operator.gt),
    Ge: ("at least", operator.ge),
    Lt: ("less than", operator.lt),
    Le: ("at most", operator.le),
}


@dataclass(frozen=True)
class _Mark:
    facts: frozenset[str]
    rank: int
    aliases: Mapping[str, Mapping[str, Any]]
    passes: Passes | None


def method(
    *facts: str, rank: int = 99, aliases: Mapping[str, Mapping[str, Any]] | None = None, passes: Passes | None = None
) -> Callable[[F], F]:
    """Mark a function as a method of its folder; its name is the method's, its keyword-only arguments the options.

    Every call checks the options against their annotations: a type, a Literal, and bounds as in
    `Annotated[float, Gt(0)]`; numbers must be finite.

    Args:
        facts: What the folder needs to know about it, see `facts_of`.
        rank: Its place in lists; equal ranks stand in the order of their files' names.
        aliases: Other names -> the options that each stands for, as `{"fit_w": {"of": "weights"}}`.
        passes: What it costs, for estimates before the work; None where that is not known.

    Example:
        >>> @method()
        ... def half(x: float, *, times: Annotated[int, Ge(1)] = 1) -> float:
        ...     return x / 2**times
        >>> half(8.0, times=3)
        1.0
    """

    def mark(function: F) -> F:
        @wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            _check_options(function.__name__, function, options)
            return function(*args, **options)

        setattr(checked, _MARK, _Mark(frozenset(facts), rank, aliases or {}, passes))
        return cast("F", checked)

    return mark


def facts_of(function: Callable[..., Any]) -> frozenset[str]:
    """The facts that `method` notes about the function, whatever its options; none of a user's own function."""
    mark = getattr(getattr(function, "func", function), _MARK, None)
    return mark.facts if mark else frozenset()


def passes_of(function: Callable[..., Any], layers: int, choices: int) -> float | None:
    """What the function costs, in runs of the network over the data; None where that is not known."""
    mark = getattr(getattr(function, "func", function), _MARK, None)
    return mark.passes(layers, choices) if mark and mark.passes else None


class Methods(Mapping[str, F]):
    """The methods of one kind (`metric`, `search`) by name: the marked functions of a folder or module.

    They are imported at the first look-up. Files whose names begin with `_` hold no methods.
    """

    def __init__(self, kind: str, place: str) -> None:
        self.kind, self.place = kind, place

    def __getitem__(self, name: str) -> F:
        return self._functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    @cached_property
    def _functions(self) -> dict[str, F]:
        functions: dict[str, Any] = {}
        for function in sorted(_marked(self.place), key=lambda function: getattr(function, _MARK).rank):
            functions[function.__name__] = function
            for alias, options in getattr(function, _MARK).aliases.items():
                functions[alias] = partial(function, **options)
                functions[alias].__name__ = alias
                functions[alias].__doc__ = f"{_option_text(function.__name__, options)}: {function.__doc__}"
        return functions

    def find(self, method: str | F) -> tuple[str, F]:
        """The name as given and the function, for a name, a name with options, or a function.

        Raises InvalidInput for an unknown name or option, or a value that is not of the option's type or bounds.
        """
        if isinstance(method, str):
            name, _, text = method.partition(":")
            function = self[pick(self.kind, name, self, "; or pass a function")]
            options = read_options(self.kind, name, function, text) if text else {}
            return method, cast("F", partial(function, **options)) if options else function
        if not callable(method):
            raise InvalidInput(f"{self.kind}: a {type(method).__name__}; give a name or a function")
        plain = getattr(method, "func", method)
        name = getattr(method, "__name__", getattr(plain, "__name__", type(plain).__name__))
        if isinstance(method, partial) and hasattr(plain, _MARK):
            _check_options(f"{self.kind} {name}", plain, method.keywords)
        return name, cast("F", method if hasattr(plain, _MARK) else _named(f"{self.kind} {name} fails", method))


def described_methods(place: str) -> dict[str, str]:
    """Name -> first line of the docstring, as `Methods` has them at that place, read from the source: it is not run."""
    path = Path(__file__).parents[2].joinpath(*place.split(".")[1:])
    files = sorted(file for file in path.glob("*.py") if not file.name.startswith("_"))
    rows: list[tuple[int, str, str]] = []
    for file in files or [path.with_suffix(".py")]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (marked := _decorator(node)) is not None:
                given = {each.arg: each.value for each in marked.keywords if each.arg in ("rank", "aliases")}
                rows.extend(_rows(node, {name: ast.literal_eval(value) for name, value in given.items()}))
    return {name: text for _, name, text in sorted(rows, key=lambda row: row[0])}


def _decorator(function: ast.FunctionDef) -> ast.Call | None:
    """The call of `method` above a function; None where there is none."""
    calls = (each for each in function.decorator_list if isinstance(each, ast.Call))
    return next((each for each in calls if isinstance(each.func, ast.Name) and each.func.id == method.__name__), None)


def _rows(function: ast.FunctionDef, options: dict[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Rank, name and text of a method and of its aliases."""
    rank, text = options.get("rank", 99), (ast.get_docstring(function) or "").partition("\n")[0]
    yield rank, function.name, text
    for alias, set_options in options.get("aliases", {}).items():
        yield rank, alias, f"{_option_text(function.name, set_options)}: {text}"


def _option_text(name: str, options: Mapping[str, Any]) -> str:
    return f"{name}:{','.join(f'{option}={value}' for option, value in options.items())}"


def _named(failure: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function, whose errors say that it is theirs."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        from mixbit.core.io.user_code import users_code  # noqa: PLC0415 it loads torch

        with users_code(failure):
            return function(*args, **options)

    return call


def _marked(place: str) -> Iterator[Callable[..., Any]]:
    """The marked functions that the module, or the files of the folder, define."""
    package = importlib.import_module(place)
    names = sorted(file.name for file in pkgutil.iter_modules(getattr(package, "__path__", ())))
    files = (importlib.import_module(f"{place}.{name}") for name in names if not name.startswith("_"))
    for module in (package, *files):
        for value in vars(module).values():
            if inspect.isfunction(value) and hasattr(value, _MARK) and value.__module__ == module.__name__:
                yield value


def read_options(kind: str, name: str, function: Callable[..., Any], text: str) -> dict[str, Any]:
    """The options of a text such as `multiplier=4,criterion=absolute`; what an alias stands for is not among them."""
    set_already = function.keywords if isinstance(function, partial) else {}
    options = {option: parameter for option, parameter in _options(function).items() if option not in set_already}
    has = (
        f"its options are {', '.join(options)}, as in {name}:{next(iter(options))}=..., each once"
        if options
        else "it has none"
    )
    values: dict[str, Any] = {}
    for part in text.split(","):
        option, _, value = part.partition("=")
        if option not in options or not value or option in values:
            raise InvalidInput(f"{kind} {name}: option {part!r} is not understood; {has}")
        values[option] = _read(f"{kind} {name}: {option}={value}", value, options[option].annotation)
    _check_options(f"{kind} {name}", function, values)
    return values


def _read(place: str, text: str, hint: Any) -> Any:
    """The text as a value of a type: bool, int, float or str; a Literal stays a text."""
    wanted, _ = _type_and_bounds(hint)
    if wanted is bool:
        if text not in ("true", "false"):
            raise InvalidInput(f"{place}: give true or false")
        return text == "true"
    if get_origin(wanted) is Literal:
        return text
    try:
        return wanted(text)
    except ValueError:
        raise InvalidInput(f"{place}: not {'a whole number' if wanted is int else 'a number'}") from None


def _check_options(place: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a value that the option's annotation does not allow; Python refuses unknown options."""
    for option, parameter in _options(function).items():
        value, (wanted, bounds) = options.get(option), _type_and_bounds(parameter.annotation)
        if option not in options or (value is None and type(None) in get_args(parameter.annotation)):
            continue
        if get_origin(wanted) is Literal:
            pick(f"{place}: {option}", str(value), get_args(wanted))
        if wanted not in (int, float):
            continue
        limits = [(*_BOUNDS[type(bound)], *astuple(bound)) for bound in bounds]
        is_number = isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool)
        is_number = is_number and math.isfinite(cast("float", value))
        if not (is_number and all(holds(value, limit) for _, holds, limit in limits)):
            ranges = " and ".join(f"{words} {limit}" for words, _, limit in limits)
            words = ", ".join(filter(None, ["a whole number" if wanted is int else "", ranges])) or "a finite number"
            example = "" if parameter.default is None else f", as {parameter.default}"
            raise InvalidInput(f"{place}: {option}={value!r}: give {words}{example}")


def _type_and_bounds(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """`int` and `(Ge(1),)` of `Annotated[int, Ge(1)] | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


@cache
def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function, or of that behind a partial, by name."""
    parameters = inspect.signature(getattr(function, "func", function), eval_str=True).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
