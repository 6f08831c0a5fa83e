"""onnxruntime's second file: weights that are too many for the first lie there, and nothing else changes."""

import dataclasses
import os
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core import InvalidInput, TargetMismatch, UnsupportedModel, find_target
from mixbit.graph.capture import capture
from mixbit.pipeline.auto import auto_quantize
from mixbit.roundings.quantize import quantize
from mixbit.targets import onnxruntime as target_file
from mixbit.targets.export import export
from mixbit.targets.size import file_bytes
from tests.networks import ANYTHING, plan_of

onnx, ir = pytest.importorskip("onnx"), pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

FILE, DATA = "model.onnx", "model.onnx.data"
#: Layer -> scheme: one for each way in which weights are stored.
SCHEMES = {
    "0.weight": "w8a8", "2.weight": "w4a8", "4.weight": "w3a8", "6.weight": "w5", "9.weight": "w4g32",
    "11.weight": "float16", "13.weight": "float", "15.weight": "w7za8", "17.weight": "w6a8@2:4",
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The simulation, its inputs, and folders with its weights in one file and in two."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(a, 16, 3, padding=1) for a in (3, 16, 16, 16)]
    linears = [nn.Linear(a, 64) for a in (256, 64, 64, 64, 64)]
    parts = [part for conv in convolutions for part in (conv, nn.ReLU())] + [nn.Flatten()]
    net = nn.Sequential(*parts, *[part for linear in linears for part in (linear, nn.ReLU())]).eval()
    x = torch.randn(8, 3, 4, 4)
    graph = capture(net, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, SCHEMES, "onnxruntime"), [x])
    place = tmp_path_factory.mktemp("beside")
    export(simulated, place / "one")
    with mock.patch.object(target_file, "MOST_INSIDE", 0):
        export(simulated, place / "two")
    return simulated, [x.numpy()], place / "one", place / "two"


def initializers(folder):
    proto = onnx.load(folder / FILE)
    return {each.name: (each.data_type, [*each.dims], each.raw_data) for each in proto.graph.initializer}


def test_the_file_stays_as_it_was_where_the_weights_fit(case, tmp_path):
    from mixbit.targets._onnx import converted

    simulated, _, one, _ = case
    assert sorted(os.listdir(one)) == [FILE, "plan.json"]
    model = converted(simulated)
    ir.save(model, tmp_path / FILE)
    assert (one / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    held = sum(len(content) for _, _, content in initializers(one).values())
    for most, names in {held: [FILE], held - 1: [FILE, DATA]}.items():
        with mock.patch.object(target_file, "MOST_INSIDE", most):
            export(simulated, tmp_path / str(most))
        assert sorted(os.listdir(tmp_path / str(most))) == [*names, "plan.json"]


def test_two_files_hold_the_same_numbers_and_take_their_bytes(case):
    _, _, one, two = case
    assert sorted(os.listdir(two)) == [FILE, DATA, "plan.json"]
    assert initializers(one) == initializers(two)
    inside = onnx.load(two / FILE, load_external_data=False).graph.initializer
    assert {len(each.raw_data) > 1024 for each in inside} == {False}
    assert any(each.raw_data for each in inside)
    large = sum(len(content) for _, _, content in initializers(one).values() if len(content) > 1024)
    assert (two / DATA).stat().st_size == large > 20_000
    target = find_target("onnxruntime")
    assert file_bytes(target, two) == (two / FILE).stat().st_size + large
    assert file_bytes(target, one) == (one / FILE).stat().st_size
    assert target.stored(one) == target.stored(two)


@pytest.mark.usefixtures("apart")
def test_two_files_run_as_one_does_to_the_bit(case):
    simulated, inputs, one, two = case
    target = find_target("onnxruntime")
    target.try_apart(two, inputs)
    first, second = target.load(one), target.load(two)
    for own in (False, True):
        runs = [target.load(folder, default_settings=own).run(inputs)[0] for folder in (one, two)]
        np.testing.assert_array_equal(*runs)
    wanted = simulated(torch.from_numpy(inputs[0])).detach().numpy()
    assert np.abs(second.run(inputs)[0] - wanted).max() < 0.05 * wanted.std()
    assert first.executed() == second.executed()
    assert second.executed().keys() == SCHEMES.keys()
    assert second.profile is not None
    assert {layer for layer, _ in second.profile(inputs)} >= SCHEMES.keys()
    assert target.load_tensors is not None
    inside = [target.load_tensors(folder, [(name, True) for name in SCHEMES])(inputs) for folder in (one, two)]
    assert inside[0].keys() == inside[1].keys() == SCHEMES.keys()
    for name in SCHEMES:
        np.testing.assert_array_equal(inside[0][name], inside[1][name])


def test_an_export_of_fewer_weights_leaves_no_second_file(case, tmp_path):
    simulated, _, one, two = case
    shutil.copytree(two, tmp_path / "out")
    export(simulated, tmp_path / "out", force=True)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(one))


def moved(folder, **places):
    """Say other places of the tensor that lies last; None leaves them out."""
    proto = onnx.load(folder / FILE, load_external_data=False)
    outside = [each for each in proto.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    last = max(outside, key=lambda each: int({entry.key: entry.value for entry in each.external_data}["offset"]))
    said = {entry.key: entry.value for entry in last.external_data} | places
    del last.external_data[:]
    for key, value in said.items():
        if value is not None:
            last.external_data.add(key=key, value=value)
    (folder / FILE).write_bytes(proto.SerializeToString())


DAMAGES = {
    "missing": (lambda folder: (folder / DATA).unlink(), InvalidInput, "model.onnx.data: is missing"),
    "a folder": (
        lambda folder: [(folder / DATA).unlink(), (folder / DATA).mkdir()],
        InvalidInput,
        "not a regular file|Is a directory",
    ),
    "a pipe": (
        lambda folder: [(folder / DATA).unlink(), os.mkfifo(folder / DATA)],
        InvalidInput,
        "model.onnx.data: cannot be read .not a regular file",
    ),
    "a link out": (
        lambda folder: [(folder / DATA).unlink(), (folder / DATA).symlink_to("/etc/passwd")],
        InvalidInput,
        "model.onnx.data: a link out of the folder",
    ),
    "cut short": (
        lambda folder: (folder / DATA).write_bytes((folder / DATA).read_bytes()[:-1]),
        TargetMismatch,
        r"model.onnx.data: ends at byte [0-9,]+, and '.*' at [0-9,]+: copy it again",
    ),
    "empty": (lambda folder: (folder / DATA).write_bytes(b""), TargetMismatch, "ends at byte 0, and"),
    "renamed": (
        lambda folder: [shutil.copy(folder / DATA, folder / "other"), moved(folder, location="other")],
        TargetMismatch,
        "stored in another file",
    ),
    "in a folder": (lambda folder: moved(folder, location=f"./{DATA}"), TargetMismatch, "stored in another file"),
    "nowhere": (lambda folder: moved(folder, location=None), TargetMismatch, "stored in another file"),
    "before the file": (lambda folder: moved(folder, offset="-1"), TargetMismatch, "does not say at which bytes"),
    "after the file": (lambda folder: moved(folder, offset="99999999"), TargetMismatch, "ends at byte"),
    "of unknown length": (lambda folder: moved(folder, length=None), TargetMismatch, "does not say at which bytes"),
    "of a word": (lambda folder: moved(folder, length="many"), TargetMismatch, "does not say at which bytes"),
    "of a long number": (lambda folder: moved(folder, length="9" * 5000), TargetMismatch, "does not say at which"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_by_every_reader(case, damage, tmp_path):
    folder, target = tmp_path / "out", find_target("onnxruntime")
    shutil.copytree(case[3], folder)
    change, kind, text = DAMAGES[damage]
    change(folder)
    assert target.load_tensors is not None
    for read in (target.load, target.stored, target.check_files, lambda folder: target.load_tensors(folder, [])):
        with pytest.raises(kind, match=text):
            read(folder)


def test_a_length_that_is_not_the_tensors_own_is_refused_by_the_runtime(case, tmp_path):
    shutil.copytree(case[3], tmp_path / "out")
    moved(tmp_path / "out", length="1")
    with pytest.raises(TargetMismatch, match=r"model.onnx: onnxruntime cannot load it"):
        find_target("onnxruntime").load(tmp_path / "out")


def test_a_link_within_the_folder_is_read(case, tmp_path):
    _, inputs, _, two = case
    (tmp_path / "all").mkdir()
    for name in (FILE, DATA):
        shutil.copy(two / name, tmp_path / "all" / f"{name}-1")
        (tmp_path / "all" / name).symlink_to(f"{name}-1")
    target = find_target("onnxruntime")
    np.testing.assert_array_equal(target.load(tmp_path / "all").run(inputs), target.load(two).run(inputs))


@pytest.mark.usefixtures("anything")
def test_weights_that_one_file_cannot_hold_are_refused_before_the_work(monkeypatch, tmp_path):
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).eval()
    graph = capture(net, torch.randn(4, 8))
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", "anything"), [torch.randn(4, 8)])
    num_bytes = 1 + 1 + 4 * (4 + 2)  # weights of this target take a byte a layer, biases stay in float
    for most, kind in {num_bytes: NotImplementedError, num_bytes - 1: UnsupportedModel}.items():
        monkeypatch.setattr("tests.networks.TARGET", dataclasses.replace(ANYTHING, most_bytes=most))
        with pytest.raises(
            kind, match=None if most == num_bytes else "weights take 26 bytes, and its file ends at 25;"
        ):
            export(simulated, tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="the weights in float, which a run is compared with, take 26 bytes"):
        auto_quantize(net, [torch.randn(4, 8)] * 4, target="anything", plan=simulated.plan, out=tmp_path / "out")
    assert os.listdir(tmp_path) == []
