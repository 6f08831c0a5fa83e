"""Latencies of choices, with runtimes whose true times are known; targets have their own tests."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.batches import Inputs
from mixbit.core.errors import InfeasibleBudget
from mixbit.core.target import Runner, Target
from mixbit.quantization.calibrate import calibrate
from mixbit.targets import latency as timing
from tests.networks import Net

CHOICES = ["w8a8", "w4a8", "float"]
#: How a runtime executes each, and what it takes in each of the four layers.
EXECUTED = {"w8a8": "int8", "w4a8": "int8", "float": "float32"}
TRUE_MS = {"int8": np.array([1.0, 2.0, 3.0, 0.5]), "float32": np.array([4.0, 2.5, 9.0, 0.5])}
BASE_MS = 0.25


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)

    def forward(net, x):
        x = net.a(x)
        return net.d(net.b(x) + net.c(x))

    network = Net(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), d=nn.Linear(8, 3))
    batches = [torch.randn(16, 8)]
    graph = mb.capture(network.eval(), batches[0])
    calibration = calibrate(graph, [Inputs.of(batches[0])])
    table = mb.measure(graph, calibration, target="packed", choices=CHOICES, metric="weight_error")
    return table, graph, calibration


@pytest.fixture
def runtime(monkeypatch):
    """A runtime with the true times; the plans that were written to it."""
    written = []

    def loaded(target, simulated, graph, batch_size):
        plan = simulated.plan
        executed = {layer: EXECUTED[scheme] for layer, scheme in plan.layers.items()}
        written.append(plan)
        total = BASE_MS + sum(TRUE_MS[text][row] for row, text in enumerate(executed.values()))
        return nullcontext(Runner(lambda _: total, lambda: executed, {}))

    monkeypatch.setattr(Target, "written", loaded)
    monkeypatch.setattr(
        timing,
        "paired_times",
        lambda runs, sample, label: timing.Times({name: np.array([run(sample)]) for name, run in runs.items()}),
    )
    return written


def test_the_interval_of_a_ratio_holds_the_true_one_in_95_percent():
    generator = np.random.default_rng(0)

    def drawn():
        busy = generator.exponential(size=(200, 60))  # slows both runs of a round alike
        apart = generator.normal(scale=0.2, size=(200, 60))
        return [
            timing.Times({"a": 1.3 * row * np.exp(noise), "b": row}) for row, noise in zip(busy, apart, strict=True)
        ]

    ratios = [times.ratio("a", of="b") for times in drawn()]
    assert np.median([ratio.value for ratio in ratios]) == pytest.approx(1.3, abs=0.01)
    assert 0.92 <= np.mean([ratio.low <= 1.3 <= ratio.high for ratio in ratios]) <= 0.995


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.06, 1.4, "slower than"), (1.04, 1.4, "as fast as"), (0.9, 1.2, "as fast as"), (0.5, 0.94, "faster than")],
)
def test_slower_and_faster_only_where_the_whole_interval_says_so(low, high, words):
    assert timing.Ratio(1.0, low, high).in_words == words


def test_sums_over_layers_are_the_true_times(measured, runtime):
    table, graph, calibration = measured
    usage = timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration)).usage["latency_ms"]
    for choice in np.ndindex(*[len(CHOICES)] * 4):
        texts = [EXECUTED[CHOICES[column]] for column in choice]
        if texts[1] != texts[2]:
            continue  # they read one tensor, and so take one format of input
        true = BASE_MS + sum(TRUE_MS[text][row] for row, text in enumerate(texts))
        assert usage[range(4), choice].sum() == pytest.approx(true)


def test_only_what_is_executed_otherwise_is_run_alone(measured, runtime):
    table, graph, calibration = measured
    timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration))
    # three choices for all; float alone in the first, in the second and third together, and in the last
    assert len(runtime) == 6
    assert [list(plan.layers.values()).count("float") for plan in runtime[3:]] == [2, 1, 1]


def test_layers_that_read_one_tensor_go_together(measured, runtime):
    table, graph, calibration = measured
    timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration))
    for plan in runtime:
        assert (plan.layers["b.weight"] == "float") == (plan.layers["c.weight"] == "float")


def test_noise_of_the_wrong_sign_does_not_turn_a_slower_choice_into_a_faster_one():
    class Table:
        macs = np.array([1.0, 3.0])

    changes = np.array([[0.0, -0.1], [0.0, 0.05]])
    usage = timing._latency(Table, changes, np.array([4.0, 6.0]))
    np.testing.assert_allclose(usage.sum(axis=0), [4, 6])
    np.testing.assert_allclose(usage[:, 1], [1.5, 4.5])


def test_a_budget_of_latency(measured, runtime):
    table, graph, calibration = measured
    found = timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration))
    plan = mb.search(found, mb.Budget(latency_ms=BASE_MS + 6.5 + 0.75))
    assert plan.predicted["latency_ms"] <= BASE_MS + 7.25
    assert list(plan.layers.values()).count("float") == 1  # the last layer takes as long in float
    with pytest.raises(InfeasibleBudget, match=r"latency_ms=1 \(reachable: 6.75 to "):
        mb.search(found, mb.Budget(latency_ms=1))
