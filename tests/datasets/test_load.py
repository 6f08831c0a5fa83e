"""What DATA is refused for, and what is said of options that a form does not take."""

import pytest
from torch import nn

from mixbit.core.errors import InvalidInput
from mixbit.datasets.load import Reading
from mixbit.models.load import LoadedModel
from tests.datasets.given import load_data

MODEL = LoadedModel(nn.Linear(3, 2))


def test_a_text_that_names_nothing_is_answered_with_all_forms_and_the_nearest(tmp_path):
    (tmp_path / "pictures").mkdir()
    forms = r"give .*data.npz.*text.txt.*file.py:function"
    with pytest.raises(InvalidInput, match=rf"no such file or folder \(did you mean pictures\?\); {forms}"):
        load_data(str(tmp_path / "picture"), MODEL)
    (tmp_path / "net.py").write_text("")
    with pytest.raises(InvalidInput, match=r"names no function of the file; write .*net.py:FUNCTION"):
        load_data(str(tmp_path / "net.py"), MODEL)
    (tmp_path / "a.parquet").write_text("")
    with pytest.raises(InvalidInput, match="a file of a kind that is not known; give"):
        load_data(str(tmp_path / "a.parquet"), MODEL)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors", "a.txt", "a.csv", "a.zip"])
def test_a_missing_file_is_called_missing(name, tmp_path):
    with pytest.raises(InvalidInput, match=f"{name}: no such file"):
        load_data(str(tmp_path / name), MODEL)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0: give a whole number from 1"),
        ({"length": 0}, "--length 0: give a whole number from 1"),
        ({"image_size": (0, 4)}, "--image-size"),
        ({"std": (0.0,)}, "give finite numbers above 0"),
        ({"mean": (1.0, 2.0), "std": (1.0, 2.0, 3.0)}, "--mean has 2 channels and --std 3"),
    ],
)
def test_numbers_out_of_range(reading, message):
    with pytest.raises(InvalidInput, match=message):
        load_data("a.npz", MODEL, Reading(**reading))


def test_options_that_a_function_does_not_take_are_named(tmp_path, capsys):
    (tmp_path / "net.py").write_text("import torch\ndef data():\n    return [torch.zeros(2, 3)]\n")
    load_data(f"{tmp_path}/net.py:data", MODEL, Reading(batch_size=4, length=3))
    assert "--batch-size, --length: not used for file.py:function" in capsys.readouterr().err
