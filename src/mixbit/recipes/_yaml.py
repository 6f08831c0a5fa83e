"""YAML of dicts, lists and scalars, without a package: what is no collection is written as JSON, which YAML takes."""

import json
from typing import Any


def yaml_of(value: dict[Any, Any]) -> str:
    """The dict as a block of YAML; its keys, and those inside, are plain words or whole numbers."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    """Lines of a dict or list; of anything else, and of an empty one, its text."""
    if isinstance(value, dict) and value:
        return [line for key, part in value.items() for line in _entry(f"{key}:", part)]
    if isinstance(value, list) and value:
        blocks = [_lines(part) for part in value]
        return [f"{'- ' if line == 0 else '  '}{text}" for block in blocks for line, text in enumerate(block)]
    return [json.dumps(value, ensure_ascii=False)]


def _entry(key: str, part: Any) -> list[str]:
    lines = _lines(part)
    if isinstance(part, dict | list) and part:
        return [key, *(f"  {line}" for line in lines)]
    return [f"{key} {lines[0]}"]
