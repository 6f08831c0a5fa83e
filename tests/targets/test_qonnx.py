"""Target qonnx: Quant nodes of every width round as the simulation does, among operators that hls4ml reads."""

import math

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core.errors import InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.quantizer import activation_quantizers, quantizer_path, weight_quantizers
from mixbit.quantization.ranges import mse
from mixbit.quantization.scales import choose_scales
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from tests.networks import Net, plan_of

pytest.importorskip("qonnx.core.onnx_exec")
QONNX = find_target("qonnx")
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def images(count=16):
    return torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))


#: Networks of one layer.
LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3),
    "padded, strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
    "line": lambda: Net(lambda net, x: net.line(x.flatten(2)), line=nn.Conv1d(4, 6, 5, padding=2)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 5)),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 5, bias=False)),
    "rows": lambda: nn.Linear(6, 5),
    "then clipped from above": lambda: Net(lambda net, x: net.a(x).clamp(max=0.25), a=nn.Conv2d(4, 6, 3)),
    "of numbers from 0 on": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3)),
}


def power_of_two(histogram, fmt):
    scale, zero_point = mse(histogram, fmt)
    return 2.0 ** round(math.log2(scale)), zero_point


def simulated_exactly(network, x, scheme, ranges=power_of_two):
    """The simulation with scales that are powers of two, so that its sums in float32 are exact in any order."""
    torch.manual_seed(0)
    graph = capture(network().eval(), x[:2])
    calibration = calibrate(graph, [x], target="qonnx", ranges=ranges)
    plan = plan_of(graph.layers, scheme, "qonnx")
    for layer in graph.layers:
        fmt = plan.scheme(layer.name).weight
        choose_scales(graph, layer, [fmt], calibration)
        scale, zero_point = calibration.weight_factors[layer.name, fmt, False]
        calibration.weight_factors[layer.name, fmt, False] = scale.log2().round().exp2(), zero_point
    return quantize(graph, plan, calibration)


def returned(simulated, x):
    with torch.no_grad():
        return simulated(x).numpy()


def read(folder):
    return onnx.load(folder / "model.onnx")


def kinds(folder):
    return [node.op_type for node in read(folder).graph.node if node.op_type != "Quant"]


@pytest.mark.parametrize("scheme", ["w7a2", "w3ta5"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_operator_returns_what_the_simulation_does_number_by_number(name, scheme, tmp_path):
    x = images()
    simulated = simulated_exactly(LAYERS[name], x, scheme)
    export(simulated, tmp_path)
    (found,) = QONNX.load(tmp_path).run([x.numpy()])
    assert np.array_equal(found, returned(simulated, x))


@pytest.mark.parametrize("bits", WIDTHS)
def test_quant_nodes_hold_what_the_simulation_rounds_to(bits, tmp_path):
    """Of any scale, and beyond the range."""
    x = images()
    graph = capture(LAYERS["of numbers from 0 on"]().eval(), x[:2])
    simulated = quantize(graph, plan_of(graph.layers, f"w{bits}a{bits}", "qonnx"), [x])
    export(simulated, tmp_path)
    (layer,) = simulated.layers
    weight, activation = weight_quantizers(simulated)[layer.name], activation_quantizers(simulated)["relu"]
    runner = QONNX.load_tensors(tmp_path, [("quantized relu", False), (layer.name, True)])
    found = runner([2 * x.numpy()])
    with torch.no_grad():
        assert np.array_equal(found["quantized relu"], activation(F.relu(2 * x)).numpy())
    assert found[layer.name] == pytest.approx(returned(simulated, 2 * x), abs=1e-5)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in read(tmp_path).graph.initializer}
    scale = stored[f"{layer.name}::scale"]
    assert scale.shape == (6, 1, 1, 1)
    integers = stored[f"{layer.name}::weight"] / scale
    assert np.array_equal(np.rint(integers), weight.integers(simulated.parameter(layer.name)).numpy())
    assert integers == pytest.approx(np.rint(integers), abs=1e-4)


def test_integers_are_signed_where_there_are_numbers_below_zero_and_have_no_zero_points(tmp_path):
    x = images()
    network = lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))  # noqa: E731
    graph = capture(network().eval(), x[:2])
    for calibration in (calibrate(graph, [x], target="qonnx"), calibrate(graph, [x])):
        simulated = quantize(graph, plan_of(graph.layers, "w3a5", "qonnx"), calibration)
        QONNX.write(simulated, tmp_path)
        model = read(tmp_path)
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        quants = {node.input[1]: node for node in model.graph.node if node.op_type == "Quant"}
        for name, signed, bits in (("input_1", 1, 5), ("relu", 0, 5)):
            node = quants[f"{quantizer_path(name, of_weight=False)}.scale"]
            said = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert said == {"signed": signed, "narrow": 0, "rounding_mode": b"ROUND"}
            assert not stored[node.input[2]].any()
            assert stored[node.input[3]] == bits
            assert stored[node.input[3]].shape == ()


def test_a_zero_point_of_ones_own_range_is_kept(tmp_path):
    x = images()
    simulated = simulated_exactly(LAYERS["convolution"], x, "w5a3", ranges=lambda histogram, fmt: (0.5, 3))
    export(simulated, tmp_path)
    (found,) = QONNX.load(tmp_path).run([x.numpy()])
    assert np.array_equal(found, returned(simulated, x))


#: What averages are written as, between two layers.
AVERAGES = {
    "all positions": (lambda x: x.mean((2, 3)), True),
    "all positions, dimensions kept": (lambda x: x.mean((2, 3), keepdim=True).flatten(1), True),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), True),
    "windows": (lambda x: F.avg_pool2d(x, 2).flatten(1), True),
    "windows with counted padding": (lambda x: F.avg_pool2d(x, 3, 1, 1).flatten(1), True),
    "windows of a line": (lambda x: F.avg_pool1d(x.flatten(2), 4).flatten(1), True),
    "windows without their padding": (lambda x: F.avg_pool2d(x, 3, 1, 1, False, False).flatten(1), False),
    "channels": (lambda x: x.mean(1).flatten(1), False),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_over_positions_are_convolutions(name, tmp_path):
    average, as_convolution = AVERAGES[name]
    x = images()
    size = average(torch.zeros(1, 4, 4, 4)).shape[1]
    network = lambda: Net(lambda net, x: net.l(average(net.a(x).relu())), a=nn.Conv2d(4, 4, 3), l=nn.Linear(size, 3))  # noqa: E731
    torch.manual_seed(0)
    graph = capture(network().eval(), x[:2])
    simulated = quantize(graph, plan_of(graph.layers, "w4a4", "qonnx"), [x])
    export(simulated, tmp_path)
    assert {"AveragePool", "ReduceMean"}.isdisjoint(kinds(tmp_path)) == as_convolution
    for count in (1, 5):
        wanted = returned(simulated, x[:count])
        (found,) = QONNX.load(tmp_path).run([x[:count].numpy()])
        assert found.shape == wanted.shape
        assert float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()) < 0.02


def test_averages_of_as_many_positions_in_other_shapes_are_apart(tmp_path):
    def run(net, x):
        x = net.a(x)
        return F.avg_pool2d(x, (4, 4)).flatten(1) + F.avg_pool2d(x, (2, 8)).flatten(1)

    net, x = Net(run, a=nn.Conv2d(4, 4, 1)).eval(), torch.randn(5, 4, 8, 8)
    graph = capture(net, x)
    simulated = quantize(graph, plan_of(graph.layers, "w4", "qonnx"), [x])
    export(simulated, tmp_path / "out")
    (found,) = find_target("qonnx").load(tmp_path / "out", graph).run([x.numpy()])
    torch.testing.assert_close(torch.from_numpy(found), simulated(x).detach())


def test_hls4mls_way_reads_the_file(tmp_path):
    """qonnx's own changes before hls4ml: they leave no operator that hls4ml refuses, and change no output."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
    from qonnx.util.cleanup import cleanup_model

    x = images()
    network = lambda: Net(  # noqa: E731
        lambda net, x: net.l(F.adaptive_avg_pool2d(F.relu(net.b(F.max_pool2d(F.relu(net.a(x)), 2))), 1).flatten(1)),
        a=nn.Conv2d(4, 8, 3), b=nn.Conv2d(8, 8, 2), l=nn.Linear(8, 3, bias=False),
    )  # fmt: skip
    simulated = simulated_exactly(network, x, {"a.weight": "w3ta5", "b.weight": "w5ta3", "l.weight": "w3ta5"})
    export(simulated, tmp_path)
    model = cleanup_model(ModelWrapper(str(tmp_path / "model.onnx")))
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    (found,) = execute_onnx(model, {model.graph.input[0].name: x[:1].numpy()}).values()
    assert np.array_equal(found, returned(simulated, x[:1]))
    read_by_hls4ml = {"Add", "Conv", "Flatten", "MatMul", "MaxPool", "Quant", "Relu", "Reshape", "Transpose"}
    assert {node.op_type for node in model.graph.node} <= read_by_hls4ml
    domains = {node.domain for node in model.graph.node if node.op_type in ("Conv", "MaxPool")}
    assert domains == {"qonnx.custom_op.channels_last"}


@pytest.mark.parametrize("bits", WIDTHS)
def test_qonnx_infers_the_widths_that_are_counted(bits, tmp_path):
    x = images()
    simulated = simulated_exactly(LAYERS["convolution"], x, f"w{bits}a8")
    export(simulated, tmp_path)
    ((_, stored),) = QONNX.stored(tmp_path).items()
    assert stored.types == f"INT{bits}, float32 scale"
    assert stored.weight_bytes == math.ceil(6 * 4 * 9 * bits / 8) + 6 * 4


class Forked(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.left(x) + self.right(x)[:, :, 1:-1, 1:-1]


def test_a_search_chooses_widths_of_activations_one_for_each_tensor(tmp_path):
    torch.manual_seed(0)
    x = images()
    graph = capture(Forked().eval(), x[:2])
    calibration = calibrate(graph, [x], target="qonnx")
    table = mb.measure(graph, calibration, target="qonnx", task="regression", choices=["w2a3", "w3a5", "w5a5", "w6a7"])
    reached = set()
    for ratio in (2, 3, 4, 6):
        plan = mb.search(table, mb.Budget(bit_ops_ratio=ratio))
        widths = {name: Scheme.parse(scheme).input_bits for name, scheme in plan.layers.items()}
        assert widths["left.weight"] == widths["right.weight"]
        reached |= set(widths.values())
    assert len(reached) > 1
    plan = plan_of(graph.layers, {"first.weight": "w3a7", "left.weight": "w2a3", "right.weight": "w5a3"}, "qonnx")
    simulated = quantize(graph, plan, calibration)
    export(simulated, tmp_path)
    (found,) = QONNX.load(tmp_path).run([x.numpy()])
    wanted = returned(simulated, x)
    assert float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()) < 0.02


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("w4g4", "no groups"), ("w4z", "no zero points"), ("w8a8@50%", "no sparsity"), ("float16", "no float16"),
        ("w8a8d", "no dynamic ranges"), ("w8a16", "a2, a3, a4, a5, a6, a7, a8 or float"),
    ],
)  # fmt: skip
def test_what_quant_nodes_do_not_hold_is_refused(scheme, reason):
    assert reason in (QONNX.refuses(Scheme.parse(scheme)) or "")
    with pytest.raises(InvalidInput, match=reason):
        QONNX.schemes([scheme])


def test_an_operator_without_some_of_its_inputs_is_refused(tmp_path):
    """The executor takes the missing input for a tensor without a name."""
    x = images()
    network = lambda: Net(lambda net, x: F.interpolate(net.a(x), scale_factor=2), a=nn.Conv2d(4, 4, 3))  # noqa: E731
    graph = capture(network().eval(), x[:2])
    simulated = quantize(graph, plan_of(graph.layers, "w4a4", "qonnx"), [x])
    with pytest.raises(UnsupportedModel, match="Resize some of whose inputs or outputs are left out"):
        QONNX.write(simulated, tmp_path)


def test_a_file_cut_in_two_is_refused_in_words(tmp_path):
    export(simulated_exactly(LAYERS["convolution"], images(), "w4a4"), tmp_path)
    file = tmp_path / "model.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(TargetMismatch, match=r"model.onnx: (not an ONNX file|qonnx cannot read it)"):
        QONNX.load(tmp_path)
    with pytest.raises(TargetMismatch, match=r"model.onnx: (not an ONNX file|qonnx cannot read it)"):
        QONNX.stored(tmp_path)


def test_other_inputs_are_refused(tmp_path):
    export(simulated_exactly(LAYERS["convolution"], images(), "w4a4"), tmp_path)
    runner = QONNX.load(tmp_path)
    with pytest.raises(TargetMismatch, match="takes 1 inputs, the model 2"):
        runner.run([images().numpy()] * 2)
    with pytest.raises(TargetMismatch, match="qonnx cannot run it"):
        runner.run([images().numpy()[:, :3]])
