"""Files made wrong: by bytes, and by what their JSON says."""

import json
import random
from typing import Any

#: What stands where a value belongs.
VALUES = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e308, 10**18, 2**63, 2**64, 10**30, "", " ", "0", "float",
    "w4a8", "w9a9", "..", "../../etc/passwd", "/dev/zero", "a\x00b", "\x1b[31m", "[red]", "\u202e", "\U0001f600",
    "é" * 300, [], {}, [[]], [None], {"": None}, [0] * 50, {"a": {"a": {"a": 1}}}, "nan", "classification", "packed",
    "multi:0=regression",
)  # fmt: skip
#: What stands there as text, and is no JSON, or none that a reader should take.
TEXTS = (
    "NaN", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "0x10", "01", "1.", "'a'", '"\\ud800"', '"\\u0000"',
    "[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000, '{"a":' * 150 + "1" + "}" * 150, "{", "}", ",", "", "/*", "tru", '"',
    "\\", "\x00",
)  # fmt: skip


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a key may stand twice."""


class Text(str):
    """What is written as it stands."""


def parsed(text: str | bytes) -> Any:
    """JSON whose objects are Pairs."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(value: Any) -> str:
    """The text of a value that `parsed` made."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def mutated_json(text: str | bytes, rng: random.Random) -> bytes:
    """JSON with one to three changes: a value, a key, its order, its number."""
    value = parsed(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    return written(value).encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one change, in a place as deep as chance has it."""
    if not isinstance(value, list) or not value or rng.random() < 0.15:
        return _another(value, rng)
    value = type(value)(value)
    place = rng.randrange(len(value))
    if rng.random() < 0.6:
        if isinstance(value, Pairs):
            value[place] = (value[place][0], _changed(value[place][1], rng))
        else:
            value[place] = _changed(value[place], rng)
        return value
    match rng.randrange(5):
        case 0:
            del value[place]
        case 1:
            value.insert(rng.randrange(len(value) + 1), value[place])  # of an object, a key twice
        case 2:
            rng.shuffle(value)
        case 3:
            value.insert(place, (_name(rng), _nasty(rng)) if isinstance(value, Pairs) else _nasty(rng))
        case 4 if isinstance(value, Pairs):
            value[place] = (_name(rng), value[place][1])
        case _:
            del value[place:]
    return value


def _another(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, -value, value * 1e6, value / 3, value * (1 + 1e-9), str(value), [value]))
    if isinstance(value, str) and value and rng.random() < 0.4:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice("aw48\x00é/. ") + value[place + 1 :]
    return _nasty(rng)


def _nasty(rng: random.Random) -> Any:
    return Text(rng.choice(TEXTS)) if rng.random() < 0.3 else rng.choice(VALUES)


def _name(rng: random.Random) -> str:
    return rng.choice(("", "a", "version", "layers", "loss", "model", "__class__", "\x1b[0m", "..", "é" * 100))


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, taken out, doubled, or written over."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 2, 8, 100))
        match rng.randrange(6):
            case 0 | 1 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case _:
                changed[place : place + length] = rng.randbytes(length)
    return bytes(changed)


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A header with other shapes, types, places, names or metadata; or the numbers behind it."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    match rng.randrange(4):
        case 0:
            data = mutated_bytes(data, rng)
        case 1:
            header = mutated_json(header, rng)
        case 2:  # metadata holds texts of JSON
            fields = parsed(header)
            for place, (name, value) in enumerate(fields):
                if name == "__metadata__" and value:
                    at = rng.randrange(len(value))
                    key, text = value[at]
                    try:
                        text = mutated_json(text, rng).decode("utf-8", "replace")
                    except ValueError:
                        text = str(rng.choice(VALUES))
                    value[at] = (key, text)
                    fields[place] = (name, value)
            header = written(fields).encode("utf-8", "surrogatepass")
        case _:
            return (rng.choice((0, 1, length + 1, 2**31, 2**62, 2**63 + 7))).to_bytes(8, "little") + header + data
    return len(header).to_bytes(8, "little") + header + data


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """One line of JSON changed, gone, or twice."""
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case _:
            lines[place] = mutated_json(lines[place], rng) + b"\n"
    return b"".join(lines)
