"""Steps come back to the bit with their question; what is something else is refused and stays."""

import numpy as np
import pytest
import safetensors.torch
import torch

from mixbit.core.errors import InvalidInput
from mixbit.core.io.store import Store


def test_what_was_put_last_comes_back(tmp_path):
    store, tensors = Store(tmp_path / "new"), {"a": torch.rand(3, 2).t().requires_grad_(), "b": torch.tensor(7)}
    assert store.get("part", "first") is None
    store.put("part", "first", tensors)
    store.put("part", {"second": (1, 2)}, tensors, [0.1])
    assert store.get("part", "first") is None
    stored = store.get("part", {"second": [1, 2]})
    assert stored is not None
    assert stored.notes == [0.1]
    assert stored.tensors.keys() == tensors.keys()
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in tensors.items())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["part.safetensors"]


def test_numbers_of_numpy_are_numbers(tmp_path):
    store = Store(tmp_path)
    store.put("part", {"lr": np.float64(0.5), "steps": np.int64(3)}, {}, np.float32(0.25))
    stored = store.get("part", {"lr": 0.5, "steps": 3})
    assert stored is not None
    assert stored.notes == 0.25


def test_the_same_step_is_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        Store(tmp_path).put(name, {"question": 1}, {"b": torch.ones(3), "a": torch.zeros(2)}, "notes")
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert one.index(b'"notes"') < one.index(b'"question"')


def test_a_question_is_checked_by_the_fields_that_are_known(tmp_path):
    store = Store(str(tmp_path))
    store.check("part", {"seed": 1})
    store.put("part", {"seed": 1, "data": "x"}, {})
    store.check("part", {"seed": 1})
    for question in ({"seed": 2}, {"seed": 1, "data": "y"}):
        with pytest.raises(InvalidInput, match=r"the checkpoint of another training .* or give --force"):
            store.check("part", question)


def test_nothing_is_stored_without_a_folder():
    store = Store(None)
    store.put("part", "question", {"a": torch.ones(1)})
    store.check("part", {"other": "question"})
    assert store.get("part", "question") is None


@pytest.mark.parametrize("content", [b"pickle", b"", safetensors.torch.save({"a": torch.ones(1)})])
def test_another_file_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "part.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"part\.safetensors: .*delete it"):
        Store(tmp_path).get("part", "question")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new"), [(b"noted", b"Noted"), (b"\x00\x00\x80\x3f", b"\x00\x00\x80\xbf"), (b'"a"', b'"b"')]
)
def test_a_part_that_changed_since_is_not_taken_up(tmp_path, old, new):
    store = Store(tmp_path)
    store.put("part", "question", {"a": torch.ones(1)}, "noted")
    assert store.get("part", "question").notes == "noted"
    path = tmp_path / "part.safetensors"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InvalidInput, match="not what was written"):
        store.get("part", "question")


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InvalidInput, match="choose another folder"):
        Store(tmp_path / "taken").get("part", "question")
    for folder in ("", 3):
        with pytest.raises(InvalidInput, match="give the path of a folder"):
            Store(folder)  # type: ignore[arg-type] what a user may get wrong


def test_clearing_leaves_what_is_someone_elses(tmp_path):
    store = Store(tmp_path / "parts")
    store.put("part", {"seed": 0}, {"a": torch.ones(3)})
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    store.clear()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes.txt"]
    (tmp_path / "parts" / "notes.txt").unlink()
    store.clear()
    assert list(tmp_path.iterdir()) == []
