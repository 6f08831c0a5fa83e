"""A room imports only rooms before it; methods do not import one another; what must stay light loads no torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mixbit
from tests.gate import FEW

PACKAGE = Path(mixbit.__file__).parent
ROOMS = (
    "core", "graph", "searches", "recipes", "quantization", "training", "metrics", "roundings", "pruning", "targets",
    "metric_study", "results", "report", "pipeline", "models", "datasets", "demo", "app",
)  # fmt: skip
METHODS = ("searches", "recipes", "metrics", "roundings", "targets", "models", "datasets")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, by name after `mixbit.`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("mixbit.") for name in names if name.startswith("mixbit.")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_a_room_imports_only_rooms_before_it():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)
    for path in PACKAGE.rglob("*/*.py"):
        room = ROOMS.index(path.relative_to(PACKAGE).parts[0])
        for name in imports(path):
            assert ROOMS.index(name.split(".")[0]) <= room, f"{path} imports {name}"
            by_door = not name.startswith("core.") or name.count(".") == 1
            assert room == 0 or by_door, f"{path} imports {name}, not from mixbit.core"
            own = ROOMS.index(name.split(".")[0]) == room
            assert own or not any(map(is_private, name.split("."))), f"{path} imports {name}, of another room"


def test_methods_do_not_import_one_another():
    for room in METHODS:
        verbs = {
            "measure",
            "search",
            "front",
            "quantize",
            "export",
            "verify",
            "latency",
            "time_plans",
            "timed",
            "faster",
            "size",
            "load",
            "recipe",
            "__init__",
        }
        for path in (PACKAGE / room).glob("*.py"):
            for name in imports(path):
                module = name.split(".")[1] if name.startswith(f"{room}.") else "_"
                assert path.stem in verbs or module.startswith("_") or module in verbs, f"{path} imports {name}"


def test_search_never_loads_torch():
    code = "import sys, mixbit.searches.search; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_core_loads_torch_for_the_names_that_need_it():
    code = "import sys, mixbit.core as core; print('torch' in sys.modules, callable(core.Task), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False True True\n"
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from mixbit.core import nothing  # noqa: F401


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, mixbit; print(*{'torch', 'numpy', 'scipy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_every_public_name_loads():
    assert len(mixbit.__all__) == 17
    for name in mixbit.__all__:
        assert callable(getattr(mixbit, name)), name
    assert set(mixbit.__all__) <= set(dir(mixbit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mixbit.nothing  # noqa: B018


@pytest.mark.parametrize("name", sorted(mixbit._MOVED))
def test_a_name_that_has_moved_says_where_to(name):
    with pytest.raises(AttributeError, match=f"mixbit.{name} has moved: ") as caught:
        getattr(mixbit, name)
    place = str(caught.value).partition(": ")[2]
    if place.startswith("mixbit.") and place[7:].replace(".", "").replace("_", "").isalpha() and place[7].islower():
        module, _, attribute = place.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), place


def test_families_of_which_few_cases_run_are_there():
    for name in FEW:
        file, _, function = name.partition("::")
        assert f"\ndef {function}(" in (Path(__file__).parent / file).read_text(), name
