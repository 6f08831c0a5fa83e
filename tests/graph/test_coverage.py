import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.graph.capture import capture
from mixbit.graph.resources import find_uncovered
from tests.networks import Net, matrix


def rows_of(net, x):
    return {row.name if row.kind == "parameter" else row.kind: row for row in find_uncovered(capture(net.eval(), x))}


def test_a_recurrent_cell_is_not_covered():
    cell = nn.LSTM(3, 4, batch_first=True)
    rows = rows_of(Net(lambda net, x: net.b(net.a(x)[0]), a=cell, b=nn.Linear(4, 2)), torch.randn(2, 5, 3))
    assert {"lstm", "biases"} <= rows.keys()
    assert rows["lstm"].macs is None
    stored = sum(row.weight_bytes for name, row in rows.items() if name.startswith("a."))
    assert stored == 4 * sum(parameter.numel() for parameter in cell.parameters())


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


def test_weights_that_are_computed_are_not_covered():
    parts = {"a": nn.Conv1d(3, 4, 1), "w": matrix(2, 4, 3), "scale": matrix(1)}
    net = Net(lambda net, x: F.conv1d(net.a(x), net.w * net.scale), **parts)
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
            net.left @ x.transpose(1, 2),
            F.linear(x, net.transposed.t()),
            torch.addmm(net.factor, x[:, 0], net.scaled, alpha=2),
            x * net.factor,
            x.sum(2) @ net.vector,
            net.covered(x),
        )

    names = ("left", "transposed", "scaled")
    parts = {name: matrix(3, 3) for name in names} | {"factor": matrix(3), "vector": matrix(4)}
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
