"""Which samples `fisher` runs backward: few where few hold the information, without changing what is expected."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.batches import Inputs
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.metrics import MetricInput, _selection
from mixbit.metrics._selection import Selection
from mixbit.metrics.fisher import fisher
from mixbit.quantization.calibrate import calibrate

SCHEMES = tuple(Scheme.parse(text) for text in ("w2", "w4a4"))


def confident(samples=48, unsure=6):
    """A classifier that is sure of all samples but few, whose logits are small."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(samples, 8) * 1000
    x[:: samples // unsure] /= 1000
    return network.eval(), x


def inputs_of(network, x, task=None):
    graph, pairs = capture(network, (x,)), [(Inputs.of(part), None) for part in x.split(16)]
    task = task or Task.classification()
    return MetricInput(graph, SCHEMES, calibrate(graph, pairs), pairs, task, 0)


def test_few_of_a_confident_network_stand_for_all():
    inputs = inputs_of(*confident())
    selection = Selection(inputs)
    chosen, times = zip(*(selection.of_batch(*pair) for pair in inputs.batches), strict=True)
    assert 12 <= sum(map(len, chosen)) <= 36
    assert sum(some.count(0) for some in chosen) > len(chosen), "the unsure ones run several times"
    assert torch.cat(times).min() < 1, "each run with a part of the weight"


def test_costs_are_expected_to_be_those_of_all_samples(monkeypatch):
    one = inputs_of(*confident())
    answers = [fisher(dataclasses.replace(one, seed=seed)) for seed in range(40)]
    few, errors = (np.stack([getattr(each, name) for each in answers]) for name in ("loss", "standard_error"))
    monkeypatch.setattr(_selection, "MOST_CHOSEN", 0.0)
    every = np.stack([fisher(dataclasses.replace(one, seed=seed)).loss for seed in range(40)])
    off = np.hypot(few.std(0), every.std(0)) / np.sqrt(40)
    assert (np.abs(few.mean(0) - every.mean(0)) <= 4 * off).all()
    assert (few.std(0) <= 1.2 * errors.mean(0)).all(), "standard errors hold what the choice adds"


@pytest.mark.parametrize("task", [Task.classification(), Task.regression()], ids=["unsure", "numbers"])
def test_all_are_taken_where_none_stand_out(task):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(48, 8) / 100
    inputs = inputs_of(network, x, task=task)
    selection = Selection(inputs)
    for pair in inputs.batches:
        chosen, times = selection.of_batch(*pair)
        assert chosen == list(range(16))
        assert (times == 1).all()
    assert not selection.is_useful, "looking for them ended with the first batch"
