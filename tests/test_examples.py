"""The examples run; that of the command line is in test_readme.py."""

import re

import pytest


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
