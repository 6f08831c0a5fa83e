"""What every metric keeps to, whatever it estimates."""

import functools

import numpy as np
import pytest
import torch

from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.metrics import METRICS, MetricInput
from mixbit.quantization.calibrate import calibrate
from tests.networks import Attention, Residual, assert_state_is, batches_of, state_of

CHOICES = ("float", "w2", "w4", "w8", "w2a8", "w4a8", "w8a8", "w8a3")
SCHEMES = tuple(Scheme.parse(text) for text in CHOICES)
#: What some metrics do not look at; all others look at weights and inputs, and draw.
WEIGHTS_ONLY = {"fit_w", "hawq", "weight_error", "weight_error_absolute", "weight_error_relative"}
INPUTS_ONLY = {"fit_a"}
DRAW_NOTHING = set(METRICS) - {"fisher", "hawq"}
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
    return metric(question_of(setting_of(network)))


def question_of(setting, *, schemes=SCHEMES, seed=0, task=None):
    _, _, graph, layers, batches, calibration = setting
    task = task or Task.classification()
    return MetricInput(graph, layers, schemes, calibration, labelled(graph, task, batches), task, seed)


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


def test_float_costs_nothing_and_bits_pay(metric, answer):
    cost = dict(zip(CHOICES, answer.loss.mean(0), strict=True))
    assert (answer.loss[:, 0] == 0).all()
    assert (answer.standard_error[:, 0] == 0).all()
    if metric.__name__ in INPUTS_ONLY:
        assert cost["w2"] == cost["w4"] == cost["w8"] == 0
        assert cost["w2a8"] == cost["w4a8"] == cost["w8a8"] > 0
    else:
        assert cost["w2"] > cost["w4"] > cost["w8"] > 0
        assert cost["w2a8"] > cost["w4a8"] > cost["w8a8"] >= cost["w8"]
    if metric.__name__ in WEIGHTS_ONLY:
        assert cost["w8a3"] == cost["w8a8"] == cost["w8"]
    else:
        assert cost["w8a3"] > cost["w8a8"]


def test_an_entry_does_not_depend_on_the_other_choices(metric, answer, setting):
    for column in (0, 3, 5):
        alone = metric(question_of(setting, schemes=SCHEMES[column : column + 1])).loss
        np.testing.assert_allclose(alone[:, 0], answer.loss[:, column], rtol=1e-4, atol=1e-12)


def test_a_seed_gives_the_same_table_and_another_seed_another(metric, setting):
    first, again, other = (metric(question_of(setting, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.loss, again.loss)
    assert np.array_equal(first.standard_error, again.standard_error)
    assert np.array_equal(first.loss, other.loss) == (metric.__name__ in DRAW_NOTHING)


def test_nothing_of_the_users_changes(metric, setting):
    model, state, graph, _, batches, _ = setting
    graph_state, code = state_of(graph.module), graph.module.code
    tensors = [leaf for inputs in batches for leaf in inputs.tensors]
    values = [leaf.clone() for leaf in tensors]
    generator = torch.get_rng_state()
    metric(question_of(setting))
    assert torch.equal(torch.get_rng_state(), generator)
    assert_state_is(model, state)
    assert_state_is(graph.module, graph_state)
    assert graph.module.code == code
    for leaf, value in zip(tensors, values, strict=True):
        assert torch.equal(leaf, value)
        assert not leaf.requires_grad
        assert leaf.grad is None


def test_regression_has_a_table_too(metric, setting):
    answer = metric(question_of(setting, task=Task.regression()))
    assert np.isfinite(answer.loss).all()
    if metric.__name__ in INPUTS_ONLY:
        assert ((answer.loss[:, -1] > 0) == [bool(layer.inputs) for layer in setting[3]]).all()
    else:
        assert (answer.loss[:, 1] > 0).all()
