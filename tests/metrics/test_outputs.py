"""Every output counts in every metric that runs the network; here against closed forms for a linear head of numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixbit.core.task import Task
from mixbit.graph import fitted
from mixbit.metrics import METRICS
from tests.metrics.setting import SCHEMES, setting_of

ONE = setting_of("two heads")  # (a(x), b(x)); the task knows the first
TASK = fitted(Task.classification(), ONE.graph, ONE.inputs().batches)
ROW = [layer.name for layer in ONE.layers].index("b.weight")


def errors():
    """[C - 1, N, J] what rounding the weight of the second head adds to its output, less its mean."""
    layer = ONE.layers[ROW]
    rows = torch.stack([ONE.x @ ONE.weight_error(layer, scheme).T for scheme in SCHEMES[:-1]])
    return (rows - rows.mean(1, keepdim=True)).detach()


def unit():
    return ONE.model(ONE.x)[1].std(0, correction=0).detach()


def weight_only(name, **options):
    schemes = tuple(type(scheme)(scheme.weight) for scheme in SCHEMES[:-1])
    return METRICS[name](ONE.inputs(task=TASK, schemes=schemes), **options)


def test_measured_costs_are_half_the_mean_relative_squares():
    expected = 0.5 * (errors() / unit()).square().mean((1, 2))
    np.testing.assert_allclose(weight_only("measured").loss[ROW], expected.numpy(), rtol=1e-5)


@pytest.mark.slow
def test_fisher_costs_have_these_as_mean():
    draws = [METRICS["fisher"](replace(ONE.inputs(task=TASK), seed=seed)).loss[ROW, :-1] for seed in range(300)]
    expected = weight_only("measured").loss[ROW]
    np.testing.assert_allclose(np.mean(draws, 0)[0], expected[0], rtol=0.1)


def test_hawqs_trace_is_that_of_the_relative_squares():
    """1/2 mean_j (sum_k W_jk x_k / s_j)^2 has the second derivative x_k^2 / (J s_j^2) by W_jk."""
    second = ONE.x.square().mean(0) / (unit().square().unsqueeze(1) * len(unit()))
    trace = METRICS["hawq"](ONE.inputs(task=TASK), vectors=100, tolerance=1e-9).trace
    np.testing.assert_allclose(trace[ROW], float(second.mean()), rtol=0.02)


def test_fits_trace_is_that_of_the_information():
    weight = ONE.parameter(ONE.layers[ROW]).detach()
    traces = (ONE.x.square().sum(1, keepdim=True) / (unit().square() * len(unit()))).sum(1).mean()
    steps = (weight.max() - weight.min()) / torch.tensor([2.0**scheme.weight.bits - 1 for scheme in SCHEMES[:-1]])
    expected = 0.5 * float(traces) * steps.square() / 12
    np.testing.assert_allclose(weight_only("fit_w").loss[ROW, :3], expected[:3].numpy(), rtol=1e-5)


def test_modelopts_squares_are_those_of_the_units():
    layer = ONE.layers[ROW]
    rows = torch.stack([ONE.x @ ONE.weight_error(layer, scheme).T for scheme in SCHEMES[:-1]]).detach()
    expected = (rows / unit()).square().sum(2).mean(1) / len(unit())
    np.testing.assert_allclose(weight_only("modelopt").loss[ROW], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["autoround", "measured_loss"])
def test_every_other_metric_of_the_loss_counts_it(name):
    assert (METRICS[name](ONE.inputs(task=TASK)).loss[ROW, :-1] > 0).all()
    assert (METRICS[name](ONE.inputs()).loss[ROW, 0] == 0).all()
