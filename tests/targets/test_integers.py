import numpy as np
import pytest
import torch

from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.graph.capture import capture
from mixbit.quantization.affine import num_scales
from mixbit.quantization.offers import why_not
from mixbit.roundings.quantize import quantize
from mixbit.targets._integers import stored_weights
from tests.networks import Residual, by_tensor, captured_operator, operator_network, plan_of

pytestmark = pytest.mark.usefixtures("anything")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped", "conv_transpose2d", "embedding", "matmul, transposed"])
def test_integers_times_scales_are_the_simulated_weight(kind, bits):
    _, _, graph = captured_operator(kind)
    layers = graph.layers
    simulated = quantize(graph, plan_of(layers, f"w{bits}"), [operator_network(kind)[1].double()])
    ((name, weight),) = stored_weights(simulated)[0].items()
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
    np.testing.assert_allclose(weight.integers * weight.column(weight.scale), expected.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheme", ["w4t", "w8z", "w3z", "w4g2", "w5g2z", "w8tz"])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "grouped", "conv_transpose2d", "embedding", "matmul, transposed"])
def test_laid_out_integers_less_zero_points_times_scales_are_the_simulated_weight(kind, scheme):
    _, _, graph = captured_operator(kind)
    layers = graph.layers
    if why_not(layers[0], Scheme.parse(scheme)):
        pytest.skip("the groups do not divide the layer")
    simulated = quantize(graph, plan_of(layers, scheme, "packed"), [operator_network(kind)[1].double()])
    ((name, weight),) = stored_weights(simulated)[0].items()
    fmt = Scheme.parse(scheme).weight
    assert weight.scale.size == num_scales(layers[0].shape, layers[0].axis, fmt)
    assert (weight.zero_point is None) == fmt.symmetric
    zero = 0 if weight.zero_point is None else weight.column(weight.zero_point).astype(int)
    found = (weight.laid_out.astype(int) - zero) * weight.column(weight.scale).astype(float)
    if weight.grouped:
        found = np.moveaxis(found.reshape(weight.channels_first), 0, weight.axis)
    expected = by_tensor(simulated)[name](graph.module.get_parameter(name).detach())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-8)
    assert weight.unsigned.max() < 2**fmt.bits
    np.testing.assert_array_equal(weight.unsigned.astype(int) - weight.offset, weight.laid_out)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_small_floats_are_the_simulated_weight(kind):
    _, _, graph = captured_operator("conv2d")
    simulated = quantize(graph, plan_of(graph.layers, kind, "packed"), [operator_network("conv2d")[1].double()])
    ((name, value),) = stored_weights(simulated)[1].items()
    assert value.dtype == getattr(torch, kind)
    weight = graph.module.get_parameter(name).detach()
    assert torch.equal(value, weight.to(value.dtype))
    assert torch.equal(by_tensor(simulated)[name](weight), value.double())
    assert stored_weights(simulated)[0] == {}


def test_only_weights_have_integers():
    graph = capture(Residual().eval(), x := torch.randn(4, 2, 6, 6))
    layers = graph.layers
    schemes = {"first.weight": "w4a8", "second.weight": "float", "last.weight": "w2"}
    assert set(stored_weights(quantize(graph, plan_of(layers, schemes), [x]))[0]) == {"first.weight", "last.weight"}
    with pytest.raises(InvalidInput, match="not quantized"):
        stored_weights(graph)
