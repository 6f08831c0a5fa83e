"""Recurrent operators in parts: equal to torch's in float64, gradients too, every weight a layer whose input stays."""

import pytest
import torch
from torch import nn
from torch.profiler import profile

from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.graph import recurrent
from mixbit.graph.capture import capture
from mixbit.graph.resources import find_uncovered, note_on_uncovered
from mixbit.graph.walk import SampleGradients
from tests.networks import Net

#: Name -> the cell, and what runs it on [N, 4, 3] and returns.
RECURRENT = {
    "LSTM, two layers both ways, all results": (
        lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
        lambda net, x: net.a(x),
    ),
    "LSTM, no bias, samples second": (
        lambda: nn.LSTM(3, 4, bias=False),
        lambda net, x: net.a(x.transpose(0, 1))[0].transpose(0, 1),
    ),
    "LSTM, given states": (
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda net, x: net.a(x, (x.new_ones(1, x.size(0), 4), x.sum(1).tanh()[None, :, :1].expand(-1, -1, 4))),
    ),
    "LSTM, zeros and a given cell": (
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda net, x: net.a(x, (x.new_zeros(1, x.size(0), 4), x.sum(1).tanh()[None, :, :1].expand(-1, -1, 4))),
    ),
    "GRU, both ways": (lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True), lambda net, x: net.a(x)),
    "GRU, no bias, given state": (
        lambda: nn.GRU(3, 4, bias=False, batch_first=True),
        lambda net, x: net.a(x, x.mean(1)[None, :, :1].expand(-1, -1, 4).contiguous()),
    ),
    "RNN, relu": (lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), lambda net, x: net.a(x)),
    "RNN": (lambda: nn.RNN(3, 4, 2, batch_first=True), lambda net, x: net.a(x)[1]),
    "LSTMCell": (lambda: nn.LSTMCell(3, 4), lambda net, x: net.a(x[:, 1], net.a(x[:, 0]))),
    "GRUCell": (lambda: nn.GRUCell(3, 4), lambda net, x: net.a(x[:, 1], net.a(x[:, 0]))),
    "RNNCell": (lambda: nn.RNNCell(3, 4), lambda net, x: net.a(x[:, 1], net.a(x[:, 0]))),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_parts_compute_what_the_operator_does_and_hold_its_weights_as_layers(kind):
    torch.manual_seed(0)
    make, run = RECURRENT[kind]
    model = Net(run, a=make()).double().eval()
    graph = capture(model, torch.randn(3, 4, 3, dtype=torch.float64))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
    assert {layer.name for layer in graph.layers} == {name for name, _ in model.named_parameters() if "weight" in name}
    assert note_on_uncovered(graph) is None
    assert all(len(layer.operations) == (2 if "Cell" in kind else 1) for layer in graph.layers)
    assert all(layer.inputs == () and layer.macs > 0 for layer in graph.layers)


def total(returned):
    leaves = torch.utils._pytree.tree_leaves(returned)
    return sum((leaf * torch.arange(1.0, leaf.numel() + 1).to(leaf).reshape(leaf.shape).sin()).sum() for leaf in leaves)


@pytest.mark.parametrize("kind", ["LSTM, two layers both ways, all results", "GRU, no bias, given state", "RNNCell"])
def test_gradients_through_all_steps_are_torchs(kind):
    torch.manual_seed(0)
    make, run = RECURRENT[kind]
    model = Net(run, a=make()).double().eval()
    x = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    graph = capture(model, x.detach())
    weights = [name for name, _ in model.named_parameters() if "weight" in name]
    for network in (model, graph.module):
        network.zero_grad()
        total(network(x)).backward()
    for name in weights:
        torch.testing.assert_close(graph.parameter(name).grad, model.get_parameter(name).grad, rtol=1e-9, atol=1e-9)
    # of a sample alone, as metrics take them at the operators that are linear in the weights
    found = {}
    backward = SampleGradients(
        graph, graph.layers, lambda layer, parts: found.update({layer.name: torch.cat([*parts])})
    )
    backward.run_batch(graph.example, None, lambda returned, _: total(returned))
    model.zero_grad()
    total(model(*graph.example.args)).backward()
    slopes = {name: model.get_parameter(name).grad for name in weights}
    for name in weights:
        torch.testing.assert_close(found[name].sum(0), slopes[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["LSTM, two layers both ways, all results", "GRU, no bias, given state", "RNNCell"])
def test_curvature_is_torchs(kind):
    torch.manual_seed(0)
    make, run = RECURRENT[kind]
    model = Net(run, a=make()).double().eval()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    graph, names = capture(model, x), [name for name, _ in model.named_parameters() if "weight" in name]
    slopes, products = [], []
    for network in (model, graph.module):
        weights = [network.get_parameter(name) for name in names]
        slopes.append(torch.autograd.grad(total(network(x)), weights, create_graph=True))
        along = sum((slope * weight.detach()).sum() for slope, weight in zip(slopes[-1], weights, strict=True))
        products.append(torch.autograd.grad(along, weights))
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*products, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_backward_pass_takes_no_square_of_the_steps():
    graph = capture(Net(lambda net, x: net.a(x)[0], a=nn.LSTM(3, 4, batch_first=True)), torch.randn(2, 300, 3))
    x = torch.randn(2, 300, 3)
    with profile() as seen:
        graph(x).sum().backward()
    made = [event for event in seen.key_averages() if event.key in ("aten::select_backward", "aten::slice_backward")]
    assert sum(event.count for event in made) < 10


def test_sequences_may_be_long_and_of_any_length():
    net = Net(lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.LSTM(3, 4, batch_first=True), b=nn.Linear(4, 2)).eval()
    graph = capture(net, torch.randn(2, 300, 3), {0: [1]})
    assert len(graph.layers) == 3
    assert len(graph.module.graph.nodes) < 30
    for length in (1, 300, 17):
        x = torch.randn(3, length, 3)
        torch.testing.assert_close(graph(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_a_long_lstm_with_projections_stays_and_is_named(monkeypatch):
    monkeypatch.setattr(recurrent, "MOST_STEPS", 3)
    cell = nn.LSTM(3, 4, batch_first=True, proj_size=2)
    graph = capture(Net(lambda net, x: net.b(net.a(x)[0]), a=cell, b=nn.Linear(2, 2)), torch.randn(2, 4, 3))
    assert [layer.name for layer in graph.layers] == ["b.weight"]
    assert sum(row.num_weights for row in find_uncovered(graph)) == 16 * (3 + 2) + 2 * 4
    note = note_on_uncovered(graph)
    assert note is not None
    assert "a.weight_ih_l0 (52.2%, read by an LSTM with projections" in note
    assert "b.weight" not in note


def test_autocast_around_an_lstm_is_refused_in_words():
    def run(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.a(x)[0].float()

    net = Net(run, a=nn.LSTM(3, 4, batch_first=True)).eval()
    # where the processor has no bfloat16, torch itself cannot run it
    with pytest.raises(
        (UnsupportedModel, InvalidInput), match=r"fails where the model does not|the model fails on inputs"
    ):
        capture(net, torch.randn(2, 4, 3))
