"""Tensors come back to the bit with their question; what is something else is refused and stays."""

import pytest
import safetensors.torch
import torch

from mixbit.core.errors import InvalidInput
from mixbit.core.io.store import keep, take_up


def test_what_was_kept_last_comes_back(tmp_path):
    path = tmp_path / "new" / "part.safetensors"
    assert take_up(path) is None
    tensors = {"a": torch.rand(3, 2).t().requires_grad_(), "b": torch.tensor(7)}
    keep(path, "first", tensors)
    keep(path, "second", tensors, notes="[0.1]")
    question, found, notes = take_up(path) or ("", {}, "")
    assert (question, notes) == ("second", "[0.1]")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [one.name for one in path.parent.iterdir()] == ["part.safetensors"]


def test_nothing_is_kept_without_a_path():
    keep(None, "question", {"a": torch.ones(1)})
    assert take_up(None) is None


@pytest.mark.parametrize("content", [b"pickle", b"", safetensors.torch.save({"a": torch.ones(1)})])
def test_another_file_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "part.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"part\.safetensors: .*delete it"):
        take_up(path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InvalidInput, match="choose another folder"):
        take_up(tmp_path / "taken" / "part.safetensors")
