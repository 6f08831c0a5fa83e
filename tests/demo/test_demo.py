"""The shipped data and network, and the loop over both runtimes."""

import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

from mixbit.app.commands.demo import RUNTIMES, installed, run_demo
from mixbit.core.errors import InvalidInput
from mixbit.demo import data
from mixbit.demo.network import trained
from mixbit.graph.capture import capture
from mixbit.pipeline import auto
from mixbit.results.result import Result
from mixbit.targets import latency


def test_files_are_small() -> None:
    assert len(files("mixbit.demo").joinpath("digits.safetensors").read_bytes()) <= 130_000
    assert len(files("mixbit.demo").joinpath("digits_net.safetensors").read_bytes()) <= 300_000


def test_images_have_their_documented_range() -> None:
    images, labels = data.images_and_labels()
    assert (images.shape, images.dtype) == ((1797, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), torch.uint8)
    assert (images.min(), images.max()) == (0, 16)
    assert labels.unique().tolist() == list(range(10))


def test_split_is_disjoint_and_complete() -> None:
    (train_images, train_labels), (test_images, test_labels) = data.split()
    assert (len(train_images), len(test_images)) == (1000, 797)
    parts = [{tuple(image.flatten().tolist()) for image in images} for images in (train_images, test_images)]
    assert (len(parts[0]), len(parts[1])) == (1000, 797), "no image stands twice within a part"
    assert not parts[0] & parts[1]
    assert (len(train_labels), len(test_labels)) == (1000, 797)


def test_images_are_those_of_scikit_learn() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = data.images_and_labels()
    ours = np.concatenate([images.reshape(-1, 64).numpy(), labels.numpy()[:, None]], axis=1)
    theirs = np.concatenate([digits.images.reshape(-1, 64), digits.target[:, None]], axis=1)
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [
        (data.train_batches, [64] * 15 + [40]),
        (data.test_batches, [64] * 12 + [29]),
        (data.calibration_batches, [64] * 8),
    ],
)
def test_batches(batches, sizes) -> None:
    parts = batches()
    assert [len(labels) for _, labels in parts] == sizes
    assert all(images.shape == (len(labels), 1, 8, 8) for images, labels in parts)
    assert all((images.dtype, labels.dtype) == (torch.float32, torch.int64) for images, labels in parts)
    images = torch.cat([images for images, _ in parts])
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02


def test_normalise_scales_to_the_unit_interval_first() -> None:
    pixels = torch.arange(17, dtype=torch.uint8).reshape(17, 1, 1)
    expected = torch.tensor([(value / 16 - data.MEAN) / data.STD for value in range(17)])
    torch.testing.assert_close(data.normalise(pixels).flatten(), expected)


def test_calibration_is_the_beginning_of_training() -> None:
    for (images, labels), (expected, classes) in zip(data.calibration_batches(), data.train_batches(), strict=False):
        assert torch.equal(images, expected)
        assert torch.equal(labels, classes)


def test_trained_is_accurate() -> None:
    network = trained()
    assert not network.training
    correct = [network(images).argmax(1) == labels for images, labels in data.test_batches()]
    assert torch.cat(correct).double().mean() >= 0.98


def test_the_demo_takes_the_runtimes_that_are_installed(monkeypatch) -> None:
    assert installed() == list(RUNTIMES)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert installed() == ["onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert installed() == ["packed"]


@pytest.mark.slow
def test_every_network_runs_in_both_runtimes_and_fewer_bits_weigh_less(tmp_path, monkeypatch) -> None:
    graph = capture(trained(), data.calibration_batches()[0][0])
    monkeypatch.setattr(auto, "capture_all", lambda *_: graph)  # all six runs are of this network
    monkeypatch.setattr(latency, "ROUNDS", 20)
    rows = run_demo(tmp_path / "out", installed())
    assert [row.target for row in rows] == ["openvino"] * 3 + ["onnxruntime"] * 3
    assert [row.network.partition(",")[0] for row in rows] == ["float", "int8", "mixed"] * 2
    for row in rows:
        assert row.accuracy >= 0.98, row
        assert row.agreement >= 0.98, row
        assert row.latency_ms > 0, row
    for full, int8, mixed in (rows[:3], rows[3:]):
        assert full.file_bytes > int8.file_bytes > mixed.file_bytes > 0
        assert full.weight_bytes > int8.weight_bytes > mixed.weight_bytes > 0
    names = [f"{row.target}-{row.network.partition(',')[0]}" for row in rows]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for name, row in zip(names, rows, strict=True):
        deployed = Result.load(tmp_path / "out" / name).deployed
        assert (deployed["accuracy"], deployed["file_bytes"]) == (row.accuracy, row.file_bytes)
    with pytest.raises(InvalidInput, match="the folder is not empty"):
        run_demo(tmp_path / "out", installed())
