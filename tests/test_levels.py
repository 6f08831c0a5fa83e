"""A module imports only modules of its own level or of a lower one; methods do not import one another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mixbit

PACKAGE = Path(mixbit.__file__).parent
LEVELS = (
    {"errors", "progress", "interrupts", "files", "kept", "journal", "options", "workers"},
    {"scheme", "sensitivity", "budget", "plan", "task", "batches", "target", "nncf_config"},
    {"affine", "moments", "means", "histogram", "ranges", "quantizer", "search", "ranking", "sparsity"},  # numbers only
    {
        "arguments",
        "exporting",
        "nodes",
        "operators",
        "samples",
        "fold",
        "graph",
        "layers",
        "between",
        "features",
        "fitting",
        "flavours",
        "liveness",
        "uncovered",
    },
    {
        "calibrate",
        "biases",
        "correction",
        "batchnorm",
        "equalize",
        "scales",
        "estimate",
        "identity",
        "simulate",
        "reconstruction",
        "blockwise",
        "rounding",
        "quantization",
        "integers",
        "metrics",
        "pruning",
    },
    {
        "targets",
        "measurement",
        "evaluation",
        "training",
        "latency",
        "scoring",
        "choosing",
        "timing",
        "picture",
        "verification",
        "check",
        "result",
    },
    {"studies"},
    {
        "printing",
        "specs",
        "recheck",
        "settings",
        "decision",
        "run",
        "deployment",
        "pipeline",
        "demo",
        "commands",
        "cli",
        "__init__",
        "__main__",
    },
)
METHOD_FOLDERS = {"metrics", "search", "targets", "rounding"}


def level(module: str) -> int:
    for number, names in enumerate(LEVELS):
        if module.split(".", 1)[0] in names:
            return number
    raise AssertionError(f"{module}: give this module a level")


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, by name after `mixbit.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("mixbit.") for name in found if name.startswith("mixbit.")}


def test_modules_import_their_level_or_lower():
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in imports(path):
            assert level(name) <= level(module), f"{module} imports {name}, of a higher level"


def test_methods_do_not_import_one_another():
    for folder in METHOD_FOLDERS:
        for path in (PACKAGE / folder).glob("*.py"):
            for name in imports(path):
                sibling = name.startswith(f"{folder}.") and "._" not in name  # _shared.py is no method
                assert not sibling or path.stem == "__init__", f"{path} imports its sibling {name}"


def test_search_never_loads_torch():
    code = "import sys, mixbit.search.ilp; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, mixbit; print(*{'torch', 'numpy', 'scipy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_no_module_takes_the_place_of_a_public_name():
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules & set(mixbit.__all__) == {"search"}  # which can be called: tests/search/test_names.py


def test_every_public_name_loads():
    for name in mixbit.__all__:
        assert callable(getattr(mixbit, name)), name
    assert set(mixbit.__all__) <= set(dir(mixbit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mixbit.nothing  # noqa: B018
