import numpy as np
import pytest
import torch

from mixbit.graph import capture
from mixbit.integers import integer_weights
from mixbit.layers import find_layers
from mixbit.quantization import quantize
from tests.networks import Residual, by_tensor, captured_operator, operator_network, plan_of

pytestmark = pytest.mark.usefixtures("anything")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped", "conv_transpose2d", "embedding", "matmul, transposed"])
def test_integers_times_scales_are_the_simulated_weight(kind, bits):
    _, _, graph = captured_operator(kind)
    layers = find_layers(graph)
    simulated = quantize(graph, plan_of(layers, f"w{bits}"), [operator_network(kind)[1].double()])
    ((name, weight),) = integer_weights(simulated).items()
    assert (name, weight.name, weight.bits, weight.axis) == (layers[0].name, name, bits, layers[0].axis)
    assert weight.integers.dtype == np.int8
    assert weight.integers.shape == layers[0].shape
    assert weight.scale.dtype == np.float32
    assert weight.scale.shape == (layers[0].shape[weight.axis],)
    assert weight.integers.min() >= -(2 ** (bits - 1))
    assert weight.integers.max() <= 2 ** (bits - 1) - 1
    assert weight.offset == 2 ** (bits - 1)
    assert weight.unsigned.dtype == np.uint8
    np.testing.assert_array_equal(weight.unsigned.astype(int) - weight.offset, weight.integers)
    expected = by_tensor(simulated)[name](graph.module.get_parameter(name).detach())
    np.testing.assert_allclose(weight.integers * weight.column, expected.numpy(), rtol=1e-6, atol=1e-9)


def test_only_weights_have_integers():
    graph = capture(Residual().eval(), x := torch.randn(4, 2, 6, 6))
    layers = find_layers(graph)
    schemes = {"first.weight": "w4a8", "second.weight": "float", "last.weight": "w2"}
    assert set(integer_weights(quantize(graph, plan_of(layers, schemes), [x]))) == {"first.weight", "last.weight"}
    assert integer_weights(graph) == {}
