"""Recurrent operators as steps of linear ones: equal to torch's in float64, every weight a layer."""

import pytest
import torch
from torch import nn

from mixbit.graph import recurrent
from mixbit.graph.capture import capture
from mixbit.graph.resources import find_uncovered, note_on_uncovered
from tests.networks import Net

#: Name -> the cell, and what runs it on [N, 4, 3] and returns.
RECURRENT = {
    "LSTM, two layers both ways, all results": (
        lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
        lambda net, x: net.a(x),
    ),
    "LSTM, projected, no bias, samples second": (
        lambda: nn.LSTM(3, 4, proj_size=2, bias=False),
        lambda net, x: net.a(x.transpose(0, 1))[0].transpose(0, 1),
    ),
    "LSTM, given states": (
        lambda: nn.LSTM(3, 4, batch_first=True),
        lambda net, x: net.a(x, (x.new_ones(1, x.size(0), 4), x.sum(1).tanh()[None, :, :1].expand(-1, -1, 4))),
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


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("kind", RECURRENT)
def test_steps_compute_what_the_operator_does_and_hold_its_weights_as_layers(kind):
    torch.manual_seed(0)
    make, run = RECURRENT[kind]
    model = Net(run, a=make()).double().eval()
    graph = capture(model, torch.randn(3, 4, 3, dtype=torch.float64))
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
    assert {layer.name for layer in graph.layers} == {name for name, _ in model.named_parameters() if "weight" in name}
    assert note_on_uncovered(graph) is None
    inputs = [layer for layer in graph.layers if "weight_ih" in layer.name]
    assert all(len(layer.operations) == (2 if "Cell" in kind else 1) for layer in inputs)


def test_what_would_be_too_many_steps_stays_and_is_named(monkeypatch):
    monkeypatch.setattr(recurrent, "MOST_STEPS", 7)
    net = Net(lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.GRU(3, 4, 2, batch_first=True), b=nn.Linear(4, 2))
    assert len(capture(net, torch.randn(2, 3, 3)).layers) == 5
    graph = capture(net, torch.randn(2, 4, 3))
    assert [layer.name for layer in graph.layers] == ["b.weight"]
    assert sum(row.num_weights for row in find_uncovered(graph)) == 12 * (3 + 4 + 4 + 4)
    note = note_on_uncovered(graph)
    assert note is not None
    assert note.startswith(
        "95.7% of the weights stay in float, 32 bits each: a.weight_hh_l0 (25.5%, read by a recurrence"
    )
    assert "b.weight" not in note
