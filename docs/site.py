"""Hooks of mkdocs: notebooks in `examples/` become pages with what they showed, and so do tables of capabilities."""

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mixbit.core import TARGETS
from mixbit.targets.capabilities import COLUMNS, between_layers, capabilities, summary

ROOT = Path(__file__).parents[1]
CAPABILITIES = """# What runs where

`mixbit list targets -v` prints these tables, and with `--json` a row for each operator and scheme. The search is
offered what they do not refuse, and tests build each operator in each scheme, run it, and ask the runtime what it
executed and how many bits it stored. `linear` stands for products of matrices too, grouped and depthwise convolutions
are as others. Bits a weight are those of large layers, scales included; those of `ethosu` depend on the numbers.
A table of an embedding has the weight's format; the rows that it returns are in float.
Recurrent layers run in float."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page `notebooks/NAME.md` for each notebook, and `reference/capabilities.md`."""
    files.append(File.generated(config, "reference/capabilities.md", content=_tables()))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(_part(cell)) for cell in cells)
        source = f"\n\nThis page is the notebook `examples/{path.name}`.\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text + source))
    return files


def _tables() -> str:
    """What each target does in each scheme, from the data that the search is offered choices by."""
    parts = [CAPABILITIES]
    for name in TARGETS:
        parts += [f"\n## {name}\n", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        parts += ["| " + " | ".join(line) + " |" for line in summary(capabilities(name))]
        parts.append(f"\n{between_layers(name)}")
    return "\n".join(parts) + "\n"


def _part(cell: dict) -> list[str]:
    """A cell as Markdown: text as it is, code between fences, and behind it what it showed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```\n"]
    for output in cell["outputs"]:
        shown = output.get("data", {})
        if "image/png" in shown:
            image = "".join(shown["image/png"]).replace("\n", "")
            parts.append(f'\n<img alt="what the code above draws" src="data:image/png;base64,{image}">\n')
        else:
            text = "".join(output.get("text", shown.get("text/plain", "")))
            parts.append(f"\n```text\n{text.rstrip()}\n```\n")
    return parts
