"""What every metric keeps to, whatever it estimates."""

import functools

import numpy as np
import pytest
import torch

from mixbit.core import InvalidInput, facts_of
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.metrics import METRICS, MetricInput
from mixbit.metrics._input import NEEDS_LABELS
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import calibrate
from tests.networks import ANYTHING, Attention, Residual, assert_state_is, batches_of, state_of

CHOICES = ("float", "w2", "w4", "w8", "w2a8", "w4a8", "w8a8", "w8a3")
SCHEMES = tuple(Scheme.parse(text) for text in CHOICES)
#: Metrics that draw; all others ignore the seed.
DRAWING = {"fisher", "hawq"}
MODELS = {
    "convolutions": (Residual, lambda: torch.randn(20, 2, 6, 6)),
    "attention": (Attention, lambda: torch.randint(0, 6, (20, 5))),
}


@pytest.fixture(params=METRICS)
def metric(request):
    return METRICS[request.param]


@pytest.fixture(params=MODELS)
def network(request):
    return request.param


@pytest.fixture
def setting(network):
    return setting_of(network)


@pytest.fixture
def answer(metric, network):
    return answer_of(metric, network)


@functools.cache
def setting_of(network):
    """A model, its state before it was captured, its graph, layers, data and calibration."""
    torch.manual_seed(0)
    make, data = MODELS[network]
    model, x = make(), data()
    state = state_of(model)
    graph = capture(model, x[:2])
    layers, batches = graph.layers, batches_of(x, 8)
    return model, state, graph, layers, batches, calibrate(graph, batches)


@functools.cache
def answer_of(metric, network):
    return metric(inputs_of(setting_of(network)))


def inputs_of(setting, *, schemes=SCHEMES, seed=0, task=None):
    _, _, graph, _, batches, calibration = setting
    task = task or Task.classification()
    return MetricInput(graph, schemes, calibration, labelled(graph, task, batches), task, seed)


def labelled(graph, task, batches):
    """With labels that the network fits: drawn from its own answers; in a regression, its answers or nearly so.

    Few labels may reward rounding by chance; these do not.
    """
    generator, pairs = torch.Generator().manual_seed(9), []
    for inputs in batches:
        outputs = task.outputs(graph(*inputs.args)).detach()
        drawn = outputs.softmax(-1).multinomial(1, generator=generator).squeeze(-1)
        pairs.append((inputs, drawn if task.has_accuracy else outputs + 1e-3 * outputs.flip(0)))
    return pairs


def test_the_table_is_finite_and_nowhere_negative(answer, setting):
    shape = (len(setting[3]), len(SCHEMES))
    assert answer.loss.shape == answer.standard_error.shape == shape
    assert answer.loss.dtype == answer.standard_error.dtype == np.float64
    assert np.isfinite(answer.loss).all()
    assert np.isfinite(answer.standard_error).all()
    assert (answer.loss >= 0).all()
    assert (answer.standard_error >= 0).all()
    assert 0 < answer.num_samples <= 20


def test_float_costs_nothing_and_bits_pay(answer):
    cost = dict(zip(CHOICES, answer.loss.mean(0), strict=True))
    assert (answer.loss[:, 0] == 0).all()
    assert (answer.standard_error[:, 0] == 0).all()
    of_weights, of_inputs = cost["w2"] > 0, cost["w8a3"] > cost["w8"]
    assert of_weights or of_inputs
    if of_weights:
        assert cost["w2"] > cost["w4"] > cost["w8"] > 0
        assert cost["w2a8"] > cost["w4a8"] > cost["w8a8"] >= cost["w8"]
    else:
        assert cost["w2"] == cost["w4"] == cost["w8"] == 0
        assert cost["w2a8"] == cost["w4a8"] == cost["w8a8"] > 0
    if of_inputs:
        assert cost["w8a3"] > cost["w8a8"]
    else:
        assert cost["w8a3"] == cost["w8a8"] == cost["w8"]


def test_an_entry_does_not_depend_on_the_other_choices(metric, answer, setting):
    for column in (0, 3, 5):
        alone = metric(inputs_of(setting, schemes=SCHEMES[column : column + 1])).loss
        np.testing.assert_allclose(alone[:, 0], answer.loss[:, column], rtol=1e-4, atol=1e-12)


def test_a_seed_gives_the_same_table_and_another_seed_another(request, metric, setting):
    first, again, other = (metric(inputs_of(setting, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.loss, again.loss)
    assert np.array_equal(first.standard_error, again.standard_error)
    name = request.node.callspec.params["metric"]
    assert np.array_equal(first.loss, other.loss) == (name not in DRAWING)


@pytest.mark.usefixtures("anything")
def test_labels_are_needed_where_the_metric_says_so(metric, setting):
    (first, labels), (second, _), *_ = inputs_of(setting).batches
    batches, name = [(first, labels), (second, None)], metric.__name__
    if NEEDS_LABELS in facts_of(metric):
        with pytest.raises(InvalidInput, match=f"metric '{name}' needs labels, batch 1 has none"):
            measure(setting[2], batches, target=ANYTHING, metric=name)
    else:
        assert measure(setting[2], batches, target=ANYTHING, metric=name, choices=["w4a8"]).metric == name


def test_nothing_of_the_users_changes(metric, setting):
    model, state, graph, _, batches, _ = setting
    graph_state, code = state_of(graph.module), graph.module.code
    tensors = [leaf for inputs in batches for leaf in inputs.tensors]
    values = [leaf.clone() for leaf in tensors]
    generator = torch.get_rng_state()
    metric(inputs_of(setting))
    assert torch.equal(torch.get_rng_state(), generator)
    assert_state_is(model, state)
    assert_state_is(graph.module, graph_state)
    assert graph.module.code == code
    for leaf, value in zip(tensors, values, strict=True):
        assert torch.equal(leaf, value)
        assert not leaf.requires_grad
        assert leaf.grad is None


def test_regression_has_a_table_too(metric, setting):
    answer = metric(inputs_of(setting, task=Task.regression()))
    assert np.isfinite(answer.loss).all()
    if answer.loss[:, 1].any():
        assert (answer.loss[:, 1] > 0).all()
    else:  # of inputs alone
        assert ((answer.loss[:, -1] > 0) == [bool(layer.inputs) for layer in setting[3]]).all()
