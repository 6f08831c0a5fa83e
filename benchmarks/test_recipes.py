"""What counts as the same bits, and that mixbit writes the plan of every tool's script; no tool is needed."""

import pytest

from benchmarks import recipe_tools
from benchmarks.recipes import differs
from mixbit.core import Plan, Scheme
from mixbit.recipes import RECIPES
from mixbit.recipes.recipe import recipe


@pytest.mark.parametrize(
    ("scheme", "weight", "taken", "levels", "expected"),
    [
        ("w4a8", 4, 8, (15, 64), False),
        ("w4a8", 4, 8, (17, 64), True),  # more values than 4 bits hold
        ("w4a8", 4, 8, (8, 64), True),  # as few as 3 bits hold
        ("w4a8", 8, 8, (15, 64), True),
        ("w4a8", 4, "float32", (15, 64), True),
        ("w8", 8, "float32", (9, 9), False),  # nine numbers alone
        ("w8", 8, "float32", (2, 256), True),  # scales that were never set
        ("float", "float32", "float32", (64, 64), False),
        ("float", 8, "float32", (64, 64), True),
        ("float16", "float16", "float32", (64, 64), False),
    ],
)
def test_bits_and_values_are_compared(scheme, weight, taken, levels, expected) -> None:
    read = {"weight": weight, "input": taken, "levels": levels}
    assert differs(Scheme.parse(scheme), read, "float32") is expected


def test_every_tool_has_a_script_whose_plan_is_written() -> None:
    assert set(recipe_tools.NAMES) == set(RECIPES)
    for name in recipe_tools.NAMES:
        layers = recipe_tools.load(name).PLAN
        assert len({*layers.values()}) > 5
        assert recipe(Plan(target="packed", fingerprint="", layers=layers), name)
