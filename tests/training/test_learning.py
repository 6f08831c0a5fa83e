import math

import pytest
import torch

import mixbit as mb
from mixbit.core.batches import split_batch
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.demo import data
from mixbit.demo.network import trained
from mixbit.graph.capture import capture
from mixbit.graph.evaluate import evaluate
from mixbit.quantization.affine import LARGEST_BIAS
from mixbit.quantization.quantizer import Quantizer, quantizers_of
from mixbit.quantization.simulate import assemble
from mixbit.roundings.quantize import quantize
from mixbit.training.loop import learnable, settled
from tests.networks import OPERATORS, Residual, assert_state_is, by_tensor, operator_network, plan_of, state_of


def assert_same_tensors(graph, other):
    states = graph.module.state_dict(), other.module.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def residual(scheme="w3a4", target="anything"):
    torch.manual_seed(0)
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    x = torch.randn(20, 2, 6, 6)
    return quantize(graph, plan_of(graph.layers, scheme, target), [x]), x


@pytest.mark.usefixtures("anything")
def test_a_learnable_graph_does_the_same_and_its_scales_are_parameters():
    simulated, x = residual()
    before = state_of(simulated.module)
    graph = learnable(simulated)
    assert torch.equal(graph(x), simulated(x))
    names = {name for name, _ in graph.module.named_parameters()} - dict(simulated.module.named_parameters()).keys()
    assert len(names) == 6  # three weights and their inputs
    assert all(name.endswith(".scale") for name in names)
    graph(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in graph.module.parameters())
    assert_state_is(simulated.module, before)


@pytest.mark.usefixtures("anything")
def test_gradients_of_scales_are_divided_by_the_root_of_their_sharers_and_their_largest_integer():
    graph = learnable(residual()[0])
    shares = {name: one.share for name, one in by_tensor(graph).items()}
    assert shares["first.weight"] == pytest.approx(1 / math.sqrt(2 * 9 * 3))  # [4, 2, 3, 3], 3 bits: -4 .. 3
    assert shares["last.weight"] == pytest.approx(1 / math.sqrt(4 * 3))
    assert shares["x"] == pytest.approx(1 / math.sqrt(2 * 6 * 6 * 15))  # one sample, 4 bits: 0 .. 15


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("kind", OPERATORS)
def test_settled_biases_are_whole_multiples_of_their_steps(kind):
    model, x = operator_network(kind, 8)
    graph = capture(model, x)
    trained = learnable(quantize(graph, plan_of(graph.layers, "w3a8"), [x]))
    with torch.no_grad():
        for quantizer in quantizers_of(trained):
            quantizer.scale.mul_(torch.rand_like(quantizer.scale) + 0.5)
        for name, parameter in trained.module.named_parameters():
            if name.endswith(("bias", "b")):
                parameter.add_(torch.randn_like(parameter))
    before = state_of(trained.module)
    done = settled(trained)
    assert_state_is(trained.module, before)
    assert not any(quantizer.learns for quantizer in quantizers_of(done))
    (layer,) = done.layers
    found = by_tensor(done)
    (operation,) = layer.operations
    if operation.input is None or operation.kind.bias is None:
        return
    node = done.node(operation.node)
    bias = done.parameter(str(node.args[operation.kind.bias].target)).double()
    products = found[operation.input].scale.double() * found[layer.name].scale.double()
    steps = bias / products.repeat(len(bias) // len(products))
    assert (steps - steps.round()).abs().max() < 1e-3
    assert steps.abs().max() > 1
    torch.testing.assert_close(done(x), trained(x), atol=0.05, rtol=0)


@pytest.mark.usefixtures("anything")
def test_what_did_not_train_is_settled_already():
    simulated, _ = residual()
    for graph in (settled(simulated), settled(learnable(simulated))):
        assert_same_tensors(graph, simulated)


@pytest.mark.usefixtures("anything")
def test_a_scale_too_small_for_its_bias_is_raised():
    graph = learnable(residual()[0])
    with torch.no_grad():
        graph.module.get_parameter("last.bias")[1] = 100.0
        by_tensor(graph)["last.weight"].scale[1] = -1.0
    done = settled(graph)
    scale = by_tensor(done)["last.weight"].scale
    read = next(o.input for layer in done.layers if layer.name == "last.weight" for o in layer.operations)
    steps = 100 / (scale[1] * by_tensor(done)[read].scale)
    assert steps == pytest.approx(LARGEST_BIAS, rel=1e-3)
    assert torch.equal(scale[[0, 2]], by_tensor(graph)["last.weight"].scale[[0, 2]])


@pytest.mark.usefixtures("anything")
def test_weights_that_are_left_out_stay_zero():
    graph = learnable(residual()[0])
    quantizer = by_tensor(graph)["second.weight"]
    weight = graph.module.get_parameter("second.weight")
    quantizer.mask = torch.rand_like(weight) > 0.5
    x = torch.randn(5, 2, 6, 6)
    optimizer = torch.optim.AdamW(graph.module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        graph(x).square().sum().backward()
        optimizer.step()
    assert (weight[~quantizer.mask] != 0).any()  # decay and momentum do not know of the mask
    done = settled(graph)
    assert (done.module.get_parameter("second.weight")[~quantizer.mask] == 0).all()
    assert torch.equal(done(x), settled(done)(x))


@pytest.mark.usefixtures("anything")
def test_a_float_graph_is_copied():
    torch.manual_seed(0)
    graph = capture(Residual().eval(), torch.randn(2, 2, 6, 6))
    for copied in (learnable(graph), settled(graph)):
        assert copied.module is not graph.module
        assert_same_tensors(copied, graph)


@pytest.mark.usefixtures("anything")
def test_small_floats_have_no_scale_and_groups_have_several():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    graph = capture(model, torch.randn(2, 8))
    groups, half = Scheme.parse("w4g4z").weight, Scheme.parse("float16").weight
    scale, zero_point = torch.rand(4, 2) + 0.1, torch.full((4, 2), 7.0)
    quantizers = [
        Quantizer("0.weight", groups, 0, scale, zero_point),
        Quantizer("2.weight", half, 0, torch.ones(1), torch.zeros(1)),
    ]
    simulated = assemble(graph, plan_of(graph.layers, "w4"), quantizers, {})
    training = learnable(simulated)
    assert [one.learns for one in quantizers_of(training)] == [True, False]
    training(torch.randn(3, 8)).sum().backward()
    assert by_tensor(training)["0.weight"].scale.grad.shape == (4, 2)
    assert_same_tensors(settled(training), simulated)


@pytest.mark.parametrize("target", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_trained_graph_runs_as_it_is_simulated(target, tmp_path):
    """The demo's network at 3 bits, after a few steps of a plain loop."""
    torch.manual_seed(0)
    pairs = [split_batch(batch) for batch in data.calibration_batches()]
    graph = capture(trained(), pairs[0][0].args)
    simulated = quantize(graph, plan_of(graph.layers, "w3a8", target), [inputs for inputs, _ in pairs])
    graph_in_training = learnable(simulated)
    optimizer = torch.optim.AdamW(graph_in_training.module.parameters(), lr=1e-3)
    for inputs, labels in pairs:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(graph_in_training(*inputs.args), labels).backward()
        optimizer.step()
    with pytest.raises(InvalidInput, match="settled"):
        mb.export(graph_in_training, tmp_path / "early")
    done = settled(graph_in_training)
    assert not torch.equal(done(*pairs[0][0].args), simulated(*pairs[0][0].args))
    mb.export(done, tmp_path / "out")
    found = mb.verify(tmp_path / "out", graph, done, data.test_batches())
    assert found.problems == ()
    task, pairs = Task.classification(), [split_batch(batch) for batch in data.test_batches()]
    reference = evaluate(done, pairs, task, "simulate")
    assert abs(found.accuracy - reference.accuracy) <= 0.0013  # one image of 797
