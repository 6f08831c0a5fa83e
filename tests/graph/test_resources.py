"""What a graph takes beside its layers: live activations, counted by hand, and what no layer covers."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core.errors import InfeasibleBudget, InvalidInput
from mixbit.graph import recurrent
from mixbit.graph.capture import capture
from mixbit.graph.resources import find_uncovered, live_activations, note_on_uncovered, num_uncovered
from tests.networks import ANYTHING, Net, matrix

INTEGER = dataclasses.replace(ANYTHING, integer_operators=frozenset({"add"}))


def live(network, x, target=ANYTHING):
    graph = mb.capture(network.eval(), x)
    return live_activations(graph, target).tolist()


def test_a_chain_keeps_what_an_operator_reads_and_makes():
    """8 -> 32 -> 16 -> 4 numbers; relu works in place. The output is float."""
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    # first: 8 of layer 0, 32 that layer 1 reads once clipped: in float before; second: 32 of layer 1 and 16 of layer 2
    found = live(network, torch.randn(2, 8))
    assert [4 * 32, 8, 0, 0] in found  # the product before it is clipped, which nobody reads in integers
    assert [0, 0, 32, 16] in found
    assert [4 * 4, 0, 0, 16] in found
    assert len(found) == 3


def test_a_branch_stays_alive_until_it_is_added():
    def forward(net, x):
        x = net.a(x)
        return net.c(x + net.b(x))

    network = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 2))
    found = live(network, torch.randn(2, 4))
    # while b runs: what a made, which b and the addition read, and what b makes, in float until it is added
    assert [4 * 8, 0, 8, 0] in found


def test_what_only_moves_values_shares_memory():
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    assert live(plain, torch.randn(2, 1, 6, 6)) == [[0, 36, 32], [4 * 3, 0, 32]]


def test_tensors_read_by_several_layers_count_once():
    def forward(net, x):
        return net.a(x) + net.b(x)

    found = live(Net(forward, a=nn.Linear(16, 2), b=nn.Linear(16, 2)), torch.randn(2, 16))
    assert all(row[2] == 0 for row in found)
    assert [4 * 4, 16, 0] in found


def test_tensors_that_are_added_in_integers_count_a_byte():
    """Of a convolution's output that an addition reads, and no layer; the sum, in place of one, is in float."""

    def forward(net, x):
        return net.c((net.a(x) + net.b(x)).relu())

    network = Net(forward, a=nn.Conv2d(1, 2, 3), b=nn.Conv2d(1, 2, 3), c=nn.Conv2d(2, 1, 4))
    in_float, in_integers = (live(network, torch.randn(2, 1, 6, 6), target) for target in (ANYTHING, INTEGER))
    assert max(row[0] for row in in_float) == 4 * 64
    assert max(row[0] for row in in_integers) == 32 + 4 * 32


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 4))
    graph = mb.capture(network.eval(), torch.randn(2, 8))
    return mb.measure(
        graph, [torch.randn(16, 8)], target="packed", choices=["w8a8", "w4a8", "w8"], metric="weight_error"
    )


def test_a_budget_of_activations(table):
    def peak(*columns):
        return table.figures(np.array([columns]))["activation_bytes"][0]

    # inputs of 8, 32 and 16 numbers, in float where the scheme is w8
    assert peak(0, 0, 0) == 4 * 32 + 8
    assert peak(2, 0, 0) == 4 * 32 + 4 * 8
    assert peak(2, 2, 2) == 4 * 32 + 4 * 16
    plan = mb.search(table, mb.Budget(activation_bytes=140, mean_bits=8))
    assert plan.predicted["activation_bytes"] <= 140
    assert plan.layers["0.weight"] != "w8"
    with pytest.raises(InfeasibleBudget, match=r"activation_bytes=100 \(reachable: 136 to 192\)"):
        mb.search(table, mb.Budget(activation_bytes=100))


def test_its_price_and_that_it_has_no_front(table):
    from mixbit.searches.search import priced

    budget = mb.Budget(activation_bytes=140)
    plan = priced(table, budget, mb.search(table, budget))
    assert plan.prices["activation_bytes"].used == plan.predicted["activation_bytes"]
    assert plan.prices["activation_bytes"].looser == pytest.approx(147)
    with pytest.raises(InvalidInput, match="'activation_bytes' does not add up"):
        mb.front(table, "activation_bytes")


def test_it_survives_the_file(table, tmp_path):
    table.save(tmp_path / "s.json")
    assert mb.Sensitivity.load(tmp_path / "s.json").live.tolist() == table.live.tolist()


def rows_of(net, x):
    return {row.name if row.kind == "parameter" else row.kind: row for row in find_uncovered(capture(net.eval(), x))}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_a_long_recurrence_with_projections_is_not_covered(monkeypatch):
    monkeypatch.setattr(recurrent, "MOST_STEPS", 3)
    cell = nn.LSTM(3, 4, batch_first=True, proj_size=2)
    rows = rows_of(Net(lambda net, x: net.b(net.a(x)[0]), a=cell, b=nn.Linear(2, 2)), torch.randn(2, 4, 3))
    assert {"lstm", "biases"} <= rows.keys()
    assert rows["lstm"].macs is None
    own = {name: row for name, row in rows.items() if name.startswith("a.")}
    assert sum(row.weight_bytes for row in own.values()) == 4 * sum(
        parameter.numel() for parameter in cell.parameters()
    )
    assert sum(row.num_weights for row in own.values()) == 16 * (3 + 2) + 2 * 4  # without its biases
    assert "projections" in own["a.weight_hh_l0"].reason


def test_attention_is_not_covered_but_its_projections_are():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    net = Net(lambda net, x: net.a(x, x, x, need_weights=False)[0], a=attention).eval()
    graph = capture(net, torch.randn(3, 5, 4))
    assert [layer.name for layer in graph.layers] == ["a.in_proj_weight", "a.out_proj.weight"]
    rows = {row.kind: row for row in find_uncovered(graph)}
    assert rows["scaled_dot_product_attention"].macs == 2 * (5 * 5 * 4)  # queries x keys x width, twice


def test_a_product_of_activations_is_not_covered():
    rows = rows_of(Net(lambda net, x: net.a(x) @ x.transpose(1, 2), a=nn.Linear(3, 3)), torch.randn(2, 4, 3))
    assert rows["matmul"].macs == 4 * 4 * 3


def test_weights_that_are_computed_from_inputs_are_not_covered():
    parts = {"a": nn.Conv1d(3, 4, 1), "w": matrix(2, 4, 3), "scale": matrix(1)}
    net = Net(lambda net, x: F.conv1d(net.a(x), net.w * (net.scale + 0 * x.sum())), **parts)
    rows = rows_of(net, torch.randn(2, 3, 8))
    assert rows["conv1d"].macs == 2 * 4 * 3 * 6
    assert rows["w"].weight_bytes == 4 * 24
    assert rows["scale"].weight_bytes == 4


def test_parameters_that_nobody_reads_are_not_listed():
    net = Net(lambda net, x: net.a(x), a=nn.Linear(3, 2), unused=matrix(5))
    assert rows_of(net, torch.randn(2, 3)).keys() == {"biases"}


def test_other_uses_of_parameters_are_no_layers():
    def run(net, x):
        return (
            torch.addmm(net.factor, x[:, 0], net.scaled, alpha=2),
            x * net.factor,
            x.sum(2) @ net.vector,
            net.covered(x),
        )

    parts = {"scaled": matrix(3, 3), "factor": matrix(3), "vector": matrix(4)}
    graph = capture(Net(run, **parts, covered=nn.Linear(3, 3)), torch.randn(2, 4, 3))
    assert [layer.name for layer in graph.layers] == ["covered.weight"]
    assert {row.name for row in find_uncovered(graph) if row.kind == "parameter"} == {*parts, "biases"}


def test_shares_are_of_everything():
    net = Net(lambda net, x: net.a(x) @ net.a(x).transpose(1, 2) + net.w, a=nn.Linear(3, 5), w=matrix(4, 4))
    rows = rows_of(net, torch.randn(2, 4, 3))
    products, work = 4 * 4 * 5, 2 * 4 * 3 * 5
    assert rows["matmul"].macs_share == pytest.approx(products / (products + work))
    assert rows["biases"].weight_share == pytest.approx(5 / (15 + 5 + 16))
    assert rows["w"].weight_share == pytest.approx(16 / (15 + 5 + 16))


def test_what_counts_as_a_weight():
    """Parameters of two dimensions or more above 1 that no layer covers; biases, scales and unused ones do not."""
    parts = {"w": matrix(1, 4, 3), "token": matrix(1, 1, 3), "scale": matrix(3, 1, 1), "unused": matrix(5, 5)}
    net = Net(lambda net, x: net.a(x + net.w + net.token).unsqueeze(1) * net.scale, a=nn.Linear(3, 3), **parts)
    graph = capture(net, torch.randn(2, 4, 3))
    assert num_uncovered(graph) == 12
    assert note_on_uncovered(graph) == "57.1% of the weights stay in float, 32 bits each: w (57.1%, read by add)"
    table = mb.measure(graph, [torch.randn(4, 4, 3)], target="packed", metric="weight_error", choices=["w8", "w4"])
    assert table.uncovered == 12
    plan = mb.search(table, mb.Budget(mean_bits=22))
    assert plan.predicted["mean_bits"] == pytest.approx((12 * 32 + 9 * 8) / 21)
    simulated = mb.quantize(graph, plan, [torch.randn(4, 4, 3)])
    assert simulated.plan.predicted == plan.predicted  # the plan is not taken for an edited one


def test_what_is_alive_beside_a_recurrence_is_what_its_operator_reads_and_returns():
    graph = capture(Net(lambda net, x: net.a(x)[0], a=nn.GRU(6, 4, batch_first=True)).eval(), torch.randn(2, 5, 6))
    live = live_activations(graph, ANYTHING)
    assert live.sum(1).max() <= 4 * (5 * 6 + 5 * 4)
