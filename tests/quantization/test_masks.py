"""Masks of sparse formats against dense gradients of each sample, in float64, and what quantize() makes of them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mixbit as mb
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme, Sparsity
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Case
from mixbit.quantization.affine import choose_mask, min_max_factors, num_zeros
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.masks import choose_masks, mean_square_gradients
from mixbit.quantization.quantizer import quantizers_of
from mixbit.quantization.scales import shares, weight_quantizer
from mixbit.roundings.quantize import quantize
from mixbit.searches.search import uniform_plans
from tests.metrics.setting import Calls, calls_of, mean_errors, setting_of
from tests.networks import Net, batches_of, by_tensor, plan_of

HALF = Scheme.parse("w4a8@50%")
BLOCKS = Scheme.parse("w4a8@2:4")


class Signs:
    """The draws of the task, taken down so that a slow reference can repeat them."""

    def __init__(self, task: Task) -> None:
        self.factors: list[Tensor] = []
        head = dataclasses.replace(task.head, draw=self._draw)
        heads = {"output": head, "0": head, "1": task.head}
        self.task = dataclasses.replace(task, heads=heads, weights={"1": 0.0})

    def _draw(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        factors = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        self.factors.append(factors)
        return (factors * outputs).sum()


def case_of(inputs):
    return Case(inputs.graph, inputs.batches, inputs.task, inputs.seed)


@pytest.mark.parametrize("name", ["convolutions", "shared", "attention", "two heads"])
def test_mean_squares_are_those_of_each_samples_gradient_by_autograd(name):
    """By the weight, of the network whose outputs' means stay: a change takes its own mean output off."""
    setting, signs = setting_of(name), Signs(Task.classification())
    found = mean_square_gradients(
        case_of(setting.inputs(labelled=False, task=signs.task)), setting.calibration, setting.layers
    )
    factors = torch.cat(signs.factors)
    for layer in setting.layers:
        weight, total = setting.parameter(layer), 0
        for index, one in enumerate(setting.x.split(1)):
            zeros = torch.zeros_like(weight, requires_grad=True)
            means = _means(setting, layer, zeros)
            with Calls(weight, zeros, means):
                returned = setting.model(one)
            output = Task.classification().outputs(returned)
            (gradient,) = torch.autograd.grad((factors[index] * output).sum(), zeros, allow_unused=True)
            total = total + (0 if gradient is None else gradient.square())
        wanted = (total / len(setting.x)).numpy() if isinstance(total, Tensor) else np.zeros(layer.shape)
        if layer.name != "bent.weight":  # all samples share it: the draws' product estimates the sum
            np.testing.assert_allclose(found[layer.name], wanted, rtol=1e-9, atol=1e-12 * wanted.max())


def _means(setting, layer, change):
    """Of each call, the mean by channel over all data of its output for a change, which gradients pass through."""
    _, calls = calls_of(setting, layer, setting.x)
    return [
        None if position is None else call.channels_last(call.run(call.x, change)).flatten(0, -2).mean(0)
        for call, position in zip(calls, mean_errors(setting, layer, change.detach()), strict=True)
    ]


def calibrated(schemes, importance=None):
    """The convolutions' question with nothing known of masks, and those of an importance chosen."""
    one = setting_of("convolutions")
    question = dataclasses.replace(
        one.inputs(labelled=False, schemes=schemes),
        calibration=dataclasses.replace(one.calibration, masks={}, weight_factors={}),
    )
    if importance is not None:
        choose_masks(case_of(question), question.calibration, question.layers, question.weight_formats, importance)
    return one, question


def test_fisher_keeps_what_costs_most_to_zero():
    """The importance is twice what the metric `fisher` says of zeroing one weight, biases corrected."""
    one, question = calibrated((HALF,), "fisher")
    squares = mean_square_gradients(case_of(question), question.calibration, question.layers)
    for layer in one.layers:
        worth = one.parameter(layer).detach() ** 2 * squares[layer.name]
        kept = question.calibration.masks[layer.name, Sparsity(50)]
        assert torch.equal(kept, choose_mask(worth, layer.axis, Sparsity(50)))
        assert worth[kept].min() >= worth[~kept].max()


def test_magnitude_keeps_the_largest_and_is_taken_where_nothing_was_chosen():
    one, question = calibrated((HALF,), "magnitude")
    _, untouched = calibrated((HALF,))
    for layer in one.layers:
        weight, kept = one.parameter(layer).detach(), question.calibration.masks[layer.name, Sparsity(50)]
        assert weight[kept].abs().min() >= weight[~kept].abs().max()
        quantizer = weight_quantizer(one.graph, layer, HALF.weight, untouched.calibration)
        assert torch.equal(quantizer.mask, kept)


def test_masks_that_are_there_stay():
    _, question = calibrated((HALF,), "magnitude")
    before = dict(question.calibration.masks)
    choose_masks(case_of(question), question.calibration, question.layers, question.weight_formats, "fisher")
    assert question.calibration.masks == before
    assert all(question.calibration.masks[key] is mask for key, mask in before.items())


def test_blocks_are_chosen_only_where_they_fit():
    _, question = calibrated((BLOCKS, HALF), "magnitude")
    blocked = {name for name, sparsity in question.calibration.masks if sparsity.block}
    # rows of 18, 9, 8 x 16 / 2, 2 and 4 weights
    assert blocked == {"c.weight", "e.weight"}


def test_an_unknown_importance_is_refused():
    with pytest.raises(InvalidInput, match=r"importance 'size' is unknown; known: fisher, magnitude"):
        calibrated((HALF,), "size")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scales_are_those_of_the_weights_that_stay_and_errors_those_of_all(bits):
    """The share of the widest scale with the least output error, tried one by one, for each channel."""
    torch.manual_seed(0)
    layer_ = nn.Linear(8, 3).double()
    x = torch.randn(40, 8, dtype=torch.float64)
    graph = capture(nn.Sequential(layer_), x[:3])
    (layer,) = graph.layers
    calibration = calibrate(graph, batches_of(x, 40))
    fmt = Scheme.parse(f"w{bits}@2:4").weight
    quantizer = weight_quantizer(graph, layer, fmt, calibration)
    weight, seen = layer_.weight.detach(), calibration.samples[layer.operations[0].node][0]
    kept = choose_mask(weight.abs(), 0, Sparsity(2, 4))
    widest = min_max_factors(weight * kept, 0, fmt)[0]
    low, high = fmt.integer_range
    for channel in range(3):
        errors = []
        for ratio in shares(layer, fmt).double():
            scale = ratio * widest[channel]
            change = ((weight * kept)[channel] / scale).round().clamp(low, high) * scale - weight[channel]
            errors.append((float((seen @ change).var(unbiased=False)), float(scale)))
        assert min(errors)[1] == pytest.approx(float(quantizer.scale[channel]))
    assert (quantizer(weight)[~kept] == 0).all()


def network():
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.c(net.b(net.a(x).relu()).relu().flatten(1)),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 4, 3),
        c=nn.Linear(16, 5),
    ).eval()


SPARSE = {"a.weight": "w4a8@30%", "b.weight": "w8a8@2:4", "c.weight": "w3a8@1:2"}


@pytest.fixture(scope="module")
def captured():
    x = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return capture(network(), x[:2]), [(part, torch.zeros(6)) for part in x.split(6)]


def test_quantized_weights_have_exactly_the_zeros_of_the_plan(captured):
    graph, batches = captured
    simulated = quantize(graph, plan_of(graph.layers, SPARSE, "packed"), batches)
    for layer in graph.layers:
        quantizer = by_tensor(simulated)[layer.name]
        sparsity = Scheme.parse(SPARSE[layer.name]).weight.sparsity
        assert int((~quantizer.mask).sum()) == num_zeros(layer.numel, sparsity)
        for rounded in (quantizer(graph.module.get_parameter(layer.name)), quantizer.integers(torch.ones(layer.shape))):
            assert (rounded[~quantizer.mask] == 0).all()


def test_zeros_stay_zero_in_training_and_others_move(captured):
    graph, batches = captured
    simulated = quantize(graph, plan_of(graph.layers, SPARSE, "packed"), batches)
    weights = [quantizer for quantizer in quantizers_of(simulated) if quantizer.axis is not None]
    before = {one.tensor: simulated.module.get_parameter(one.tensor).detach().clone() for one in weights}
    optimizer = torch.optim.SGD(simulated.module.parameters(), lr=0.5)
    for x, _ in batches:
        nn.functional.cross_entropy(simulated(x), torch.arange(6) % 5).backward()
        optimizer.step()
    for one in weights:
        after = simulated.module.get_parameter(one.tensor).detach()
        assert torch.equal(after[~one.mask], before[one.tensor][~one.mask])  # their gradient is none
        assert not torch.equal(after[one.mask], before[one.tensor][one.mask])
        assert (one(after)[~one.mask] == 0).all()


def test_biases_take_up_the_mean_of_what_became_zero(captured):
    graph, batches = captured
    plan = plan_of(graph.layers, dict.fromkeys(SPARSE, "float") | {"a.weight": "w8@90%"}, "packed")
    x = torch.cat([part for part, _ in batches])
    outputs = [_value_of(one, "conv2d", x).mean((0, 2, 3)) for one in (graph, quantize(graph, plan, batches))]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


def _value_of(graph, name, x):
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(graph.module).run(x, enable_io_processing=False)
    return values[name].detach()


def test_measure_and_quantize_take_the_same_weights_out(captured):
    graph, batches = captured
    layers = graph.layers
    calibration = calibrate(graph, [Inputs.of(x) for x, _ in batches])
    table = mb.measure(graph, calibration, target="packed", choices=["w8a8", "w4a8@30%"])
    simulated = quantize(graph, plan_of(layers, "w4a8@30%", "packed"), batches)
    for layer in layers:
        assert torch.equal(by_tensor(simulated)[layer.name].mask, calibration.masks[layer.name, Sparsity(30)])
    assert np.isfinite(table.loss).all()
    assert (table.loss[:, 1] > table.loss[:, 0]).all()
    assert (table.usage["weight_bytes"][:, 1] < table.usage["weight_bytes"][:, 0]).all()


def test_blocks_that_do_not_fit_are_not_offered_and_refused_in_a_plan(captured):
    graph, batches = captured
    table = mb.measure(graph, batches, target="packed", choices=["w8a8", "w8a8@2:4"])
    assert np.isinf(table.loss).tolist() == [[False, True], [False, False], [False, False]]
    with pytest.raises(InvalidInput, match=r"^choices: none fits a layer; a.weight: blocks of 4 do not divide"):
        mb.measure(graph, batches, target="packed", choices=["w8a8@2:4"])
    plan = plan_of(graph.layers, "w8a8@2:4", "packed")
    with pytest.raises(InvalidInput, match=r"plan: a.weight: blocks of 4 .* 27 weights; take the scheme"):
        quantize(graph, plan, batches)


def test_uniform_plans_leave_out_layers_with_one_choice(captured):
    graph, batches = captured
    table = mb.measure(graph, batches, target="packed", choices=["w8a8", "w8a8@2:4"])
    plans = uniform_plans(table, mb.Budget(weight_bytes=520))
    assert [list(plan.layers.values()) for plan in plans] == [["w8a8", "w8a8@2:4", "w8a8@2:4"]]


def masks_by(captured, importance):
    """Masks that the calibration is given, and those of what is quantized with it."""
    graph, batches = captured
    layers, scheme = graph.layers, Scheme.parse("w4a8@30%")
    pairs = [(Inputs.of(x), None) for x, _ in batches]
    calibration = calibrate(graph, [inputs for inputs, _ in pairs])
    case = Case(graph, pairs, Task.classification(), 3)
    choose_masks(case, calibration, layers, [scheme.weight], importance)
    found = by_tensor(quantize(graph, plan_of(layers, "w4a8@30%", "packed"), calibration))
    for layer in layers:
        assert torch.equal(found[layer.name].mask, calibration.masks[layer.name, Sparsity(30)])
    return found


def test_quantize_takes_the_masks_of_the_calibration(captured):
    one, other = (masks_by(captured, name) for name in ("magnitude", "fisher"))
    assert not torch.equal(one["b.weight"].mask, other["b.weight"].mask)


def test_quantize_takes_masks_by_magnitude_without_one(captured):
    graph, batches = captured
    found = by_tensor(quantize(graph, plan_of(graph.layers, "w4a8@30%", "packed"), batches))
    assert torch.equal(found["b.weight"].mask, masks_by(captured, "magnitude")["b.weight"].mask)
