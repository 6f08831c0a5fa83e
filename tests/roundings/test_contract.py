"""What holds for every rounding: whole multiples of scales, the same for the same seed, graphs left as they were."""

import functools

import pytest
import torch
from torch import Tensor, fx

from mixbit.core.batches import Inputs
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, argument
from mixbit.quantization.quantizer import quantizers_of
from mixbit.roundings import ROUNDINGS
from mixbit.roundings._input import RoundingInput
from mixbit.roundings.quantize import quantize
from tests.networks import (
    OPERATORS,
    Attention,
    Residual,
    assert_state_is,
    batches_of,
    operator_network,
    plan_of,
    state_of,
)

#: Roundings that make the mean square error of an operator's output smaller, on the data that they are given.
OUTPUT_ERROR = ("gptq",)
#: Those that make the distance of the network's output from the float one's smaller, biases and all.
DISTANCE = ("adaround", "brecq")
#: As many iterations as these small networks need.
METHODS = dict(ROUNDINGS) | {name: functools.partial(ROUNDINGS[name], iterations=25) for name in DISTANCE}
METHODS |= {f"{name}:inputs=float": functools.partial(METHODS[name], inputs="float") for name in DISTANCE}
pytestmark = [pytest.mark.usefixtures("anything"), pytest.mark.parametrize("name", METHODS)]


def rounding_input(graph: Graph, x: Tensor, scheme: str, seed: int = 0) -> RoundingInput:
    """What `quantize` gives a rounding."""
    given = []
    plan = plan_of(graph.layers, scheme)
    quantize(graph, plan, batches_of(x, 8), rounding=lambda it: given.append(it) or it.simulated, seed=seed)
    return given[0]


@functools.cache
def operator_input(kind: str) -> tuple[Tensor, RoundingInput]:
    model, x = operator_network(kind, 24)
    return x, rounding_input(capture(model, x), x, "w3a8")


@functools.cache
def network_input(network: str) -> tuple[Tensor, RoundingInput]:
    torch.manual_seed(0)
    if network == "residual":
        model, x = Residual().eval(), torch.randn(9, 2, 6, 6)
    else:
        model, x = Attention(), torch.arange(45).view(9, 5) % 6
    return x, rounding_input(capture(model, x), x, "w4a8", seed=3)


def output_error(given: RoundingInput, result: Graph, x: Tensor) -> float:
    """Mean square error of the only operator's output from its weight, the mean taken off where its bias does so."""
    (layer,) = given.graph.layers
    (operation,) = layer.operations
    node = result.node(operation.node)
    interpreter = fx.Interpreter(result.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*result.leaves(Inputs.of(x)), enable_io_processing=False)
        quantizer = next(one for one in quantizers_of(result) if one.axis is not None)
        weight = result.parameter(layer.name)
        change = (quantizer(weight) - given.graph.parameter(layer.name)).double()
        error = result.run(operation, interpreter.env[argument(node, operation.data)].double(), change)
    channels = error.movedim(-1 if operation.channels_last else 1, 0).flatten(1)
    if operation.takes_bias:
        channels = channels - channels.mean(1, keepdim=True)
    return float(channels.square().mean())


@torch.no_grad()
def distance(given: RoundingInput, result: Graph, x: Tensor) -> float:
    """Mean square distance of the network's output from the float network's."""
    return float((result(x) - given.graph(x)).double().square().mean())


@pytest.mark.parametrize("kind", OPERATORS)
def test_weights_are_whole_multiples_of_their_scales_and_no_worse_than_the_nearest(name, kind):
    x, given = operator_input(kind)
    result = METHODS[name](given)
    (quantizer,) = (one for one in quantizers_of(result) if one.axis is not None)
    weight = result.parameter(quantizer.tensor).detach()
    rounded = quantizer(weight)
    if name in OUTPUT_ERROR and not kind.startswith(("conv_transpose", "embedding")):
        assert torch.equal(rounded, weight), "the quantizer changes nothing"
        assert output_error(given, result, x) <= output_error(given, given.simulated, x) * (1 + 1e-5)
    if name.partition(":")[0] in DISTANCE:
        assert distance(given, result, x) <= distance(given, given.simulated, x) * (1 + 1e-5)
    integers = rounded.movedim(quantizer.axis, 0).flatten(1) / quantizer.scale[:, None]
    torch.testing.assert_close(integers, integers.round(), atol=1e-5, rtol=0)
    assert integers.round().min() >= -4
    assert integers.round().max() <= 3


@pytest.mark.parametrize("network", ["residual", "attention"])
def test_the_same_seed_gives_the_same_and_nothing_given_changes(name, network):
    _, given = network_input(network)
    graphs = [given.graph.module, given.simulated.module]
    before, codes = [state_of(one) for one in graphs], [one.code for one in graphs]
    first, second = (state_of(METHODS[name](given).module)["tensors"] for _ in range(2))
    assert first.keys() == second.keys() == before[1]["tensors"].keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    for graph, state, code in zip(graphs, before, codes, strict=True):
        assert_state_is(graph, state)
        assert graph.code == code


@pytest.mark.parametrize("network", ["residual", "attention"])
def test_the_result_is_the_simulated_graph_with_other_numbers(name, network):
    x, given = network_input(network)
    result = METHODS[name](given)
    assert result.plan == given.simulated.plan
    assert result.layers == given.simulated.layers
    result.module.graph.lint()
    kinds = [[(node.op, str(node.target)) for node in one.module.graph.nodes] for one in (result, given.simulated)]
    assert sorted(kinds[0]) == sorted(kinds[1])
    for ours, theirs in zip(quantizers_of(result), quantizers_of(given.simulated), strict=True):
        assert (ours.tensor, ours.format, ours.axis) == (theirs.tensor, theirs.format, theirs.axis)
    with torch.no_grad():
        expected = given.graph(x)
        assert (result(x) - expected).abs().max() < 0.5 * expected.abs().max()
