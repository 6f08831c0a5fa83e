"""The metrics of weights alone against numpy."""

import numpy as np
import pytest

from mixbit.metrics import METRICS
from tests.metrics.setting import SCHEMES, assert_agrees, setting_of

SIZES = {
    "weight_error": lambda error, weight: np.mean(error**2),
    "weight_error_absolute": lambda error, weight: np.mean(np.abs(error)),
    "weight_error_relative": lambda error, weight: np.sum(error**2) / np.sum(weight**2),
}


@pytest.mark.parametrize("name", ["convolutions", "attention"])
@pytest.mark.parametrize("metric", SIZES)
def test_entries_are_the_size_of_the_rounding_error(metric, name):
    one = setting_of(name)
    answer = METRICS[metric](one.inputs(labelled=False))
    wanted = [
        [
            SIZES[metric](one.weight_error(layer, scheme).numpy(), one.parameter(layer).detach().numpy())
            if scheme.weight
            else 0
            for scheme in SCHEMES
        ]
        for layer in one.layers
    ]
    assert_agrees(answer.loss, wanted)
    assert (answer.standard_error == 0).all()
    assert answer.num_samples == 10


def test_a_weight_of_zeros_costs_nothing():
    one = setting_of.__wrapped__("shared")  # its own, to be changed
    one.graph.module.get_parameter("a.weight").data.zero_()
    assert (METRICS["weight_error_relative"](one.inputs()).loss == 0).all()
