"""Figures of the source: lines, files, imports, and the names that say how it is built.

    python benchmarks/figures_of_source.py [FOLDER ...]

A folder is a package's source, `src/mixbit` by default. An arrow joins a file with a file of the package that it
imports, wherever in the file the import stands; the longest chain is counted in files, cycles taken as one step.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path


def arrows(package: Path) -> dict[str, set[str]]:
    """File -> the files of the package that it imports, as dotted names below the package."""
    paths = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    names = {name.removesuffix("__init__").removesuffix("."): name for name in paths}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            for module, attribute in wanted:
                if module.split(".")[0] == package.name:
                    below = module.removeprefix(package.name).removeprefix(".")
                    found[name].add(names.get(f"{below}.{attribute}".strip("."), names.get(below, name)))
        found[name].discard(name)
    return found


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest path of imports."""
    waiting: set[str] = set()

    @cache
    def chain(name: str) -> tuple[str, ...]:
        waiting.add(name)
        longest = max((chain(other) for other in sorted(graph[name] - waiting)), key=len, default=())
        waiting.discard(name)
        return (name, *longest)

    return list(max(map(chain, sorted(graph)), key=len))


def functions(tree: ast.AST) -> list[int]:
    """Lines of every function."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [(node.end_lineno or 0) - node.lineno + 1 for node in ast.walk(tree) if isinstance(node, kinds)]


def figures(package: Path) -> dict[str, str]:
    """Name -> figure."""
    texts = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    graph = arrows(package)
    chain, count = longest_chain(graph), sum(map(len, graph.values()))
    sizes = [size for text in texts.values() for size in functions(ast.parse(text))]
    everything = "\n".join(texts.values())
    top = [path for path in package.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name[0] != "_")]
    outside = sum(text.count("find_layers(") for path, text in texts.items() if path.parent.name != "graph")
    broad = len(re.findall(r"except [^:\n]*\b(?:Base)?Exception\b", everything))
    return {
        "files": f"{len(texts)}",
        "lines": f"{sum(lines.values())}",
        "lines that are not blank": f"{sum(bool(line.strip()) for line in everything.splitlines())}",
        "longest file": f"{max(lines.values())} ({max(lines, key=lines.__getitem__).relative_to(package)})",
        "functions over 40 lines": f"{sum(size > 40 for size in sizes)} of {len(sizes)}",
        "arrows": f"{count}, {count / len(texts):.1f} a file",
        "longest chain": f"{len(chain)} ({' > '.join(chain)})",
        "broad excepts": f"{broad}",
        "subclasses of fx.Interpreter": f"{len(re.findall(r'class .*Interpreter', everything))}",
        "calls of find_layers outside graph/": f"{outside}",
        "rooms and modules at the top": f"{len(top)}",
    }


if __name__ == "__main__":
    for folder in sys.argv[1:] or [str(Path(__file__).parents[1] / "src" / "mixbit")]:
        print(folder)
        for name, figure in figures(Path(folder)).items():
            print(f"  {name}: {figure}")
