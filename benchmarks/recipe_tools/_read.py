"""What is read back from a tool's result; `python -m benchmarks.recipe_tools._read TOOL RECIPE OUT` writes JSON."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import recipe_tools

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Read:
    """A layer, as the tool quantized it.

    Attributes:
        weight: Bits of its weight, or the name of a floating-point type.
        input: Bits of its input, likewise.
        levels: The largest number of different values among the weights that share a scale, and how many these are.
    """

    weight: int | str
    input: int | str
    levels: tuple[int, int]


def levels(weight: Any, groups: int = 1) -> tuple[int, int]:
    """The largest number of different values in a group of a row [rows, ...] of a tensor, and the group's length."""
    rows = weight.reshape(weight.shape[0] * groups, -1)
    return max(len(set(row.tolist())) for row in rows), int(rows.shape[1])


def main() -> None:
    name, given, out = sys.argv[1:]
    layers = recipe_tools.load(name).apply(Path(given))
    Path(out).write_text(json.dumps({layer: asdict(read) for layer, read in layers.items()}))


if __name__ == "__main__":
    main()
