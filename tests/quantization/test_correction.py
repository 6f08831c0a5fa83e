from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.graph.capture import capture
from mixbit.graph.graph import tensor_of
from mixbit.graph.walk import depths
from mixbit.quantization.biases import corrected
from mixbit.quantization.calibrate import calibrate
from mixbit.roundings.quantize import quantize
from tests.networks import (
    OPERATORS,
    Attention,
    Net,
    Residual,
    assert_state_is,
    batches_of,
    by_tensor,
    captured_operator,
    plan_of,
    state_of,
)

pytestmark = pytest.mark.usefixtures("anything")


class Values(torch.fx.Interpreter):
    """What every node of a graph returns for some inputs."""

    def __init__(self, graph, *inputs):
        super().__init__(graph.module, garbage_collect_values=False)
        with torch.no_grad():
            self.run(*inputs, enable_io_processing=False)
        self.of = {node.name: value for node, value in self.env.items()}


def mean_errors(graph, simulated, x):
    """Operator's node -> [channels] mean difference of its output from the float graph's, all data at once."""
    wanted, got = Values(graph, x).of, Values(simulated, x).of
    return {
        operation.node: (got[operation.node] - wanted[operation.node])
        .movedim(-1 if operation.channels_last else 1, -1)
        .flatten(0, -2)
        .mean(0)
        for layer in graph.layers
        for operation in layer.operations
        if operation.takes_bias
    }


def residual():
    torch.manual_seed(0)
    model = Residual().eval().double()
    x = torch.randn(40, 2, 6, 6, dtype=torch.float64)
    return capture(model, x[:2]), x


@pytest.mark.parametrize("kind", OPERATORS)
def test_the_mean_error_of_every_kind_of_operator_is_cancelled(kind):
    _, x, graph = captured_operator(kind)
    torch.manual_seed(1)
    x = torch.randn(8, *x.shape[1:], dtype=torch.float64) + 0.5
    simulated = quantize(graph, plan_of(graph.layers, "w2"), [x], bias_correction="off")
    found = corrected(graph, simulated, batches_of(x, 3))
    assert all(error.abs().max() < 1e-12 for error in mean_errors(graph, found, x).values())


def test_every_operator_of_a_network_is_corrected_behind_those_before_it():
    graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w2"), [x])
    before, after = (
        mean_errors(graph, simulated, x),
        mean_errors(graph, corrected(graph, simulated, batches_of(x, 7)), x),
    )
    assert len(after) == 3
    assert max(error.abs().max() for error in before.values()) > 1e-3, "at once, the first layers shift the others"
    assert max(error.abs().max() for error in after.values()) < 1e-12


def test_biases_stay_whole_multiples_where_inputs_are_integers():
    graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w8a3"), [x])
    found = corrected(graph, simulated, batches_of(x, 10))
    errors, quantizers = mean_errors(graph, found, x), by_tensor(found)
    for layer in found.layers:
        (operation,) = layer.operations
        step = quantizers[operation.input].scale * quantizers[layer.name].scale
        bias = tensor_of(found.module, found.node(operation.node).args[operation.kind.bias])
        assert torch.allclose(bias / step, torch.round(bias / step), atol=1e-9)
        assert (errors[operation.node].abs() <= step * 0.5001).all()
    worst = [sum(float(e.abs().sum()) for e in mean_errors(graph, one, x).values()) for one in (found, simulated)]
    assert worst[0] < 0.6 * worst[1]


@pytest.mark.parametrize("correction", ["at_once", "sequential", "off"])
def test_a_bias_of_one_number_serves_all_channels(correction):
    torch.manual_seed(0)
    net = Net(
        lambda net, x: torch.addmm(net.b, x, net.w), w=nn.Parameter(torch.randn(6, 4)), b=nn.Parameter(torch.ones(1))
    )
    x = torch.randn(20, 6).double()
    graph = capture(net.double(), x)
    found = quantize(graph, plan_of(graph.layers, "w8a8"), [x], bias_correction=correction)
    (layer,), quantizers = found.layers, by_tensor(found)
    (operation,) = layer.operations
    bias = tensor_of(found.module, found.node(operation.node).args[operation.kind.bias])
    step = quantizers[operation.input].scale * quantizers[layer.name].scale
    torch.testing.assert_close(bias.expand(4) / step, torch.round(bias / step), atol=1e-9, rtol=0)
    assert float(((found(x) - graph(x)).std() / graph(x).std()).detach()) < 0.01


def test_both_graphs_are_left_as_they_are():
    graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w2a4"), [x])
    states, codes = [state_of(one.module) for one in (graph, simulated)], [graph.module.code, simulated.module.code]
    found = corrected(graph, simulated, batches_of(x, 10))
    for one, state, code in zip((graph, simulated), states, codes, strict=True):
        assert_state_is(one.module, state)
        assert one.module.code == code
    assert found.plan == simulated.plan
    assert not torch.equal(found(x), simulated(x))


def test_operators_that_do_not_depend_on_one_another_take_one_pass():
    graph = capture(Attention(), torch.randint(0, 6, (3, 5)))
    operators = [name for name, (_, operation) in graph.operations.items() if operation.takes_bias]
    levels = [level for node, level in depths(graph.module.graph, operators).items() if node.name in operators]
    assert levels == [1, 1, 1, 2], "queries, keys and values together, then the head"


def test_a_shared_weight_has_a_bias_for_each_use():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.a(F.relu(net.a(x))), a=nn.Linear(4, 4)).double()
    x = torch.randn(30, 4, dtype=torch.float64)
    graph = capture(net, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, "w2"), [x])
    found = corrected(graph, simulated, batches_of(x, 8))
    assert max(error.abs().max() for error in mean_errors(graph, found, x).values()) < 1e-12


def test_a_simulation_of_another_graph_is_refused():
    graph, x = residual()
    simulated = quantize(graph, plan_of(graph.layers, "w4"), [x])
    with pytest.raises(InvalidInput, match="of another graph"):
        corrected(captured_operator("linear")[2], simulated, batches_of(captured_operator("linear")[1], 3))


def test_quantize_corrects_in_sequence_after_any_rounding():
    graph, x = residual()
    plan, batches = plan_of(graph.layers, "w2a4"), list(x.split(10))
    inputs, spoilt = [Inputs.of(batch) for batch in batches], []

    def spoils(asked):
        """A rounding that changes biases."""
        spoilt.append(corrected(graph, asked.simulated, [inputs[0]]))
        return spoilt[0]

    for rounding, before in (("nearest", lambda: quantize(graph, plan, batches)), (spoils, lambda: spoilt[0])):
        found = quantize(graph, plan, batches, rounding=rounding, bias_correction="sequential")
        assert torch.equal(found(x), corrected(graph, before(), inputs)(x))
        assert not torch.equal(found(x), before()(x))
    with pytest.raises(InvalidInput, match="bias_correction=True: give a text"):
        quantize(graph, plan, batches, bias_correction=True)


def test_correction_in_sequence_needs_the_batches():
    graph, x = residual()
    layers = graph.layers
    calibration = calibrate(graph, [x])
    with pytest.raises(InvalidInput, match="sequential bias correction: a calibration alone is not enough"):
        quantize(graph, plan_of(layers, "w3a4"), replace(calibration, batches=()), bias_correction="sequential")
    found = quantize(graph, plan_of(layers, "w3a4"), calibration, bias_correction="sequential")
    assert torch.equal(found(x), quantize(graph, plan_of(layers, "w3a4"), [x], bias_correction="sequential")(x))
