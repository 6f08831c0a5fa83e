"""The metric `autoround` against gradients of the plain model, a batch at a time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mixbit.core.task import Task
from mixbit.metrics.autoround import autoround
from tests.metrics.setting import NETWORKS, SCHEMES, assert_agrees, calls_of, setting_of


def scores_of(one, layer, x, labels):
    """[C] sums of |gradient x error| over the weight and over what its operators read."""
    returned, calls = calls_of(one, layer, x)
    loss = F.cross_entropy(Task.classification().outputs(returned), labels)
    leaves = [one.parameter(layer), *(call.zeros for call in calls if call.zeros is not None)]
    by_weight, *by_input = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    scores = np.zeros(len(SCHEMES))
    for column, scheme in enumerate(SCHEMES[:-1]):
        scores[column] = float((by_weight * one.weight_error(layer, scheme)).abs().sum())
        if scheme.input is not None:
            reading = [pair for pair in zip(calls, layer.operations, strict=True) if pair[1].input is not None]
            for (call, operation), slope in zip(reading, by_input, strict=True):
                error = one.input_quantizer(operation.input, scheme)(call.x) - call.x
                scores[column] += float((slope * error).abs().sum())
    return scores


def rows_of(one, size):
    """[B, L, C]."""
    pairs = zip(one.x.split(size), one.labels.split(size), strict=True)
    return np.array([[scores_of(one, layer, x, labels) for layer in one.layers] for x, labels in pairs])


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_sizes_of_gradients_times_errors(name):
    one = setting_of(name)
    answer = autoround(one.inputs(size=5))
    rows = rows_of(one, 5)
    assert answer.num_samples == 2
    assert_agrees(answer.loss, rows.mean(0))
    assert_agrees(answer.standard_error, rows.std(0, ddof=1) / np.sqrt(2))
    assert (answer.loss[0, :-1] > 0).all()
    if name == "two heads":  # the second does not reach the logits
        assert (answer.loss[1] == 0).all()


def test_batches_count_by_their_size():
    one = setting_of("shared")
    answer, rows = autoround(one.inputs(size=4)), rows_of(one, 4)
    shares = np.array([0.4, 0.4, 0.2]).reshape(3, 1, 1)
    mean = (shares * rows).sum(0)
    assert answer.num_samples == 3
    assert_agrees(answer.loss, mean)
    assert_agrees(answer.standard_error, np.sqrt(1.5 * (shares**2 * (rows - mean) ** 2).sum(0)))


def test_a_single_batch_is_a_single_sample():
    answer = autoround(setting_of("shared").inputs(size=10))
    assert answer.num_samples == 1
    assert np.isinf(answer.standard_error).all()
