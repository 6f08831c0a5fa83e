"""Tables that several processes measure: the same bits as one does, or an error that says what differs."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import mixbit as mb
from mixbit.core import Engine, InvalidInput
from mixbit.metrics import METRICS
from mixbit.metrics._input import Estimate, joined
from mixbit.quantization.shared import Shared
from mixbit.quantization.statistics import RunningMean
from tests.subjects import small_subject


def setup(seed=0):
    """Eight batches with labels, so that most metrics have rounds of two, two and four shards."""
    graph, _, evaluation, _ = small_subject()
    x, labels = (torch.cat(part) for part in zip(*evaluation, strict=True))
    if seed:
        next(iter(graph.module.parameters())).data.add_(seed)
    return graph, [*zip(x.split(12), labels.split(12), strict=True)]


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


def counted(calls):
    with calls.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return setup()


def test_two_processes_measure_the_bits_of_one_and_make_the_network_once(alone, tmp_path):
    calls = tmp_path / "calls"
    with Shared(partial(counted, calls), Engine(processes=2)).begun() as shared:
        assert_same_bits(table(shared), alone)
        assert_same_bits(table(shared), alone)
    processes = calls.read_text().split()
    assert len(processes) == len({*processes}) <= 2


SCRIPT = """
import mixbit as mb
from mixbit.quantization.shared import Shared
from tests.metrics.test_shared import setup as made


def setup():
    return made()


if __name__ == "__main__":
    shared = Shared(setup, mb.Engine(ENGINE, 2))
    print(mb.measure(*setup(), target="packed", shared=shared).verdict)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_scripts_own_setup_travels(engine, alone, tmp_path):
    pytest.importorskip("ray")
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.replace("ENGINE", repr(engine)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    printed = subprocess.run([sys.executable, file], env=environment, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == alone.verdict


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
