"""The examples run; that of the command line is in test_pages.py."""

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
def test_a_plain_loop_trains(tmp_path, capsys):
    from examples import train_plain

    train_plain.main(tmp_path / "out", epochs=1)
    printed = capsys.readouterr().out
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)%", printed)]
    assert printed.count("; matches") == 2
    assert accuracies[1] >= accuracies[0]


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_trains(tmp_path, capsys):
    pytest.importorskip("lightning")
    from examples import train_lightning

    train_lightning.main(tmp_path / "out", epochs=1)
    assert "; matches" in capsys.readouterr().out


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"first_run", "metrics_and_plans", "training"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages of Jupyter
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored(path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from examples.run_notebooks import run

    assert shown(run(path)) == shown(nbformat.read(path, as_version=4))


def shown(notebook):
    """What cells print, without digits, and where they draw."""
    outputs = [(number, output) for number, cell in enumerate(notebook.cells) for output in cell.get("outputs", ())]
    return [(number, output.output_type, re.sub(r"\d+", "", output.get("text", ""))) for number, output in outputs]
