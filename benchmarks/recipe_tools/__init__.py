"""The tools of `benchmarks.recipes`, each a file that runs in an environment of its own, without mixbit.

A file has `REQUIREMENTS`, what pip installs there, `ALONE`, what it then installs without dependencies; `PLAN`, layer
-> scheme, for the network of the file; `FLOAT`, what the tool calls float; and `apply(recipe) -> {layer: Read}`, which
imports the tool. Nothing else lists it.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def load(name: str) -> ModuleType:
    """The module of that tool, one of NAMES."""
    return import_module(f"benchmarks.recipe_tools.{name}")
