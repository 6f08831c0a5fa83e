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
#: Columns with inputs in integers and in float.
OFFERED = {"i": [0, 1], "f": [2]}
#: Of a conversion between the two.
GLUE_MS = 0.5


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
        operators = operators_of(executed)
        total = BASE_MS + sum(milliseconds for _, milliseconds in operators)
        return nullcontext(Runner(lambda _: total, lambda: executed, {}, lambda _: operators))

    monkeypatch.setattr(Target, "written", loaded)
    monkeypatch.setattr(
        timing,
        "paired_times",
        lambda runs, sample, label: timing.Times({name: np.array([run(sample)]) for name, run in runs.items()}),
    )
    return written


def operators_of(executed):
    """Operators in order, with a conversion of GLUE_MS wherever the type changes, from float32 at both ends."""
    operators, former = [], "float32"
    for row, (layer, text) in enumerate(executed.items()):
        operators += [("", GLUE_MS)] if text != former else []
        operators.append((layer, TRUE_MS[text][row]))
        former = text
    return operators + ([("", GLUE_MS)] if former != "float32" else [])


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


def test_sums_over_layers_are_the_true_times_of_plans_with_one_choice_for_all(measured, runtime):
    table, graph, calibration = measured
    usage = timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration)).usage["latency_ms"]
    for column, choice in enumerate(CHOICES):
        true = BASE_MS + sum(ms for _, ms in operators_of(dict.fromkeys(table.layers, EXECUTED[choice])))
        assert usage[:, column].sum() == pytest.approx(true)
    # the conversions before the first and behind the last layer are theirs
    wanted = (TRUE_MS["int8"] + [GLUE_MS, 0, 0, GLUE_MS]) * (1 + BASE_MS / (6.5 + 2 * GLUE_MS))
    np.testing.assert_allclose(usage[:, 0], wanted)


def test_sums_are_compared_with_the_times_of_mixed_plans(measured, runtime):
    table, graph, calibration = measured
    choices = [np.array([0, 0, 0, 0]), np.array([0, 2, 2, 0])]
    compared, off = timing.timed_beside(table, choices, graph, lambda plan: mb.quantize(graph, plan, calibration))
    usage, rows = compared.usage["latency_ms"], np.arange(4)
    for choice, found in zip(choices, off, strict=True):
        executed = {layer: EXECUTED[CHOICES[column]] for layer, column in zip(table.layers, choice, strict=True)}
        true = BASE_MS + sum(ms for _, ms in operators_of(executed))
        assert found == pytest.approx(usage[rows, choice].sum() / true)
    assert off[0] == pytest.approx(1)
    assert off[1] < 0.95, "conversions between layers are in no layer's part"


def test_what_is_between_two_layers_counts_half_to_each():
    class Table:
        layers, macs = ("a", "b"), np.array([1.0, 3.0])

    operators = [("", 1.0), ("a", 2.0), ("", 3.0), ("", 1.0), ("b", 5.0), ("a", 2.0), ("", 6.0)]
    parts = timing._parts(Table, Runner(None, None, {}, lambda _: operators), [])
    np.testing.assert_allclose(parts, np.array([1 + 2 + 2 + 2 + 6, 2 + 5]) / 20)
    np.testing.assert_allclose(timing._parts(Table, Runner(None, None, {}), []), [0.25, 0.75])


def test_a_budget_of_latency(measured, runtime):
    table, graph, calibration = measured
    found = timing.timed(table, graph, lambda plan: mb.quantize(graph, plan, calibration))
    least = found.usage["latency_ms"].min(axis=1)
    least = least[[0, 3]].sum() + found.usage["latency_ms"][1:3].sum(axis=0).min()  # two read one tensor
    plan = mb.search(found, mb.Budget(latency_ms=1.1 * least))
    assert plan.predicted["latency_ms"] <= 1.1 * least
    assert list(plan.layers.values()).count("float") == 1  # the last layer takes less time in float
    with pytest.raises(InfeasibleBudget, match=rf"latency_ms=1 \(reachable: {least:.3g}\d* to "):
        mb.search(found, mb.Budget(latency_ms=1))


#: Milliseconds of the four layers in integers, and which of them are faster so in the end.
LOSING = {
    "all gain": ([1.0, 2.0, 3.0, 0.1], "iiii"),
    "two lose, and the last by its conversions then": ([1.0, 9.0, 9.0, 0.1], "ifff"),
    "one that gains alone loses by its conversions": ([9.0, 2.0, 12.0, 0.1], "ffff"),
    "all lose": ([9.0, 9.0, 9.0, 9.0], "ffff"),
}


@pytest.mark.parametrize("case", LOSING)
def test_layers_that_lose_read_float_numbers(measured, runtime, monkeypatch, case):
    table, graph, calibration = measured
    times, wanted = LOSING[case]
    monkeypatch.setitem(TRUE_MS, "int8", np.array(times))
    monkeypatch.setitem(TRUE_MS, "float32", np.array([4.0, 2.5, 9.0, 0.3]))
    found = timing.faster(table, graph, lambda plan: mb.quantize(graph, plan, calibration))
    offered = {letter: np.isfinite(found.loss)[:, columns].all(axis=1) for letter, columns in OFFERED.items()}
    assert [next(letter for letter in "if" if offered[letter][row]) for row in range(4)] == list(wanted)
    assert (np.isfinite(found.loss).sum(axis=1) == [len(OFFERED[letter]) for letter in wanted]).all()
    true = [
        sum(ms for _, ms in operators_of({layer: EXECUTED[scheme] for layer, scheme in plan.layers.items()}))
        for plan in (found.plan_like(0, "found"), table.plan_like(CHOICES.index("float"), "float"))
    ]
    assert true[0] <= true[1]
    assert timing.note_on_speed(found).startswith(f"{wanted.count('f')} of 4 layers read float numbers")


def test_a_pinned_layer_stays(measured, runtime, monkeypatch):
    table, graph, calibration = measured
    monkeypatch.setitem(TRUE_MS, "int8", np.array([9.0, 9.0, 9.0, 9.0]))
    pinned = table.pinned({"a.weight": "w4a8"})
    found = timing.faster(pinned, graph, lambda plan: mb.quantize(graph, plan, calibration))
    assert np.isfinite(found.loss).sum(axis=1).tolist() == [1, 1, 1, 1]
    assert found.plan_like(0, "found").layers["a.weight"] == "w4a8"
