"""`verify(..., layers=True)`: the first tensor inside an artefact that differs from the simulation."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core import Inputs, Task
from mixbit.core.errors import InvalidInput
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.roundings.quantize import quantize
from mixbit.targets._layers import first_difference, some_of, watched
from mixbit.targets.export import export
from mixbit.targets.verify import verify
from tests.networks import Net, plan_of, scheme_of_bytes

PARTS = {"a": (3, 8), "b": (8, 8), "c": (8, 8)}
NAMES = ["a.weight", "b.weight", "c.weight", "l.weight"]


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.l(net.c(net.b(net.a(x).relu()).relu()).sigmoid().mean((2, 3))),
        **{name: nn.Conv2d(*channels, 3, padding=1) for name, channels in PARTS.items()},
        l=nn.Linear(8, 4),
    ).eval()
    return capture(net, images()[:2])


def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def simulated(graph, target, schemes):
    return quantize(graph, plan_of(graph.layers, dict(zip(NAMES, schemes, strict=True)), target), [images()])


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert"])
@pytest.mark.parametrize("kind", ["a8", pytest.param("", marks=pytest.mark.slow)])
def test_the_first_layer_that_differs_is_named(graph, target, kind, tmp_path):
    pytest.importorskip(target)
    widest, narrowest = scheme_of_bytes(target) if kind else "w8", f"w2{kind}"
    right = simulated(graph, target, [widest] * 4)
    wrong = simulated(graph, target, [widest, narrowest, widest, narrowest])
    for name, quantized in (("right", right), ("wrong", wrong)):
        export(quantized, tmp_path / name)
    compared = {
        name: verify(tmp_path / name, graph, right, [images()], task=Task.regression(), layers=True)
        for name in ("right", "wrong")
    }
    assert compared["right"].first_difference is None
    first = compared["wrong"].first_difference
    assert first.layer == "b.weight"
    assert first.tensor == ("quantized relu_1" if kind else "b.weight")
    assert first.relative_rms > 0.1
    assert ("int8" in first.executed) == bool(kind)
    assert "the first of " in str(compared["wrong"])


def test_what_only_fusions_change_is_found_one_by_one(graph, tmp_path):
    """A stand-in for a runtime that is wrong where no other tensor is an output."""
    simulation = simulated(graph, "onnxruntime", ["w8"] * 4)
    tensors = watched(simulation, Inputs.of(images()[:4]))
    assert [tensor.name for tensor in tensors] == NAMES

    def load(_, names):
        wrong = [name for name, _ in names] == ["c.weight"]
        held = {tensor.name: tensor.numbers + wrong for tensor in tensors}
        return lambda _: {name: held[name] for name, _ in names}

    target = dataclasses.replace(find_target("onnxruntime"), load_tensors=load)
    runner = dataclasses.make_dataclass("Ran", ["executed"])(lambda: {"c.weight": "Conv float32"})
    for one_by_one, layer in ((True, "c.weight"), (False, None)):
        first = first_difference(target, tmp_path, runner, tensors, [], 0.03, one_by_one=one_by_one)
        assert (first and first.layer) == layer
    with pytest.raises(InvalidInput, match="nothing but PyTorch"):
        first_difference(find_target("packed"), tmp_path, runner, tensors, [], 0.03, one_by_one=False)


def test_some_numbers_are_spread_over_the_whole_tensor():
    values = some_of(np.arange(10_000).reshape(100, 100))
    assert len(values) == 1024
    assert (values[0], values[-1]) == (0, 9999)
    assert np.diff(values).max() <= 10
    assert some_of(np.arange(3)).tolist() == [0, 1, 2]
