import pytest
import torch

from mixbit.graph.layers import run_stacked, stack_weights
from tests.networks import OPERATORS, captured_operator


class Reader(torch.fx.Interpreter):
    """Runs a graph and keeps what every node returned."""

    def __init__(self, graph):
        super().__init__(graph.module, garbage_collect_values=False)

    def values(self, x):
        with torch.no_grad():
            self.run(x, enable_io_processing=False)
        return {node.name: value for node, value in self.env.items()}


@pytest.fixture(params=OPERATORS, scope="module")
def operator(request):
    """Node, operation, what it reads, the weight, and its own output less its bias: all in float64."""
    _, x, graph = captured_operator(request.param)
    (layer,) = graph.layers
    (operation,) = layer.operations
    values = Reader(graph).values(x)
    output = values[operation.node]
    node = graph.node(operation.node)
    position = operation.kind.bias
    bias = node.args[position] if position is not None and len(node.args) > position else None
    if bias is not None:
        shape = [1] * output.ndim
        shape[-1 if operation.channels_last else 1] = -1
        output = output - values[bias.name].reshape(shape)
    weight = graph.module.get_parameter(layer.name).detach()
    return graph, operation, values[node.args[operation.data].name], weight, output


def test_an_operator_runs_as_its_node_does_without_the_bias(operator):
    graph, operation, x, weight, output = operator
    torch.testing.assert_close(graph.run(operation, x, weight), output)
    torch.testing.assert_close(graph.run(operation, x, 0 * weight), 0 * output)


def test_stacked_weights_run_as_each_does(operator):
    graph, operation, x, weight, _ = operator
    torch.manual_seed(0)
    weights = [torch.randn_like(weight) for _ in range(3)]
    for some in (weights, weights[:1]):
        outputs = run_stacked(graph, operation, x, stack_weights(operation, some), len(some))
        one_by_one = torch.stack([graph.run(operation, x, one) for one in some])
        torch.testing.assert_close(outputs, one_by_one)


def test_a_bias_is_added_where_the_operator_has_a_place_for_it(operator):
    _, operation, *_ = operator
    assert operation.takes_bias == (operation.kind.name not in ("embedding", "matmul"))
