import importlib

import pytest
import torch
from torch import nn

from mixbit.core import find_target
from mixbit.core.scheme import Format, Scheme
from mixbit.graph import graph as graph_module
from mixbit.graph.capture import capture
from mixbit.quantization.affine import dequantize, min_max_factors, quantize
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.rows import few_rows_of
from mixbit.quantization.scales import growth, shares, weight_quantizer
from tests.networks import OPERATORS, Net, batches_of, captured_operator


def channel_format(bits):
    return Format(bits, "channel", symmetric=True)


def calibrated(kind):
    _, x, graph = captured_operator(kind)
    torch.manual_seed(1)
    layers = graph.layers
    batches = batches_of(torch.randn(6, *x.shape[1:], dtype=torch.float64) + 0.5, 4)
    return graph, layers[0], calibrate(graph, batches)


def rounded(weight, scale, axis, fmt):
    zero = torch.zeros_like(scale)
    return dequantize(quantize(weight, scale, zero, axis, *fmt.integer_range), scale, zero, axis)


def output_error(graph, layer, calibration, scale, fmt):
    """[channels] mean square of the operators' output error, each channel's mean taken off where a bias can."""
    weight = graph.module.get_parameter(layer.name).detach()
    error = rounded(weight, scale, layer.axis, fmt) - weight
    total = torch.zeros(layer.shape[layer.axis], dtype=weight.dtype)
    for operation in layer.operations:
        if operation.input is None:
            continue
        output = graph.run(operation, calibration.samples[operation.node][0], error)
        rows = output.movedim(-1 if operation.channels_last else 1, 0).flatten(1)
        for channel, values in enumerate(rows):  # groups of a transposed convolution share the weight's channels
            mean = values.mean() if operation.takes_bias else 0
            total[channel % len(total)] += ((values - mean) ** 2).mean()
    return total


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", [kind for kind in OPERATORS if "embedding" not in kind])
def test_each_channel_takes_the_ratio_with_the_least_output_error(kind, bits):
    graph, layer, calibration = calibrated(kind)
    fmt = channel_format(bits)
    widest = min_max_factors(graph.module.get_parameter(layer.name).detach(), layer.axis, fmt)[0]
    ratios = shares(layer, fmt).double()
    errors = torch.stack([output_error(graph, layer, calibration, ratio * widest, fmt) for ratio in ratios])
    scale = weight_quantizer(graph, layer, fmt, calibration).scale
    chosen = output_error(graph, layer, calibration, scale, fmt)
    torch.testing.assert_close(chosen, errors.amin(0))
    assert (chosen <= errors[0]).all()  # never worse than min-max, channel by channel


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(8, 5), (8,)), (nn.Linear(8, 5, bias=False), (3, 8)), (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5))],
)
def test_each_group_takes_the_ratio_with_the_least_error_of_its_own(module, shape):
    graph = capture(Net(lambda net, x: net.a(x), a=module).double(), torch.randn(3, *shape, dtype=torch.float64))
    ((layer, operation),) = graph.operations.values()
    calibration = calibrate(graph, batches_of(torch.randn(9, *shape, dtype=torch.float64) + 0.5, 4))
    weight, ratios = graph.module.get_parameter(layer.name).detach(), shares(layer, channel_format(3)).double()
    fmt = Format(3, "group", symmetric=True, group=weight[0].numel() // 2)
    widest = min_max_factors(weight, 0, fmt)[0]
    found = weight_quantizer(graph, layer, fmt, calibration).scale / widest
    for group in range(2):
        errors = []
        for ratio in ratios:
            error = (rounded(weight, ratio * widest, 0, fmt) - weight).reshape(len(weight), 2, -1)
            error[:, 1 - group] = 0
            output = graph.run(operation, calibration.samples[operation.node][0], error.reshape(weight.shape))
            rows = output.movedim(-1 if operation.channels_last else 1, 0).flatten(1)
            errors.append(rows.var(1, unbiased=False) if operation.takes_bias else rows.square().mean(1))
        torch.testing.assert_close(found[:, group], ratios[torch.stack(errors).argmin(0)])
    assert (found[:, 0] != found[:, 1]).any()


def test_clipping_is_chosen_somewhere():
    """With min-max scales throughout, the test above could not fail in its second half."""
    graph, layer, calibration = calibrated("conv2d")
    fmt = channel_format(2)
    widest = min_max_factors(graph.module.get_parameter(layer.name).detach(), layer.axis, fmt)[0]
    scale = weight_quantizer(graph, layer, fmt, calibration).scale
    assert (scale < 0.99 * widest).any()
    chosen, extremes = (output_error(graph, layer, calibration, one, fmt).sum() for one in (scale, widest))
    assert chosen < 0.9 * extremes


@pytest.mark.parametrize("kind", ["conv2d", "grouped", "conv_transpose2d, grouped", "matmul, transposed"])
def test_ratios_may_run_in_several_goes(kind, monkeypatch):
    graph, layer, calibration = calibrated(kind)
    together = weight_quantizer(graph, layer, channel_format(3), calibration).scale
    calibration.weight_factors.clear()
    monkeypatch.setattr(importlib.import_module("mixbit.quantization.scales"), "FEW_ELEMENTS", 1)
    assert graph_module.FEW_ELEMENTS > 1
    assert torch.equal(weight_quantizer(graph, layer, channel_format(3), calibration).scale, together)


def test_an_embedding_keeps_min_max_scales():
    graph, layer, calibration = calibrated("embedding")
    fmt = channel_format(4)
    quantizer = weight_quantizer(graph, layer, fmt, calibration)
    assert torch.equal(quantizer.scale, min_max_factors(graph.module.get_parameter("a.weight"), 0, fmt)[0])
    assert (quantizer.tensor, quantizer.axis, quantizer.format) == ("a.weight", 0, fmt)


def test_a_shared_weight_is_scaled_for_all_its_operators():
    net = Net(lambda net, x: net.a(net.a(x).relu()), a=nn.Linear(4, 4)).double()
    graph = capture(net, torch.randn(3, 4, dtype=torch.float64))
    (layer,) = graph.layers
    calibration = calibrate(graph, batches_of(torch.randn(9, 4, dtype=torch.float64), 4))
    fmt = channel_format(2)
    widest = min_max_factors(net.a.weight.detach(), 0, fmt)[0]
    candidates = shares(layer, fmt).double()
    errors = torch.stack([output_error(graph, layer, calibration, ratio * widest, fmt) for ratio in candidates])
    chosen = output_error(graph, layer, calibration, weight_quantizer(graph, layer, fmt, calibration).scale, fmt)
    torch.testing.assert_close(chosen, errors.amin(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_channels_of_one_value_and_of_zeros_are_kept(bits):
    net = Net(lambda net, x: net.a(x), a=nn.Linear(4, 3))
    with torch.no_grad():
        net.a.weight[0] = 0.0
        net.a.weight[1] = -0.25
    graph = capture(net, torch.randn(3, 4))
    (layer,) = graph.layers
    calibration = calibrate(graph, batches_of(torch.randn(9, 4), 4))
    quantizer = weight_quantizer(graph, layer, channel_format(bits), calibration)
    assert torch.isfinite(quantizer.scale).all()
    assert (quantizer.scale > 0).all()
    torch.testing.assert_close(quantizer(net.a.weight)[:2], net.a.weight[:2])


def test_scales_are_worked_out_once():
    graph, layer, calibration = calibrated("linear")
    first = weight_quantizer(graph, layer, channel_format(4), calibration)
    assert weight_quantizer(graph, layer, channel_format(4), calibration).scale is first.scale
    assert set(calibration.weight_factors) == {("a.weight", channel_format(4), False)}


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_where_integers_are_coded_a_scale_is_worth_its_error_and_the_bits_that_its_integers_take(bits, granularity):
    graph, layer, calibration = calibrated("conv2d")
    fmt = Format(bits, granularity, symmetric=True)
    weight, ratios = graph.module.get_parameter(layer.name).detach(), shares(layer, fmt).double()
    widest = min_max_factors(weight, layer.axis, fmt)[0]
    errors = torch.stack([output_error(graph, layer, calibration, ratio * widest, fmt) for ratio in ratios])
    steps = (ratios.unsqueeze(1) * widest).expand(-1, len(weight))
    taken = torch.log2(1 + 12 * weight.square().flatten(1).mean(1) / steps**2) / 2
    if granularity == "tensor":
        errors, taken = errors.sum(1, keepdim=True), taken.mean(1, keepdim=True)
    calibration = calibration.for_target(find_target("ethosu"))
    scale = weight_quantizer(graph, layer, fmt, calibration).scale
    torch.testing.assert_close(scale, ratios[(errors.log2() / 2 + taken).argmin(0)] * widest)


def test_the_bits_of_coded_integers_are_about_their_entropy():
    """Of normal numbers, in steps of an eighth to three times their deviation."""
    torch.manual_seed(0)
    rows = torch.randn(1, 10**6)
    for step in (0.125, 0.5, 1.0, 2.0, 3.0):
        counts = torch.unique((rows / step).round(), return_counts=True)[1]
        shares_of = counts / counts.sum()
        entropy = float(-(shares_of * shares_of.log2()).sum())
        bits = float(growth(rows, torch.ones(1), torch.tensor([step])).log2() / 2)
        # a step for each bit less, and at most a quarter of a bit above, as codes of one number at a time are
        assert bits - 0.05 < entropy < bits + 0.27


def test_scales_of_targets_that_code_integers_are_kept_beside_the_others():
    graph, layer, calibration = calibrated("conv2d")
    fmt, coded = Format(4, "tensor", symmetric=True), calibration.for_target(find_target("ethosu"))
    scales = [weight_quantizer(graph, layer, fmt, each).scale for each in (calibration, coded, calibration, coded)]
    assert torch.equal(scales[0], scales[2])
    assert torch.equal(scales[1], scales[3])
    assert set(calibration.weight_factors) == {(layer.name, fmt, False), (layer.name, fmt, True)}
    assert calibration.for_target(find_target("litert")) is calibration
    for_one = calibrate(graph, calibration.batches, target="ethosu")
    assert for_one.for_target(find_target("ethosu")) is for_one


def test_scales_beside_zeros_are_the_same_where_integers_are_coded():
    graph, layer, calibration = calibrated("conv2d")
    coded, fmt = calibration.for_target(find_target("ethosu")), Scheme.parse("w4a8@50%").weight
    found, plain = (weight_quantizer(graph, layer, fmt, each).scale for each in (coded, calibration))
    assert torch.equal(found, plain)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_scales_are_wider_where_integers_are_coded(granularity):
    graph, layer, calibration = calibrated("conv2d")
    coded = calibration.for_target(find_target("ethosu"))
    for bits in (2, 4, 8):
        fmt = Format(bits, granularity, symmetric=True)
        finer, wider = (weight_quantizer(graph, layer, fmt, each).scale for each in (calibration, coded))
        assert (wider >= finer).all()
        assert (wider > finer).any()


def test_small_layers_try_more_scales_and_coarser_ones():
    net = Net(lambda net, x: net.b(net.a(x)), a=nn.Linear(8, 512), b=nn.Linear(512, 2048))
    graph = capture(net, torch.randn(3, 8))
    many, few = (shares(layer, channel_format(4)) for layer in graph.layers)
    assert (len(many), len(few)) == (100, 12)
    assert (float(many[0]), float(few[0])) == (1, 1)
    assert float(many.max()) == pytest.approx(1.3)
    assert float(few.max()) == 1


def test_weights_that_cancel_out_do_so_rounded_too():
    """A filter that answers to changes alone: at the min-max scale its rounded weights would answer to brightness."""
    torch.manual_seed(0)
    net = Net(lambda net, x: net.a(x), a=nn.Conv2d(8, 8, 3, padding=1, groups=8)).double()
    with torch.no_grad():
        net.a.weight -= net.a.weight.mean((1, 2, 3), keepdim=True)
    smooth = 5 * torch.randn(16, 8, 1, 1).double() + 0.01 * torch.randn(16, 8, 8, 8).double()
    graph = capture(net, smooth[:4])
    (layer,) = graph.layers
    fmt = channel_format(8)
    calibration = calibrate(graph, list(smooth.split(4)))
    weight = net.a.weight.detach()
    chosen, widest = (
        (rounded(weight, scale, 0, fmt) - weight).sum((1, 2, 3)).square().mean()
        for scale in (weight_quantizer(graph, layer, fmt, calibration).scale, min_max_factors(weight, 0, fmt)[0])
    )
    assert chosen < 0.05 * widest


def test_large_transposed_convolutions_take_scales_too():
    """Of more than 2^20 weights, whose channels are not judged a few at a time."""
    torch.manual_seed(0)
    net = Net(lambda net, x: net.a(x), a=nn.ConvTranspose2d(512, 256, 3, bias=False))
    graph = capture(net, torch.randn(2, 512, 2, 2))
    calibration = calibrate(graph, [torch.randn(2, 512, 2, 2)])
    quantizer = weight_quantizer(graph, graph.layers[0], channel_format(8), calibration)
    assert quantizer.scale.shape == (256,)
    assert (quantizer.scale > 0).all()


@pytest.mark.parametrize(("total", "count"), [(1030, 512), (1050, 512), (2310, 512), (512, 512), (7, 512)])
def test_rows_that_scales_are_chosen_on_are_as_many_as_asked_for(total, count):
    net = Net(lambda net, x: net.a(x), a=nn.Linear(3, 4))
    graph = capture(net, torch.randn(2, 3))
    ((operation,),) = (layer.operations for layer in graph.layers)
    x = torch.arange(3.0 * total).reshape(total, 3)
    (rows,) = few_rows_of(graph.node(operation.node), operation, [x], (), count)
    assert len(rows.unique(dim=0)) == len(rows) == min(total, count)
    assert abs(float(rows.mean() / x.mean()) - 1) < 0.05
