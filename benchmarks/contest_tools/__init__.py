"""The tools of `benchmarks.contest`, each a file that runs in an environment of its own.

A file has `REQUIREMENTS`, what pip installs into that environment beside torch; `METHODS`, name -> `Method`; and
`quantize(job, method) -> Quantized`, which imports the tool. Nothing else lists it.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def load(name: str) -> ModuleType:
    """The module of that tool, one of NAMES."""
    return import_module(f"benchmarks.contest_tools.{name}")
