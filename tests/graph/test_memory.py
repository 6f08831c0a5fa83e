"""Activations that are alive at once, counted by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.errors import InfeasibleBudget, InvalidInput
from mixbit.graph.memory import live_activations
from tests.networks import ANYTHING, Net

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
        return (net.a(x) + net.b(x)).relu()

    network = Net(forward, a=nn.Conv2d(1, 2, 3), b=nn.Conv2d(1, 2, 3))
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
