"""Trained networks with their data and the measure that their users use: `load(name)`.

Each is a file of this folder with one function, `load() -> Network`; nothing else lists it. Its docstring says where
weights and data come from, and under which licence. They are fetched when first asked for (`MIXBIT_CACHE`), and nothing
of them is in the repository. What is not to be had raises `MissingPackage`.
"""

from importlib import import_module
from pathlib import Path

from benchmarks.networks._network import Measure, Network
from benchmarks.networks._packages import MissingPackage
from mixbit.core.errors import pick

__all__ = ["NAMES", "Measure", "MissingPackage", "Network", "load"]

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))


def load(name: str) -> Network:
    """The network of that name.

    Raises:
        InvalidInput: the name is unknown, or data that the user gives is not there.
        MissingPackage: a package that it needs is not to be had.
    """
    pick("network", name, NAMES)
    try:
        return import_module(f"benchmarks.networks.{name}").load()
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{name}: needs the module {error.name}; pip install '.[dev,text]'") from None
