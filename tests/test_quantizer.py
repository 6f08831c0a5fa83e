import copy

import pytest
import torch
from torch import nn

from mixbit import affine
from mixbit.quantizer import Quantizer, quantize_dequantize
from mixbit.scheme import Format

WEIGHT = Format(4, "channel", symmetric=True)
ACTIVATION = Format(8, "tensor", symmetric=False)


def weight_quantizer(axis=1, channels=4):
    torch.manual_seed(0)
    scale = torch.rand(channels) / 4 + 0.1
    return Quantizer("a.weight", WEIGHT, axis, scale, torch.zeros(channels))


def activation_quantizer():
    return Quantizer("relu", ACTIVATION, None, torch.tensor(0.02), torch.tensor(100.0))


@pytest.mark.parametrize("make", [weight_quantizer, activation_quantizer])
def test_forward_is_quantize_then_dequantize(make):
    quantizer = make()
    x = 2 * torch.randn(3, 4, 5)
    factors, limits = (quantizer.scale, quantizer.zero_point), quantizer.format.integer_range
    integers = affine.quantize(x, *factors, quantizer.axis, *limits)
    assert torch.equal(quantizer(x), affine.dequantize(integers, *factors, quantizer.axis))
    assert quantizer.integers(x).dtype == torch.int32
    assert torch.equal(quantizer.integers(x).float(), integers)
    assert integers.min() == limits[0]
    assert integers.max() == limits[1]  # the test reaches both ends
    assert torch.equal(quantizer(quantizer(x)), quantizer(x))


@pytest.mark.parametrize("make", [weight_quantizer, activation_quantizer])
def test_gradients_pass_inside_the_range_only(make):
    quantizer = make()
    x = (3 * torch.randn(3, 4, 5)).requires_grad_()
    slopes = torch.randn(3, 4, 5)
    quantizer(x).backward(slopes)
    scale = affine.along(quantizer.scale, quantizer.axis, x.shape)
    position = x.detach() / scale + affine.along(quantizer.zero_point, quantizer.axis, x.shape)
    low, high = quantizer.format.integer_range
    inside = (position >= low - 0.5) & (position <= high + 0.5)
    assert 0 < inside.sum() < inside.numel()
    assert torch.equal(x.grad, slopes * inside)


@pytest.mark.parametrize("make", [weight_quantizer, activation_quantizer])
def test_a_learned_scale_gets_its_share_of_the_gradient(make):
    quantizer, x, slopes = make(), torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    fixed = quantizer(x)
    arguments = (quantizer.scale, quantizer.zero_point, quantizer.axis, quantizer.format.integer_range)
    _, expected = affine.straight_through(x, *arguments, slopes)
    scale = quantizer.learn_scale(0.25)
    assert dict(quantizer.named_parameters()) == {"scale": scale}
    again = copy.deepcopy(quantizer)
    for one in (quantizer, again):
        assert torch.equal(one(x), fixed)
        one(x).backward(slopes)
        torch.testing.assert_close(one.scale.grad, 0.25 * expected)
    quantizer.settle_scale()
    assert not list(quantizer.parameters())
    assert torch.equal(quantizer(x), fixed)


def test_a_learned_scale_stays_positive_and_finds_back():
    quantizer = activation_quantizer()
    quantizer.learn_scale()
    with torch.no_grad():
        quantizer.scale.fill_(-1)
    output = quantizer(torch.ones(3))
    assert (output > 0).all()
    output.sum().backward()
    assert quantizer.scale.grad > 0
    quantizer.settle_scale()
    assert quantizer.scale > 0


@pytest.mark.parametrize("make", [weight_quantizer, activation_quantizer])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_operator_keeps_torchs_contract(make, requires_grad):
    quantizer = make()
    x = torch.randn(3, 4, 5, requires_grad=requires_grad)
    axis = -1 if quantizer.axis is None else quantizer.axis
    arguments = (x, quantizer.scale, quantizer.zero_point, axis, *quantizer.format.integer_range, quantizer.tensor)
    torch.library.opcheck(quantize_dequantize, arguments)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch says it of its own trees
def test_it_exports_as_one_node_that_names_its_tensor():
    quantizer = activation_quantizer()
    program = torch.export.export(
        nn.Sequential(quantizer, nn.ReLU()), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).run_decompositions({})
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls] == ["mixbit.quantize_dequantize.default", "aten.relu.default"]
    assert calls[0].args[3:] == (-1, 0, 255, "relu")
    x = torch.randn(7, 4)
    assert torch.equal(program.module()(x), quantizer(x).relu())


def test_only_what_is_stored_is_in_the_state():
    assert set(weight_quantizer().state_dict()) == {"scale"}
    assert set(activation_quantizer().state_dict()) == {"scale", "zero_point"}
    assert "a.weight, bits=4, axis=1" in repr(weight_quantizer())


def test_float64_stays_float64():
    x = torch.randn(3, 4, dtype=torch.float64)
    assert activation_quantizer()(x).dtype == torch.float64
