"""MODEL: which form a text is, and what is said where it is none."""

import pytest
from torch import nn

from mixbit.core.errors import InvalidInput
from mixbit.core.io.user_code import absolute
from mixbit.models.load import load_model


def test_a_function(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef model():\n    return nn.Linear(3, 2)\n")
    loaded = load_model(f"{tmp_path}/net.py:model")
    assert isinstance(loaded.module, nn.Linear)
    assert (loaded.task, loaded.folder, loaded.classes, loaded.example, loaded.causal) == (
        None,
        None,
        None,
        None,
        False,
    )


def test_a_text_that_names_nothing_is_answered_with_all_forms_and_the_nearest(tmp_path):
    (tmp_path / "network").mkdir()
    forms = r"give a folder with config.json and \*.safetensors.*file.py:function or package.module:function"
    with pytest.raises(InvalidInput, match=rf"no such file or folder \(did you mean network\?\); {forms}"):
        load_model(str(tmp_path / "netwrok"))
    (tmp_path / "net.py").write_text("")
    with pytest.raises(InvalidInput, match=r"names no function of the file; write .*net.py:FUNCTION"):
        load_model(str(tmp_path / "net.py"))
    (tmp_path / "net.xyz").write_text("")
    with pytest.raises(InvalidInput, match=r"a file of a kind that is not known; give"):
        load_model(str(tmp_path / "net.xyz"))


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("net.pt", "a function that builds the network"), ("net.safetensors", "file.py:function"), ("net.h5", "tf2onnx")],
)
def test_files_that_people_have_and_that_are_no_network_are_answered_with_the_way_out(name, way_out, tmp_path):
    with pytest.raises(InvalidInput, match="no such file"):
        load_model(str(tmp_path / name))
    (tmp_path / name).write_text("")
    with pytest.raises(InvalidInput, match=f"{name}: a file that ends with .* is not read: .*{way_out}"):
        load_model(str(tmp_path / name))


def test_a_spec_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    assert absolute("net") == str(tmp_path / "net")
    assert absolute("net.py:model") == f"{tmp_path}/net.py:model"
    assert absolute("package.net:model") == "package.net:model"
