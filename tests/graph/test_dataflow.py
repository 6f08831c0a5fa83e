import pytest
import torch
from torch import nn

from mixbit.graph.capture import capture
from mixbit.graph.layers import BETWEEN_KINDS, activations, inputs_between, observable, result_of
from tests.networks import Net, Residual, matrix


def read_by(graph, name):
    """What made the tensor of that name: the operator, or the input."""
    node = graph.node(name)
    if node.op == "placeholder":
        return node.name
    return getattr(node.target, "overloadpacket", node.target).__name__


def names_between(graph, *, inside=False, kinds=BETWEEN_KINDS):
    every = [node.name for node in graph.module.graph.nodes]
    names = inputs_between(graph, frozenset(kinds), inside=inside, rounded=every)
    return [read_by(graph, name) for name in names]


def test_the_tensors_between_layers_stand_in_execution_order():
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    assert names_between(graph) == ["conv2d", "x", "relu"]
    assert names_between(graph, kinds={"add"}) == ["conv2d", "x"]
    assert names_between(graph, kinds={"average_pool"}) == ["relu"]
    assert names_between(graph, kinds=()) == []


def added(run, *, inside):
    parts = {name: nn.Conv1d(3, 3, 1) for name in "ab"}
    graph = capture(Net(run, **parts, c=nn.Linear(4, 4)), torch.randn(2, 3, 4))
    return names_between(graph, inside=inside, kinds={"add"})


@pytest.mark.parametrize(
    ("run", "apart", "inside"),
    [
        (lambda net, x: net.a(x) + net.b(x), ["conv1d", "conv1d"], ["conv1d"]),
        (lambda net, x: (y := net.a(x)) + net.b(x) * y, ["conv1d", "mul"], ["conv1d", "mul"]),
        (lambda net, x: net.a(x) + x, ["conv1d", "x"], ["x"]),
        (lambda net, x: net.a(x).relu() + x, ["relu", "x"], ["relu", "x"]),
        (lambda net, x: (y := net.a(x)) + y, ["conv1d"], ["conv1d"]),
        (lambda net, x: net.c(x) + x, [], []),
        (lambda net, x: net.a(x) + 1, [], []),
    ],
    ids=["two", "read by others", "one", "through a function", "to itself", "no convolution", "to a number"],
)
def test_additions_that_a_convolution_feeds_take_part(run, apart, inside):
    assert added(run, inside=False) == apart
    assert added(run, inside=True) == inside


@pytest.mark.parametrize(
    ("run", "rounded"),
    [
        (lambda net, x: torch.cat([net.a(x), net.b(x)], 1), []),
        (lambda net, x: torch.cat([net.a(x), net.b(x)], 1).relu(), []),
        (lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)), ["conv1d", "conv1d"]),
        (lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1).relu()), ["conv1d", "conv1d"]),
        (lambda net, x: net.c(torch.cat([net.a(x) + net.b(x), x], 1).exp()), []),
        (lambda net, x: net.c(torch.cat([net.a(x) + net.b(x), x], 1)), ["conv1d", "conv1d", "add", "x"]),
    ],
    ids=["returned", "returned by a function", "read", "read by a function", "read in float", "read through another"],
)
def test_what_no_operator_reads_in_integers_stays_in_float(run, rounded):
    graph = capture(Net(run, a=nn.Conv1d(3, 3, 1), b=nn.Conv1d(3, 3, 1), c=nn.Conv1d(6, 2, 1)), torch.randn(2, 3, 4))
    read = [name for layer in graph.layers for name in layer.inputs if layer.name == "c.weight"]
    names = inputs_between(graph, BETWEEN_KINDS, inside=False, rounded=read)
    assert sorted(read_by(graph, name) for name in names) == sorted(rounded)


def test_constants_take_no_part():
    """Parameters that are added or joined are no activations, whatever shape the batch gives them."""

    def run(net, x):
        x = x + 1 + net.position[:, :4].relu()
        x = torch.cat([net.first.expand(x.size(0), -1, -1), x], 1)
        return net.a(torch.cat([x, x.relu()], 1) @ net.matrix[:3].t().t()) + x.new_ones(3) + torch.zeros_like(x).mean()

    net = Net(run, position=matrix(1, 5, 3), first=matrix(1, 1, 3), matrix=matrix(4, 3), a=nn.Linear(3, 3))
    graph = capture(net, torch.randn(2, 4, 3))
    assert names_between(graph) == ["cat", "relu"]
    data = activations(graph)
    assert not any(node.op == "get_attr" for node in data)
    assert not {"slice", "expand", "new_ones", "zeros_like", "t"} & {read_by(graph, node.name) for node in data}


def test_products_of_activations_take_part():
    net = Net(lambda net, x: (y := net.a(x)) @ y.transpose(1, 2), a=nn.Linear(3, 3))
    graph = capture(net, torch.randn(2, 4, 3))
    assert names_between(graph, kinds={"matmul"}) == ["linear"]


def test_a_layer_returns_its_output_clipped_where_nobody_reads_more():
    def run(net, x):
        return (
            net.clipped(x).relu() * 2,
            net.unclipped(x).tanh(),
            (y := net.read_twice(x)).relu() + y,
            net.returned(x),
            net.transposed(x).relu(),
            net.linear(x).relu(),
        )

    parts = {name: nn.Conv1d(3, 3, 1) for name in ("clipped", "unclipped", "read_twice", "returned")}
    net = Net(run, **parts, transposed=nn.ConvTranspose1d(3, 3, 1), linear=nn.Linear(4, 4))
    graph = capture(net, torch.randn(2, 3, 4))
    got = {layer.name.split(".")[0]: read_by(graph, result_of(graph, layer.operations[0])) for layer in graph.layers}
    assert got == dict.fromkeys(parts, "conv1d") | dict.fromkeys(("clipped", "transposed", "linear"), "relu")


def test_every_tensor_that_some_plan_quantizes_is_observable():
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    names = observable(graph)
    assert sorted(read_by(graph, name) for name in names) == ["conv2d", "linear", "mean", "relu", "relu", "x"]
