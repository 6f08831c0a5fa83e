import copy

import pytest
import torch
from torch import nn

from mixbit.core.scheme import Format, Scheme
from mixbit.quantization import affine
from mixbit.quantization.quantizer import Quantizer, quantize_at_run_time, quantize_dequantize, run_time_quantizer

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
    limits = quantizer.format.integer_range
    arguments = (x, quantizer.scale, quantizer.zero_point, axis, *limits, quantizer.tensor, requires_grad)
    assert set(torch.library.opcheck(quantize_dequantize, arguments).values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch says it of its own trees
def test_it_exports_as_one_node_that_names_its_tensor():
    quantizer = activation_quantizer()
    program = torch.export.export(
        nn.Sequential(quantizer, nn.ReLU()), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).run_decompositions({})
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls] == ["mixbit.quantize_dequantize.default", "aten.relu.default"]
    assert calls[0].args[3:] == (-1, 0, 255, "relu", False)
    x = torch.randn(7, 4)
    assert torch.equal(program.module()(x), quantizer(x).relu())


def test_only_what_is_stored_is_in_the_state():
    assert set(weight_quantizer().state_dict()) == {"scale"}
    assert set(activation_quantizer().state_dict()) == {"scale", "zero_point"}
    assert "a.weight, bits=4, axis=1" in repr(weight_quantizer())


def test_float64_stays_float64():
    x = torch.randn(3, 4, dtype=torch.float64)
    assert activation_quantizer()(x).dtype == torch.float64


VALUES = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 + 1


def at_run_time(scheme, device="cpu"):
    return run_time_quantizer("x", Scheme.parse(scheme).input, torch.device(device))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("x", [VALUES, VALUES.abs() + 1, -VALUES.abs() - 1, torch.zeros_like(VALUES)])
def test_a_range_of_the_tensor_is_onnxs(x, bits):
    """DynamicQuantizeLinear's formula, number by number."""
    low, high, last = min(0.0, x.min().item()), max(0.0, x.max().item()), 2**bits - 1
    scale = (high - low) / last or 1.0
    zero = min(max(round(-low / scale), 0), last)
    wanted = [(min(max(round(one / scale) + zero, 0), last) - zero) * scale for one in x.flatten().tolist()]
    torch.testing.assert_close(at_run_time(f"w8a{bits}d")(x).flatten(), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(("scheme", "size"), [("w8a8dr", 12), ("w8a8dg4", 4), ("w8a4dg6", 6), ("w8a8dg5", 12)])
def test_a_range_of_rows_and_their_groups_is_that_of_each_alone(scheme, size):
    """Groups that do not divide a row are the row."""
    last = 2 ** (Scheme.parse(scheme).input_bits - 1) - 1
    x = VALUES.clone()
    x[1, 2] = 0
    parts = []
    for part in x.reshape(-1, size):
        scale = part.abs().max().item() / last or 1.0
        parts.append(torch.tensor([round(one / scale) * scale for one in part.tolist()], dtype=torch.float64))
    torch.testing.assert_close(at_run_time(scheme)(x), torch.stack(parts).reshape(x.shape))


@pytest.mark.parametrize("x", [VALUES, VALUES.abs() + 1, torch.zeros_like(VALUES)])
def test_a_range_of_rows_with_zero_points_is_that_of_each_alone(x):
    rows = torch.stack([at_run_time("w8a8d")(row) for row in x.reshape(-1, x.shape[-1])])
    torch.testing.assert_close(at_run_time("w8a8drz")(x), rows.reshape(x.shape), rtol=0, atol=0)


@pytest.mark.parametrize("scheme", ["w8a8d", "w8a8dr", "w8a8drz", "w8a8dg4"])
def test_ranges_at_run_time_pass_gradients_store_nothing_and_export_as_one_node(scheme):
    quantizer, x = at_run_time(scheme), VALUES.float().requires_grad_()
    quantizer(x).backward(torch.ones_like(x))
    assert torch.equal(x.grad, torch.ones_like(x))
    assert quantizer.state_dict() == {}
    exported = torch.export.export(quantizer, (VALUES.float(),))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert names == ["mixbit.quantize_at_run_time.default"]
    group, zeros = 4 if scheme[-1] == "4" else 0, scheme[-1] == "z"
    torch.library.opcheck(quantize_at_run_time, (x, 8, scheme != "w8a8d", group, "x", zeros))


@pytest.mark.parametrize(("kind", "largest"), [("float16", 65504.0), ("bfloat16", 3.3895313892515355e38)])
def test_small_floats_saturate(kind, largest):
    one = torch.ones(1)
    quantizer = Quantizer("w", Scheme.parse(kind).weight, 0, one, torch.zeros_like(one))
    x = torch.tensor([1e5, -1e5, 3.4e38, 1.0 + 2**-12, 0.0])
    found = quantizer(x)
    assert found.isfinite().all()
    assert found[2] == pytest.approx(largest)
    assert torch.equal(found[:2], x[:2].clamp(-largest, largest).to(getattr(torch, kind)).float())
    assert quantizer.state_dict() == {}
