"""Tables that several processes measure: the same bits as one does, or an error that says what differs."""

from functools import partial

import numpy as np
import pytest

import mixbit as mb
from mixbit.core import Engine, InvalidInput
from mixbit.metrics import METRICS
from mixbit.metrics._input import Estimate, joined
from mixbit.quantization.shared import Shared
from mixbit.quantization.statistics import RunningMean
from tests.subjects import small_subject


def setup(seed=0):
    graph, batches, *_ = small_subject()
    if seed:
        next(iter(graph.module.parameters())).data.add_(seed)
    return graph, batches


def table(shared, metric="fisher"):
    return mb.measure(*setup(), target="packed", metric=metric, shared=shared)


@pytest.fixture(scope="module")
def alone():
    return table(Shared(setup, Engine()))


def assert_same_bits(found, wanted):
    assert found.verdict == wanted.verdict
    assert found.num_samples == wanted.num_samples
    for name in ("loss", "standard_error", "numel"):
        assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes()


def test_two_processes_measure_the_bits_of_one(alone):
    assert_same_bits(table(Shared(setup, Engine(processes=2))), alone)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(processes=4), Engine("ray", 1), Engine("ray", 2), Engine("ray", 4)])
def test_every_engine_measures_the_bits_of_one_process(engine, alone):
    pytest.importorskip("ray")
    assert_same_bits(table(Shared(setup, engine)), alone)


def test_without_sharing_the_table_differs_as_other_draws_do(alone):
    other = table(None)
    assert np.abs(other.loss - alone.loss).max() < 5 * np.hypot(other.standard_error, alone.standard_error).max()


@pytest.mark.slow
def test_other_weights_in_a_worker_are_named():
    counted = partial(setup, 1)
    with pytest.raises(InvalidInput, match=r"setup: returns other weights than at the caller \(digest \w{8}, there"):
        table(Shared(counted, Engine(processes=2)))


def test_what_cannot_travel_is_refused_at_once():
    with pytest.raises(InvalidInput, match=r"setup: cannot go to other processes .*module's top level"):
        Shared(lambda: (), Engine(processes=2))


def test_joined_estimates_are_those_of_all_samples_at_once():
    rows = np.random.default_rng(0).normal(size=(10, 3, 4))
    parts = [rows[:1], rows[1:2], rows[2:7], rows[7:]]

    def estimate(some):
        import torch

        mean = RunningMean(some.shape[1:])
        mean.update(torch.from_numpy(some))
        loss, error, count = mean.result()
        return Estimate(loss, error, count)

    found = estimate(parts[0])
    for part in parts[1:]:
        found = joined(found, estimate(part))
    np.testing.assert_allclose(found.loss, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, rows.std(0, ddof=1) / np.sqrt(10), rtol=1e-12)
    assert found.num_samples == 10


@pytest.mark.slow
@pytest.mark.parametrize("metric", list(METRICS))
def test_every_metric_gives_the_same_bits_in_two_processes(metric):
    one, two = (table(Shared(setup, engine), metric) for engine in (Engine(), Engine(processes=2)))
    assert_same_bits(two, one)
