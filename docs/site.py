"""Hooks of mkdocs: the notebooks in `examples/` become pages, as they are stored, with what they showed."""

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page `notebooks/NAME.md` for each notebook."""
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(_part(cell)) for cell in cells)
        source = f"\n\nThis page is the notebook `examples/{path.name}`.\n"
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text + source))
    return files


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
