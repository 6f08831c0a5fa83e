import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mixbit.core.errors import InvalidInput
from mixbit.graph import recurrent
from mixbit.graph.capture import capture
from mixbit.graph.graph import Layer, check_graph, model_fingerprint
from mixbit.graph.layers import shared_inputs
from tests.networks import OPERATORS, Attention, Net, Residual, captured_operator


def layer_of(graph):
    (layer,) = graph.layers
    return layer


def read_by(graph, name):
    """What made the tensor of that name: the operator, or the input."""
    node = graph.node(name)
    if node.op == "placeholder":
        return node.name
    return getattr(node.target, "overloadpacket", node.target).__name__


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_operator_linear_in_a_parameter_is_a_layer(kind):
    model, _, graph = captured_operator(kind)
    layer = layer_of(graph)
    weight = model.get_parameter(layer.name)
    assert layer.name == ("w" if hasattr(model, "w") else "a.weight")
    assert layer.shape == ((8, 5, 1) if "each head" in kind else tuple(weight.shape))
    assert layer.numel == weight.numel()
    assert len(layer.operations) == 1
    assert len(layer.inputs) == (0 if "embedding" in kind else 1)


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_axis_is_the_one_along_which_a_scale_scales_the_output(kind):
    """Scaling the weight's index c along the axis scales output channel c, and no other."""
    _, _, graph = captured_operator(kind)
    layer = layer_of(graph)
    if "embedding" in kind:
        assert layer.axis == 0
        return
    operation = layer.operations[0]
    node = graph.node(operation.node)
    torch.manual_seed(0)
    weight = torch.randn(layer.shape, dtype=torch.float64)
    data = torch.randn(graph.shapes[node.args[operation.data].name], dtype=torch.float64)
    factors = torch.arange(1, layer.shape[layer.axis] + 1, dtype=torch.float64)
    shape = [1] * weight.ndim
    shape[layer.axis] = -1
    before = graph.run(operation, data, weight)
    after = graph.run(operation, data, weight * factors.view(shape))
    channel = before.ndim - 1 if operation.channels_last else 1
    repeated = factors.repeat(before.shape[channel] // len(factors))
    shape = [1] * before.ndim
    shape[channel] = -1
    torch.testing.assert_close(after, before * repeated.view(shape))


@pytest.mark.parametrize("kind", OPERATORS)
def test_macs_are_half_of_torchs_flops(kind):
    model, x, graph = captured_operator(kind)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert layer_of(graph).macs == counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize(
    ("kind", "macs"), [("conv2d", 4 * 3 * 9 * 4 * 3), ("grouped", 6 * 2 * 9 * 16), ("embedding", 0)]
)
def test_macs_by_hand(kind, macs):
    assert layer_of(captured_operator(kind)[2]).macs == macs


def test_layers_stand_in_execution_order_under_their_full_names():
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    layers = graph.layers
    assert [layer.name for layer in layers] == ["first.weight", "second.weight", "last.weight"]
    assert [read_by(graph, layer.inputs[0]) for layer in layers] == ["x", "relu", "mean"]
    assert model_fingerprint(layers) == model_fingerprint(capture(Residual().eval(), torch.randn(3, 2, 8, 8)).layers)
    other = capture(nn.Linear(3, 2), torch.randn(2, 3))
    assert model_fingerprint(layers) != model_fingerprint(other.layers)


def test_a_tied_embedding_is_one_layer_with_two_operators():
    graph = capture(Attention(), torch.randint(0, 6, (2, 5)))
    layers = {layer.name: layer for layer in graph.layers}
    tied = [layer for layer in layers.values() if len(layer.operations) == 2]
    assert [(layer.shape, layer.axis) for layer in tied] == [((6, 4), 0)]
    assert [operation.kind.name for operation in tied[0].operations] == ["embedding", "linear"]
    assert tied[0].macs == 24
    assert set(layers) - {tied[0].name} == {"positions.weight", "q.weight", "k.weight", "v.weight"}
    assert layers["positions.weight"].inputs == ()  # its numbers are a buffer


def test_layers_that_read_one_tensor_share_their_input():
    layers = capture(Attention(), torch.randint(0, 6, (2, 5))).layers
    names = [layer.name for layer in layers]
    assert shared_inputs(layers) == (tuple(names.index(f"{letter}.weight") for letter in "qkv"),)


def test_shared_inputs_join_through_a_layer_that_reads_two():
    net = Net(
        lambda net, x: (net.a(x), net.b(x) + net.b(x + 1), net.c(x + 2), net.d(y := x * 2), net.b(y)),
        a=nn.Linear(3, 3),
        b=nn.Linear(3, 3),
        c=nn.Linear(3, 3),
        d=nn.Linear(3, 3),
    )
    layers = capture(net, torch.randn(2, 3)).layers
    assert [layer.name[0] for layer in layers] == ["a", "b", "c", "d"]
    assert shared_inputs(layers) == ((0, 1, 3),)
    assert len(layers[1].inputs) == 3


def test_values_that_only_move_keep_their_source():
    def run(net, x):
        y = F.pad(F.max_pool2d(x.relu(), 2), (1, 1, 1, 1)).flip(2)
        left, right = y.permute(0, 2, 3, 1).chunk(2, dim=1)
        return net.a(left.reshape(x.size(0), -1, 2)[:, 1:].squeeze(-1)), net.b(right.unsqueeze(1).contiguous())

    graph = capture(Net(run, a=nn.Linear(2, 2), b=nn.Linear(2, 2)), torch.randn(3, 2, 6, 6))
    layers = graph.layers
    assert [read_by(graph, name) for layer in layers for name in layer.inputs] == ["relu", "relu"]
    assert shared_inputs(layers) == ((0, 1),)


#: What happens to a tensor before a layer reads it -> whether its values only move.
CHANGES = {
    "zeros": (lambda x: F.pad(x, (1, 1)), True),
    "ones": (lambda x: F.pad(x, (1, 1), value=1.0), False),
    "zeros by another name": (lambda x: torch.constant_pad_nd(x, (1, 1)), True),
    "ones by another name": (lambda x: torch.constant_pad_nd(x, (1, 1), 1.0), False),
    "replicate": (lambda x: F.pad(x, (1, 1), mode="replicate"), True),
    "reflect": (lambda x: F.pad(x, (1, 1), mode="reflect"), True),
    "maximum": (lambda x: F.max_pool1d(x, 1), True),
    "average": (lambda x: F.avg_pool1d(x, 1), False),
    "product": (lambda x: x * 1.5, False),
    "roll": (lambda x: x.roll(1, 1), True),
    "sort": (lambda x: x.sort(1)[0], False),
}


def test_only_what_keeps_values_moves_them():
    def run(net, x):
        return [getattr(net, name)(change(x.relu())) for name, (change, _) in CHANGES.items()]

    graph = capture(Net(run, **{name: nn.Conv1d(3, 2, 1) for name in CHANGES}), torch.randn(2, 3, 4))
    sources = {layer.name.split(".")[0]: read_by(graph, layer.inputs[0]) for layer in graph.layers}
    assert {name: source == "relu" for name, source in sources.items()} == {name: CHANGES[name][1] for name in CHANGES}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_a_layer_after_a_recurrent_one_reads_its_output(monkeypatch):
    """An operator that is no layer returns several tensors: the quantizer stands on the one read."""
    net = Net(lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.LSTM(3, 4, 1, True, True, proj_size=2), b=nn.Linear(2, 2))
    monkeypatch.setattr(recurrent, "MOST_STEPS", 3)
    graph = capture(net, torch.randn(6, 4, 3))
    (name,) = layer_of(graph).inputs
    assert graph.shapes[name] == (6, 4, 2)


def test_a_model_without_layers_is_refused():
    with pytest.raises(InvalidInput, match="no linear, convolution, embedding or matmul with a parameter"):
        check_graph(capture(nn.Softmax(1), torch.randn(2, 3)))


def test_a_buffer_serves_as_a_weight():
    net = Net(lambda net, x: F.conv1d(x, net.filter))
    net.register_buffer("filter", torch.ones(2, 3, 3))
    assert layer_of(capture(net, torch.randn(2, 3, 8))).name == "filter"


def test_numel_counts_the_weights():
    assert layer_of(captured_operator("conv2d")[2]).numel == math.prod((4, 3, 3, 3))


def test_the_fingerprint_is_of_names_and_shapes():
    a, b = Layer("a.weight", (2, 3), 0, ()), Layer("b.weight", (4,), 0, ())
    assert model_fingerprint((a, b)) == model_fingerprint((b, a)) == "99fea7f1884b1c1b"
    other = dataclasses.replace(b, shape=(5,))
    assert len({model_fingerprint(layers) for layers in ((a, b), (a, other), (a,))}) == 3
