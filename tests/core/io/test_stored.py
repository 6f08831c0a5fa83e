"""Tensors that stay in their files, and files that are written tensor by tensor."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mixbit.core.errors import InvalidInput
from mixbit.core.io import stored
from mixbit.core.io.stored import stored_tensors
from mixbit.core.io.tensors import TensorFile

TENSORS = {
    "a": torch.randn(3, 5).bfloat16(),
    "b": torch.randn(7).half(),
    "c": torch.randn(2, 2),
    "d": torch.arange(6).reshape(2, 3),
    "e": torch.tensor(1.5, dtype=torch.float64),
    "f": torch.randn(0, 3),
    "g": torch.tensor([True, False]),
}


@pytest.mark.parametrize("piece", [2, 2**22])
def test_tensors_are_read_as_the_library_reads_them(piece, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", piece)
    save_file(TENSORS, tmp_path / "model.safetensors")
    found = stored_tensors(tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        given = found[name].read()
        assert given.dtype == wanted.dtype
        assert torch.equal(given, wanted), name
        assert found[name].read().data_ptr() != given.data_ptr() or not given.numel()


def test_the_index_names_the_files(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {name: tensor.path.name for name, tensor in stored_tensors(tmp_path).items()} == index["weight_map"]


def test_a_name_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InvalidInput, match=r"two\.safetensors: a is in one\.safetensors too"):
        stored_tensors(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"no \*\.safetensors there"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("kept", [4, 40, -1])
def test_a_file_that_was_cut_is_refused(kept, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        stored_tensors(path)


def test_a_file_that_is_cut_later_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(9)}, path)
    (tensor,) = stored_tensors(path).values()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidInput, match="was cut short"):
        tensor.read()


def test_what_is_written_tensor_by_tensor_is_what_the_library_reads(tmp_path):
    arrays = {name: each.numpy() for name, each in TENSORS.items() if each.dtype != torch.bfloat16}
    arrays["strided"] = np.arange(12, dtype=np.int8).reshape(3, 4).T
    with TensorFile(tmp_path / "one.safetensors") as file:
        for name, array in arrays.items():
            file.add(name, array)
        file.finish({"z": "1", "a": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]
    with safe_open(tmp_path / "one.safetensors", "np") as read:
        assert read.metadata() == {"z": "1", "a": "2"}
        assert set(read.keys()) == arrays.keys()
        for name, array in arrays.items():
            assert read.get_tensor(name).dtype == array.dtype
            assert np.array_equal(read.get_tensor(name), array)
    for name, tensor in stored_tensors(tmp_path / "one.safetensors").items():
        assert tensor.offset % tensor.dtype.itemsize == 0, name
