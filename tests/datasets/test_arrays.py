"""Arrays in files: names, types, labels, and how much of a file is read."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mixbit.core.batches import split_all, split_batches
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.datasets import load
from mixbit.datasets.load import Reading
from mixbit.models.load import LoadedModel
from tests.datasets.given import load_data


class Two(nn.Module):
    def forward(self, ids, mask, scale=None):
        return ids * mask


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


TWO, ONE = LoadedModel(Two()), LoadedModel(nn.Linear(3, 2))


def rows(spec, model=ONE, **reading):
    """All samples in one batch."""
    (batch,) = load_data(str(spec), model, Reading(batch_size=100, **reading)).batches
    return batch


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive_go_to_the_inputs_of_their_names(save, tmp_path):
    save(tmp_path / "a.npz", ids=np.arange(14).reshape(7, 2), mask=np.ones((7, 2), bool), labels=np.arange(7))
    ids, mask, labels = rows(tmp_path / "a.npz", TWO)
    assert [value.dtype for value in (ids, mask, labels)] == [torch.int64, torch.bool, torch.int64]
    assert labels.tolist() != list(range(7)), "in an order of its own"
    assert torch.equal(ids[:, 0], labels * 2)
    by_name = rows(tmp_path / "a.npz", LoadedModel(Two(), folder=tmp_path))
    assert torch.equal(by_name["ids"], ids)
    assert torch.equal(by_name["labels"], labels)


def test_labels_are_no_input_that_the_model_can_do_without(tmp_path):
    np.savez(tmp_path / "a.npz", mask=np.ones((4, 2)), ids=np.zeros((4, 2)), labels=np.full((4, 1), 0.5))
    ((inputs, labels),) = split_batches(Two(), load.load_data(str(tmp_path / "a.npz"), TWO).batches)
    assert [each.sum().item() for each in inputs.args] == [0, 8], "in the order of the model's arguments"
    assert labels.shape == (4, 1)


def test_inputs_beyond_one_that_is_left_out_go_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)), z=np.ones((4, 2)))

    class Three(nn.Module):
        def forward(self, x, y=0, z=0):
            return x + y + z

    assert set(rows(tmp_path / "a.npz", LoadedModel(Three()))) == {"x", "z"}


def test_all_kinds_of_files_give_the_same(tmp_path):
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "a.npy", values.numpy())
    np.save(tmp_path / "columns.npy", np.asfortranarray(values.numpy()))
    np.save(tmp_path / "big.npy", values.numpy().astype(">f4"))
    np.savez(tmp_path / "columns.npz", anything=np.asfortranarray(values.numpy()))
    safetensors.torch.save_file({"input": values}, tmp_path / "a.safetensors")
    wanted = rows(tmp_path / "a.npy")
    assert {tuple(row) for row in wanted.tolist()} == {tuple(row) for row in values.tolist()}
    for name in ("columns.npy", "big.npy", "columns.npz"):
        assert torch.equal(rows(tmp_path / name), wanted), name
    assert torch.equal(rows(tmp_path / "a.safetensors"), wanted)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (np.float64, torch.float32), (np.float16, torch.float32), (np.longdouble, torch.float32),
        (np.int32, torch.int32), (np.int64, torch.int64), (np.uint16, torch.int32), (np.uint32, torch.int64),
        (np.uint8, torch.uint8), (bool, torch.bool),
    ],
)  # fmt: skip
def test_types(given, made, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), given))
    assert rows(tmp_path / "a.npy").dtype == made


def test_types_are_those_of_the_models_example(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.ones((4, 2), np.int32), mask=np.ones((4, 2), np.int8))
    example = {"ids": torch.zeros(2, 2, dtype=torch.int64), "mask": torch.zeros(2, 2)}
    batch = rows(tmp_path / "a.npz", LoadedModel(Two(), example=example))
    assert (batch["ids"].dtype, batch["mask"].dtype) == (torch.int64, torch.float32)


def test_bytes_stay_bytes_only_where_the_model_takes_them(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    floats = LoadedModel(nn.Conv2d(3, 2, 1), example={"x": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(InvalidInput, match="holds bytes, the model takes floats; --mean 0 --std 1 make them"):
        rows(tmp_path / "a.npy", floats)
    in_bytes = LoadedModel(floats.module, example={"x": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)})
    kept = rows(tmp_path / "a.npy", in_bytes)["x"]
    assert kept.dtype == torch.uint8
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    wanted = (kept.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    got = rows(tmp_path / "a.npy", floats, mean=mean, std=std)["x"]
    torch.testing.assert_close(got.double(), wanted.double(), atol=1e-5, rtol=0)
    np.save(tmp_path / "last.npy", pixels.transpose(0, 2, 3, 1))
    last = rows(tmp_path / "last.npy", floats, mean=mean, std=std)["x"]
    torch.testing.assert_close(last.permute(0, 3, 1, 2), got)
    with pytest.raises(InvalidInput, match="as the model takes them; leave out --mean"):
        rows(tmp_path / "a.npy", in_bytes, mean=mean)
    with pytest.raises(InvalidInput, match="no dimension of 2 channels"):
        rows(tmp_path / "a.npy", floats, mean=(0.0, 1.0))
    capsys.readouterr()
    assert rows(tmp_path / "a.npy", LoadedModel(floats.module)).dtype == torch.uint8
    assert "holds bytes, and is given to the model so" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.float64, bool])
def test_labels_with_one_1_in_each_row_are_class_numbers(kind, tmp_path):
    number = np.arange(6) % 3
    np.savez(tmp_path / "a.npz", input=np.arange(6.0)[:, None], labels=np.eye(3)[number].astype(kind))
    batch = rows(tmp_path / "a.npz")
    pairs = split_all([batch], 1)
    ((_, labels),) = Task.classification().aligned(pairs)
    assert torch.equal(labels, batch[0][:, 0].long() % 3)
    ((_, labels),) = Task.multilabel().aligned(pairs)
    assert labels.shape == (6, 3)


def test_labels_of_names_numbers_and_values(tmp_path):
    values = np.arange(4.0)[:, None]
    np.savez(tmp_path / "a.npz", input=values, y=np.array(["b", "a", "c", "a"]))
    loaded = load_data(str(tmp_path / "a.npz"), ONE)
    (batch,) = loaded.batches
    assert loaded.classes == ("a", "b", "c")
    assert [[1, 0, 2, 0][int(x)] for x in batch[0]] == batch[1].tolist()
    np.savez(tmp_path / "a.npz", input=values, labels=np.arange(4) / 3)
    inputs, labels = rows(tmp_path / "a.npz", task="regression")
    torch.testing.assert_close(labels, inputs / 3)
    np.savez(tmp_path / "a.npz", input=values, labels=np.arange(4.0))
    assert rows(tmp_path / "a.npz")[1].dtype == torch.int64


def test_an_array_named_y_is_an_input_where_the_model_has_one(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), y=np.zeros((3, 2)))
    assert [each.sum() for each in rows(tmp_path / "a.npz", LoadedModel(Sum()))] == [6, 0]


NUMBERS = np.ones((3, 2))
BAD = {
    "other names": ({"tokens": NUMBERS, "mask": NUMBERS}, r"holds 'tokens', 'mask'.*takes ids, mask, scale"),
    "an input missing": ({"ids": NUMBERS}, "needs ids, mask"),
    "numbers of samples": ({"ids": NUMBERS, "mask": np.ones((4, 2))}, r"ids \[3, 2\], mask \[4, 2\]; the first"),
    "labels too few": ({"ids": NUMBERS, "mask": NUMBERS, "labels": np.ones(2)}, r"labels \[2\]; the first"),
    "a single number": ({"ids": np.ones(()), "mask": NUMBERS}, "first dimension of each array must be the samples"),
    "texts": ({"ids": np.array(["a"]), "mask": np.ones((1, 2))}, "holds values of type <U1; inputs are real numbers"),
    "complex": ({"ids": NUMBERS * 1j, "mask": NUMBERS}, "inputs are real numbers"),
    "objects": ({"ids": np.array([{}, 1], object), "mask": NUMBERS}, "cannot be read: .*allow_pickle=False"),
    "no samples": ({"ids": np.ones((0, 2)), "mask": np.ones((0, 2))}, "holds no sample"),
    "labels alone": ({"labels": np.ones(3)}, "holds no array of inputs; the model takes ids, mask, scale"),
    "means for floats": ({"ids": NUMBERS, "mask": NUMBERS}, "--mean and --std are for pictures in bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case, tmp_path):
    given, message = BAD[case]
    np.savez(tmp_path / "a.npz", allow_pickle=True, **given)
    with pytest.raises(InvalidInput, match=message):
        rows(tmp_path / "a.npz", TWO, mean=(0.5,) if "means" in case else None)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
def test_a_damaged_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(InvalidInput, match=f"{name}: cannot be read"):
        rows(tmp_path / name)


def test_a_pickle_is_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print, 1], object), allow_pickle=True)
    with pytest.raises(InvalidInput, match=r"allow_pickle=False|Python objects"):
        rows(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("a.npy", "a.npz")), "a.safetensors"]
)
def test_of_a_large_file_only_the_rows_asked_for_are_read(name, tmp_path):
    """The first batches of a file of 256 MiB take less than 64 MiB of memory."""
    large = np.ones((65536, 1024), np.float32)
    save = {
        "a.npy": lambda path: np.save(path, large),
        "a.npz": lambda path: np.savez(path, input=large),
        "a.safetensors": lambda path: safetensors.torch.save_file({"input": torch.from_numpy(large)}, path),
    }
    save[name](tmp_path / name)
    np.savez(tmp_path / "small.npz", input=np.ones((4, 3), np.float32))
    code = f"""
import resource, safetensors, torch
from mixbit.datasets.load import load_data
from mixbit.models.load import LoadedModel
model = LoadedModel(torch.nn.Linear(3, 2))
list(load_data({str(tmp_path / "small.npz")!r}, model).batches)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = iter(load_data({str(tmp_path / name)!r}, model).batches)
for _ in range(10):
    next(batches)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 1024


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, np.nan, 1]), "1 labels are NaN or infinite; leave these samples out"),
        (np.array(["2020-01-01"] * 3, "M8[D]"), "labels are of type datetime64.D.; give real numbers"),
        (np.array([1j] * 3), "labels are of type complex128"),
        (np.array(["a", None, "b"], dtype=object), "objects of Python are pickles and never loaded: save numbers"),
    ],
)
def test_labels_that_are_none(labels, message, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 3)), labels=labels)
    with pytest.raises(InvalidInput, match=message):
        rows(tmp_path / "a.npz")


def test_a_column_of_class_numbers_is_one_number_a_sample(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(12.0).reshape(4, 3), labels=np.array([[0], [1], [2], [3]]))
    x, labels = rows(tmp_path / "a.npz")
    assert labels.tolist() == (x[:, 0] / 3).tolist()


def test_what_is_no_array_in_an_archive_is_left_alone(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3)))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "of the author")
        archive.writestr("__MACOSX/._x.npy", "of the system")
    assert rows(tmp_path / "a.npz").shape == (4, 3)
