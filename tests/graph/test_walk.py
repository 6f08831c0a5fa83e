"""Walking through a graph operator after operator."""

from collections import Counter

import torch
from torch import nn

from mixbit.core.batches import Inputs
from mixbit.graph import walk
from mixbit.graph.capture import capture
from mixbit.graph.walk import Walker, in_order, seen
from tests.networks import Net, Residual


def test_every_operator_runs_once_and_reads_what_the_changed_ones_before_it_return(monkeypatch):
    net = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(4)])
    graph, x = capture(net, torch.randn(5, 3)), torch.randn(6, 3)
    names, runs, reads = [layer.operations[0].node for layer in graph.layers], Counter(), {}
    run_node = Walker.run_node
    monkeypatch.setattr(walk.Walker, "run_node", lambda self, n: (runs.update([n.name]), run_node(self, n))[1])

    def see(batch, node, _, args):
        reads.setdefault(node.name, []).append(args[0])

    order = []
    batches = [Inputs.of(x[:4]), Inputs.of(x[4:])]
    for turns in in_order(graph, names, {index: [name] for index, name in enumerate(names)}, batches, see, "test"):
        for turn in turns:
            order.append(turn)
            with torch.no_grad():
                graph.parameter(graph.layers[turn].name).mul_(2)
    assert order == [0, 1, 2, 3]
    assert all(runs[name] == len(batches) for name in names[:-1]), "the last one is read by nobody"
    expected = x
    for name, linear in zip(names, net, strict=True):
        torch.testing.assert_close(torch.cat(reads[name]), expected)
        expected = 2 * linear(expected)


def test_a_group_at_two_depths_is_seen_at_both_when_its_first_turn_comes():
    graph = capture(
        Net(lambda net, x: net.b(net.a(net.a(x).relu())), a=nn.Linear(3, 3), b=nn.Linear(3, 2)), torch.randn(4, 3)
    )
    groups = {layer.name: [operation.node for operation in layer.operations] for layer in graph.layers}
    calls = []

    def see(batch, node, run, args):
        calls.append((node.name, run(*args)))

    operators = [name for names in groups.values() for name in names]
    turns = list(in_order(graph, operators, groups, [Inputs.of(torch.randn(7, 3))], see, "test"))
    assert turns == [[name] for name in groups]
    assert [name for name, _ in calls] == operators


def test_those_who_look_on_see_what_a_node_reads_and_returns():
    graph, x = capture(Residual().eval(), torch.randn(3, 2, 8, 8)), torch.randn(2, 2, 8, 8)
    names, values = [node.name for node in graph.module.graph.nodes if node.op == "call_function"], {}

    def note(value, args):
        values[len(values)] = value

    with torch.no_grad():
        returned = Walker(graph.module, {name: seen(note) for name in names}).returned(graph.leaves(Inputs.of(x)))
        torch.testing.assert_close(list(values.values())[-1], graph(x), rtol=0, atol=0)
    assert len(values) == len(names)
    assert returned is not None
