import dataclasses
import functools
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core import Format, Plan
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.graph.capture import capture
from mixbit.graph.graph import model_fingerprint
from mixbit.graph.layers import BETWEEN_KINDS
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.scales import weight_quantizer
from mixbit.quantization.simulate import activation_formats, assemble
from mixbit.roundings.quantize import quantize
from tests.networks import (
    ANYTHING,
    OPERATORS,
    Attention,
    Net,
    Residual,
    as_in_model,
    assert_state_is,
    by_tensor,
    captured_operator,
    matrix,
    operator_network,
    plan_of,
    state_of,
)

pytestmark = pytest.mark.usefixtures("anything")


NAMES = ("first.weight", "second.weight", "last.weight")


def data_for(kind, count=7):
    _, x = operator_network(kind)
    torch.manual_seed(3)
    return torch.randn(count, *x.shape[1:], dtype=torch.float64) + 0.5


@functools.cache
def residual(dtype=torch.float32):
    """A model, its graph and data; no test changes them."""
    torch.manual_seed(0)
    model = Residual().eval().to(dtype)
    return model, capture(model, torch.randn(2, 2, 6, 6, dtype=dtype)), torch.randn(20, 2, 6, 6, dtype=dtype)


@pytest.mark.parametrize("kind", OPERATORS)
def test_corrected_biases_take_the_mean_error_off_the_output(kind):
    """The rounding of a weight changes no output channel's mean over the calibration data."""
    _, _, graph = captured_operator(kind)
    x, layers = data_for(kind), graph.layers
    channel = 1 if layers[0].operations[0].kind.name.startswith("conv") else -1
    corrects = layers[0].operations[0].takes_bias

    def mean_error(**options):
        error = quantize(graph, plan_of(layers, "w2"), x.split(3), **options)(x) - graph(x)
        return error.movedim(channel, -1).flatten(0, -2).mean(0).abs().max()

    assert mean_error(bias_correction="off") > 1e-3
    assert (mean_error() < 1e-12) == corrects


def rounded_bias(bias, weight_scale, input_scale):
    """Each entry as the nearest whole multiple of its channel's scale times the input's; groups repeat the channels."""
    steps = [float(input_scale * weight_scale[index % len(weight_scale)]) for index in range(len(bias))]
    return torch.tensor(
        [round(float(entry) / step) * step for entry, step in zip(bias.tolist(), steps, strict=True)], dtype=bias.dtype
    )


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_simulated_operator_reads_rounded_tensors(kind):
    """Weight by weight: the simulated output is the model's own with its weight replaced by the rounded one."""
    model, _, graph = captured_operator(kind)
    x, layers = data_for(kind), graph.layers
    name = layers[0].name
    calibration = calibrate(graph, [graph.example.map(lambda _: x)])
    simulated = quantize(graph, plan_of(layers, "w3a8"), calibration, bias_correction="off")
    weight = weight_quantizer(graph, layers[0], Format(3, "channel", symmetric=True), calibration)
    expected = dict(model.named_parameters()) | {name: as_in_model(kind, weight(graph.parameter(name)))}
    for tensor in layers[0].inputs:  # in these networks the layer's input is the model's, or moved from it
        read = calibration.quantizer(tensor, Format(8, "tensor", symmetric=False), x.device)
        x = read(x)
        for bias in expected.keys() - {name}:
            expected[bias] = rounded_bias(expected[bias], weight.scale, read.scale)
    torch.testing.assert_close(simulated(x), torch.func.functional_call(model, expected, x))
    assert set(by_tensor(simulated)) == {name, *layers[0].inputs}


def test_the_graph_is_left_as_it_is():
    _, graph, x = residual()
    state, code = state_of(graph.module), graph.module.code
    quantize(graph, plan_of(graph.layers, "w4a8"), [x])
    assert_state_is(graph.module, state)
    assert graph.module.code == code
    assert graph.plan is None


def test_one_quantizer_per_tensor():
    _, graph, x = residual()
    layers = graph.layers
    plan = plan_of(layers, "w4a8")
    simulated = quantize(graph, plan, [x])
    assert simulated.plan is plan
    quantizers = by_tensor(simulated)
    assert [name for name, one in quantizers.items() if one.axis is not None] == [layer.name for layer in layers]
    activations = {name: one.format for name, one in quantizers.items() if one.axis is None}
    assert set(activations.values()) == {Format(8, "tensor", symmetric=False)}
    assert set(activations) == {name for layer in layers for name in layer.inputs}
    calls = [node.target for node in simulated.module.graph.nodes if node.op == "call_module"]
    assert len(calls) == len(set(calls)) == 6
    targets = dict.fromkeys(quantizers, 0)
    for node in simulated.module.graph.nodes:
        if node.op == "call_module":
            targets[simulated.module.get_submodule(node.target).tensor] += 1
            before = node.args[0]
            assert list(before.users) == [node]  # everyone reads the quantized tensor
    assert set(targets.values()) == {1}


def test_layers_that_share_a_tensor_share_its_quantizer():
    torch.manual_seed(0)
    model = Attention().eval()
    graph = capture(model, torch.randint(0, 6, (2, 5)))
    layers = graph.layers
    simulated = quantize(graph, plan_of(layers, "w4a8"), [torch.randint(0, 6, (9, 5))])
    layer = {one.name: one for one in layers}
    read = {simulated.node(layer[f"{name}.weight"].operations[0].node).args[0] for name in "qkv"}
    assert len(read) == 1
    assert simulated.module.get_submodule(read.pop().target).tensor == layer["q.weight"].inputs[0]
    (tied,) = [one for one in layers if len(one.operations) == 2]
    weights = {simulated.node(one.node).args[one.kind.weight].target for one in tied.operations}
    assert [simulated.module.get_submodule(path).tensor for path in weights] == [tied.name]
    ids = torch.randint(0, 6, (4, 5))
    assert not torch.equal(simulated(ids), graph(ids))


def test_each_operator_of_a_shared_weight_gets_its_own_bias():
    net = Net(lambda net, x: net.a(net.a(x).relu()), a=nn.Linear(4, 4)).double()
    graph = capture(net, torch.randn(3, 4, dtype=torch.float64))
    layers = graph.layers
    x = torch.randn(9, 4, dtype=torch.float64)
    calibration = calibrate(graph, [graph.example.map(lambda _: x)])
    simulated = quantize(graph, plan_of(layers, "w2"), calibration)
    quantizer = weight_quantizer(graph, layers[0], Format(2, "channel", symmetric=True), calibration)
    error = quantizer(net.a.weight) - net.a.weight
    hidden = net.a(x).relu()
    biases = [parameter for name, parameter in simulated.module.named_parameters() if "bias" in name]
    expected = [net.a.bias - (read @ error.T).mean(0) for read in (x, hidden)]
    assert len(biases) == 2
    for bias in expected:
        assert any(torch.allclose(bias, other, rtol=1e-10) for other in biases)


def test_float_layers_stay_as_they_are():
    _, graph, x = residual()
    layers = graph.layers
    same = quantize(graph, plan_of(layers, "float"), [x])
    assert not by_tensor(same)
    assert torch.equal(same(x), graph(x))
    mixed = dict.fromkeys((layer.name for layer in layers), "float") | {"second.weight": "w4a8"}
    quantizers = by_tensor(quantize(graph, plan_of(layers, mixed), [x]))
    assert {name for name, one in quantizers.items() if one.axis is not None} == {"second.weight"}
    assert "x" not in quantizers  # first.weight reads it in float


@pytest.mark.parametrize(
    ("target", "between"),
    [
        (ANYTHING, []),
        (dataclasses.replace(ANYTHING, integer_operators=BETWEEN_KINDS), ["conv2d", "relu"]),
        (dataclasses.replace(ANYTHING, integer_operators=BETWEEN_KINDS, adds_into_layers=True), ["relu"]),
        (dataclasses.replace(ANYTHING, integer_operators=frozenset({"average_pool"})), ["relu"]),
        (dataclasses.replace(ANYTHING, quantized_outputs=frozenset({"conv2d"})), ["conv2d"]),
    ],
    ids=["nothing", "all kinds", "additions inside layers", "poolings", "outputs of convolutions"],
)
def test_a_target_that_runs_more_in_integers_quantizes_more(target, between):
    _, graph, _ = residual()
    layers = graph.layers
    formats = activation_formats(graph, plan_of(layers, "w4a6"), target)
    read = {name for layer in layers for name in layer.inputs}
    assert {name: formats.pop(name) for name in read} == dict.fromkeys(read, Format(6, "tensor", symmetric=False))
    assert set(formats.values()) <= {Format(8, "tensor", symmetric=False)}
    assert sorted(graph.node(name).target.overloadpacket.__name__ for name in formats) == between
    assert activation_formats(graph, plan_of(layers, "w4"), target) == {}


def test_weights_alone_leave_activations_in_float():
    _, graph, x = residual()
    quantizers = by_tensor(quantize(graph, plan_of(graph.layers, "w4"), [x]))
    assert len(quantizers) == 3
    assert all(one.axis is not None for one in quantizers.values())


def test_more_bits_are_closer():
    _, graph, x = residual()
    layers = graph.layers
    errors = [
        (quantize(graph, plan_of(layers, scheme), [x])(x) - graph(x)).square().mean().item()
        for scheme in ("w2a8", "w4a8", "w8a8")
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


@pytest.mark.parametrize(
    "data",
    [
        lambda x: x.split(1),
        lambda x: iter([x[:9], x[9:]]),
        lambda x: [(part, torch.zeros(len(part))) for part in x.split(7)],
        lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=6),
    ],
    ids=["single samples", "iterator", "labels", "loader"],
)
def test_batches_come_as_they_are(data):
    """The same samples in other batches give the same quantizers, biases and outputs."""
    _, graph, x = residual(torch.float64)
    x = torch.cat([4 * x[:1], x[1:15]])  # the first batch has the extremes, from which bins of a histogram begin
    layers = graph.layers
    needed = calibrate(graph, [Inputs.of(x)]).samples
    assert {sum(map(len, kept)) for kept in needed.values()} == {len(x)}, "few enough samples that every one is kept"
    whole = quantize(graph, plan_of(layers, "w4a8"), [x])
    parts = quantize(graph, plan_of(layers, "w4a8"), data(x))
    torch.testing.assert_close(parts.module.state_dict(), whole.module.state_dict(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts(x), whole(x), rtol=1e-12, atol=1e-12)


def test_the_simulation_trains():
    _, graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w3a8"), [x])
    parameters = dict(simulated.module.named_parameters())
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert set(parameters) == {f"{name}.{part}" for name in ("first", "second", "last") for part in ("weight", "bias")}
    labels = (x[:, 0].mean((1, 2)) > 0).long()
    optimizer, losses = torch.optim.SGD(parameters.values(), lr=0.2), []
    for _ in range(40):
        loss = F.cross_entropy(simulated(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in parameters.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_simulation_works_at_any_batch_size():
    _, graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w4a8"), [x])
    whole = simulated(x)
    torch.testing.assert_close(torch.cat([simulated(part) for part in (x[:1], x[1:8], x[8:])]), whole)


def test_names_that_look_alike_are_told_apart():
    """A weight may be called like another with a dot for an underscore, or like a node of the graph."""
    inner, other = nn.Module(), nn.Module()
    inner.b_c, other.c = nn.Linear(3, 3), nn.Linear(3, 3)
    graph = capture(Net(lambda net, x: net.a.b_c(net.a_b.c(x)), a=inner, a_b=other), torch.randn(2, 3))
    simulated = quantize(graph, plan_of(graph.layers, "w4"), [torch.randn(4, 3)])
    assert set(by_tensor(simulated)) == {"a.b_c.weight", "a_b.c.weight"}
    graph = capture(Net(lambda net, x: net.a(x) @ net.x, a=nn.Linear(3, 3), x=matrix(3, 2)), torch.randn(4, 3))
    simulated = quantize(graph, plan_of(graph.layers, "w4a8"), [torch.randn(4, 3)])
    assert sum(isinstance(one, Quantizer) for one in simulated.module.modules()) == 4


def test_a_mask_of_infinities_stays_in_float(monkeypatch):
    def run(net, x):
        y = net.a(x)
        mask = torch.where(x[:, :1] > 0, 0.0, float("-inf")) * (x[:, :1] * 0 + 1)
        return net.b((y + torch.cat([mask.expand(-1, 2, -1), x * 0], 1)[:, :3]).relu())

    net = Net(run, a=nn.Conv1d(3, 3, 1), b=nn.Conv1d(3, 3, 1))
    torch.manual_seed(0)
    x = torch.randn(12, 3, 4)
    graph = capture(net, x)
    monkeypatch.setattr("tests.networks.TARGET", dataclasses.replace(ANYTHING, integer_operators=BETWEEN_KINDS))
    simulated = quantize(graph, plan_of(graph.layers, "w8a8"), [x])
    assert "conv1d" in by_tensor(simulated)
    torch.testing.assert_close(simulated(x), graph(x), rtol=0, atol=0.05)


def with_changes(plan, **changes):
    return Plan(**(plan.model_dump() | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 16}, "made for another model"),
        ({"layers": {"first.weight": "w4a8"}}, "no scheme for last.weight, second.weight"),
        (
            {"layers": dict.fromkeys((*NAMES, "other.weight"), "w4a8")},
            "layer 'other.weight' is not in this model",
        ),
        (
            {
                "target": "onnxruntime",
                "layers": dict.fromkeys(("first.weight", "second.weight", "last.weight"), "w4a4"),
            },
            "target onnxruntime does not run it",
        ),
        ({"target": "abacus"}, "target 'abacus' is unknown"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change, message):
    _, graph, x = residual()
    plan = with_changes(plan_of(graph.layers, "w4a8"), **change)
    with pytest.raises(InvalidInput, match=message):
        quantize(graph, plan, [x])


def test_different_formats_for_a_shared_input_are_refused():
    graph = capture(Attention().eval(), torch.randint(0, 6, (2, 5)))
    layers = graph.layers
    schemes = dict.fromkeys((layer.name for layer in layers), "w4a8") | {"k.weight": "w4"}
    with pytest.raises(InvalidInput, match=r"q\.weight \(w4a8\) and k\.weight \(w4\) read the same tensor"):
        quantize(graph, plan_of(layers, schemes), [torch.randint(0, 6, (4, 5))])


def test_what_cannot_be_quantized_is_refused():
    _, graph, x = residual()
    plan = plan_of(graph.layers, "w4a8")
    with pytest.raises(InvalidInput, match="holds no batch"):
        quantize(graph, plan, [])
    with pytest.raises(InvalidInput, match="quantized already"):
        quantize(quantize(graph, plan, [x]), plan, [x])
    _, _, other = captured_operator("linear")
    calibration = calibrate(other, [other.example])
    with pytest.raises(InvalidInput, match="calibration: of another graph"):
        quantize(graph, plan, calibration)


def test_assembling_takes_quantizers_as_they_are():
    _, _, graph = captured_operator("linear")
    layers = graph.layers
    scale = torch.full((4,), 0.5, dtype=torch.float64)
    quantizer = Quantizer("a.weight", Format(4, "channel", symmetric=True), 0, scale, torch.zeros_like(scale))
    (operation,) = layers[0].operations
    bias = torch.arange(4, dtype=torch.float64)
    plan = Plan(target="anything", fingerprint=model_fingerprint(layers), layers={"a.weight": "w4"})
    assembled = assemble(graph, plan, [quantizer], {operation.node: bias})
    x = torch.randn(5, 5, dtype=torch.float64)
    weight = graph.module.get_parameter("a.weight")
    torch.testing.assert_close(assembled(x), F.linear(x, quantizer(weight), bias))
    assert by_tensor(assembled) == {"a.weight": quantizer}


def test_a_rounding_goes_on_in_the_folder(tmp_path, monkeypatch):
    _, _, graph = captured_operator("linear")
    x, plan = data_for("linear"), plan_of(graph.layers, "w3")
    rounded = quantize(graph, plan, [x], rounding="gptq", folder=tmp_path / "parts")
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]
    monkeypatch.setattr(sys.modules["mixbit.roundings.gptq"], "compensated", None)  # nothing is left to do
    again = quantize(graph, plan, [x], rounding="gptq", folder=tmp_path / "parts")
    assert torch.equal(again(x), rounded(x))


def test_a_rounding_that_returns_no_graph_is_refused():
    _, _, graph = captured_operator("linear")
    with pytest.raises(InvalidInput, match="rounding forgets: returns a NoneType; return the simulated graph"):
        quantize(graph, plan_of(graph.layers, "w3"), [data_for("linear")], rounding=forgets)
    for correction in ("at_once", "sequential"):
        with pytest.raises(InvalidInput, match=r"rounding <lambda>: returns a graph in float; return the simulated"):
            quantize(
                graph,
                plan_of(graph.layers, "w3"),
                [data_for("linear")],
                rounding=lambda inputs: inputs.graph,
                bias_correction=correction,
            )


def forgets(asked):
    """A rounding that returns nothing."""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8ta8"])
def test_a_weight_read_from_both_sides_keeps_its_scales_on_one(bias, scheme):
    """As in a tied autoencoder: the second product sums over the channels that have the scales."""
    torch.manual_seed(0)

    def run(net, x):
        hidden = net.e(x).relu()
        return torch.addmm(net.b, hidden, net.e.weight) if bias else hidden @ net.e.weight

    net = Net(run, e=nn.Linear(6, 9), b=nn.Parameter(torch.randn(6))).double().eval()
    x = torch.randn(30, 6, dtype=torch.float64)
    graph = capture(net, x)
    plan = plan_of(graph.layers, scheme)
    for method in ("at_once", "sequential", "off"):
        found = quantize(graph, plan, [x], bias_correction=method)
        assert (found(x) - graph(x)).square().mean() < (0.02 if scheme == "w4a8" else 2e-3) * graph(x).var()
        quantizer = by_tensor(found)["e.weight"]
        weight = graph.module.get_parameter("e.weight").detach()
        steps = weight / quantizer.scale.reshape(-1, 1)
        assert (quantizer.scale.numel() == 1) == (scheme == "w8ta8")
        unclipped = steps.abs() <= quantizer.format.integer_range[1]
        assert unclipped.sum() > 40
        errors = (quantizer(weight) / quantizer.scale.reshape(-1, 1) - steps).abs()
        assert errors[unclipped].max() <= 0.5 + 1e-9
