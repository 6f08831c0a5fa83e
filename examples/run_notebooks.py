"""Runs the notebooks beside this file, and stores what they show: python -m examples.run_notebooks."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_S = 600


def run(path: Path) -> Any:
    """The notebook with what its cells show now, run in an empty folder; raises CellExecutionError where one fails."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=LONGEST_S, record_timing=False, resources=place)
        client.execute()
    notebook.metadata = {"language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # progress and warnings differ from machine to machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Run all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    notebooks = parser.parse_args().notebooks
    import nbformat

    for path in notebooks:
        nbformat.write(run(path), path)
        print(path)


if __name__ == "__main__":
    main()
