"""Files of JSON: each is checked as it is read."""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import quoted, read_bytes
from mixbit.core.io.versions import Versions

M = TypeVar("M")
#: Largest file of JSON, in bytes.
MOST_JSON = 64 * 2**20
#: Values in a file of JSON, and in one of tables. A value of three bytes takes some 70 in memory, a wrong one 1,500.
MOST_VALUES, MOST_TABLE_VALUES = 2**18, 2**22
#: Keys of one object.
MOST_KEYS = 2**16


def read_json(path: Path) -> Any:
    """Read one JSON value; raises InvalidInput where the file cannot be read, or is not what `json_of` takes."""
    return json_of(read_bytes(path, MOST_JSON), path, most_values=MOST_TABLE_VALUES)


def json_of(text: str | bytes, place: str | Path, *, most_values: int = MOST_VALUES, only_finite: bool = True) -> Any:
    """One JSON value, as RFC 8259 has it: each key once, numbers that are finite, at most 200 levels, whole characters.

    Raises InvalidInput, which names the place, for anything else, for whole numbers of more than 64 bits, and for more
    values than are asked for.
    """
    content = text.encode(errors="replace") if isinstance(text, str) else text
    if content.count(b",") + content.count(b"[") + content.count(b"{") > most_values:
        raise InvalidInput(f"{place}: cannot be read (more than {most_values:,} values)")
    number = _finite if only_finite else float
    try:
        from_json(text)  # not UTF-8, half characters, endless brackets
        return json.loads(
            text, object_pairs_hook=_each_once, parse_constant=number, parse_float=number, parse_int=_whole
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{place}: not valid JSON ({error})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {quoted(name)} stands twice")
    if len(fields) > MOST_KEYS:
        raise ValueError(f"an object of more than {MOST_KEYS:,} keys")
    return fields


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{quoted(text)} is no finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"{quoted(text)} does not fit into 64 bits")
    return number


def read_model(
    path: Path, model: type[M], what: str, *, versions: Versions | None = None, most_values: int = MOST_VALUES
) -> M:
    """Read a file of JSON as a pydantic model; raises InvalidInput, which names the first problem, for another."""
    return model_of(read_bytes(path, MOST_JSON), path, model, what, versions=versions, most_values=most_values)


def model_of(
    text: str | bytes,
    place: str | Path,
    model: Any,
    what: str,
    *,
    versions: Versions | None = None,
    most_values: int = MOST_VALUES,
) -> Any:
    """JSON text as a type that pydantic knows; raises InvalidInput, which names its place and the first problem.

    With `versions`, what is of an older version is lifted first. The type refuses numbers that are not finite, so that
    the message names their field. pydantic lists all problems: where there may be millions of values, lists are to end
    at the first.
    """
    content = json_of(text, place, most_values=most_values, only_finite=False)
    if versions is not None and (lifted := versions.lifted(content, place, what)) is not content:
        text = json.dumps(lifted)
    try:
        return _adapter(model).validate_json(text)
    except ValidationError as error:
        raise InvalidInput(f"{place}: not {what}: {first_problem(error)}") from error
    except InvalidInput as error:  # of a check in the type
        raise InvalidInput(f"{place}: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Where a value is wrong, why, and what was found: `layers.conv: Input should be a valid string (found 3)`."""
    problem = error.errors()[0]
    at = ".".join(str(part) for part in problem["loc"])[:200] or "the file"
    return f"{at}: {problem['msg'].removeprefix('Value error, ')} (found {quoted(problem['input'])})"


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)  # milliseconds each
