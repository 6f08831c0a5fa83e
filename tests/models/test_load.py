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
    (tmp_path / "net.pkl").write_text("")
    with pytest.raises(InvalidInput, match=r"a file of a kind that is not known; give"):
        load_model(str(tmp_path / "net.pkl"))


def test_a_spec_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    assert absolute("net") == str(tmp_path / "net")
    assert absolute("net.py:model") == f"{tmp_path}/net.py:model"
    assert absolute("package.net:model") == "package.net:model"
