"""Plans for other tools: each quantizes a small network by the file that mixbit writes, and what it did is read back.

    python -m benchmarks.recipes
    python -m benchmarks.recipes modelopt aimet

Every tool of `benchmarks.recipe_tools` runs in a process and an environment of its own, made by pip in the cache
(`MIXBIT_CACHE`). A row is a layer: its scheme in the plan, the bits of weight and input that the tool's own result has,
and how many different values the weights of a scale take, which bits allow. Exit code 1: some differ.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks import paths, recipe_tools
from benchmarks.networks import MissingPackage
from mixbit.core import Plan, Scheme, pick
from mixbit.recipes.recipe import recipe

#: Widths up to which a weight of some hundred numbers takes more than half of the levels; of wider ones, as many.
FILLED = 5


def environment(tool: str) -> Path:
    """The Python of a tool's environment, which is made where it is not there whole.

    Raises:
        MissingPackage: pip does not install what the tool requires.
    """
    module = recipe_tools.load(tool)
    folder = paths.cache() / "recipes" / tool
    python, whole = folder / "bin" / "python", folder / "whole.txt"
    wanted = "\n".join((*module.REQUIREMENTS, *module.ALONE))
    if not whole.exists() or whole.read_text() != wanted:
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "-q", *module.REQUIREMENTS])
        if module.ALONE:
            _call([str(python), "-m", "pip", "install", "-q", "--no-deps", *module.ALONE])
        whole.write_text(wanted)
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."})
    if done.returncode:
        raise MissingPackage(f"{' '.join(command[:6])}: {done.stderr.strip()[-2000:]}")


def read_back(tool: str) -> dict[str, dict]:
    """Layer -> what the tool made of it by the recipe of its plan."""
    plan = Plan(target="packed", fingerprint="", layers=recipe_tools.load(tool).PLAN)
    with TemporaryDirectory() as folder:
        given, out = Path(folder) / "recipe.yaml", Path(folder) / "read.json"
        given.write_text(recipe(plan, tool), encoding="utf-8")
        _call([str(environment(tool)), "-m", "benchmarks.recipe_tools._read", tool, str(given), str(out)])
        return json.loads(out.read_text())


def differs(scheme: Scheme, read: dict, in_float: str) -> bool:
    """Whether the tool's layer has other bits than the scheme, or more or fewer values than these bits allow."""
    stored = in_float if scheme.weight is None else scheme.weight.floating or scheme.weight.bits
    taken = in_float if scheme.input is None else scheme.input.bits
    if (read["weight"], read["input"]) != (stored, taken):
        return True
    if not isinstance(stored, int):
        return False
    different, numbers = read["levels"]
    fewest = min(2 ** (min(stored, FILLED) - 1) + 1, numbers // 2)
    return not fewest <= different <= 2**stored


def shown(tool: str, console: Console) -> int:
    """Print a tool's layers, and return how many differ."""
    layers, module = read_back(tool), recipe_tools.load(tool)
    table = Table(title=f"{tool}: {', '.join(module.ALONE or module.REQUIREMENTS[1:])}")
    for column in ("layer", "plan", "weight", "input", "values", ""):
        table.add_column(column)
    wrong = 0
    for layer, text in module.PLAN.items():
        read = layers.get(layer)
        if read is None:
            wrong += 1
            table.add_row(layer, text, "", "", "", "not there")
            continue
        other = differs(Scheme.parse(text), read, module.FLOAT)
        wrong += other
        values = "{} of {}".format(*read["levels"])
        table.add_row(layer, text, str(read["weight"]), str(read["input"]), values, "differs" if other else "same")
    console.print(table)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=", ".join(recipe_tools.NAMES))
    tools = [pick("tool", tool, recipe_tools.NAMES) for tool in parser.parse_args().tools] or recipe_tools.NAMES
    console = Console(width=None if sys.stdout.isatty() else 120)
    wrong = sum(shown(tool, console) for tool in tools)
    print(f"{wrong} layers differ")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
