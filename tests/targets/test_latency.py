"""Latencies of choices, with runtimes whose true times are known; targets have their own tests."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.batches import Inputs
from mixbit.core.errors import InfeasibleBudget
from mixbit.core.target import Runner, Target
from mixbit.quantization.calibrate import calibrate
from mixbit.targets import latency as timing, time_plans as plan_times, timed as timing_of_choices
from mixbit.targets.faster import faster, note_on_speed
from mixbit.targets.timed import timed, timed_beside
from tests.networks import Net

CHOICES = ["w8a8", "w4a8", "float"]
#: How a runtime executes each, and what it takes in each of the four layers.
EXECUTED = {"w8a8": "int8", "w4a8": "int8", "float": "float32"}
TRUE_MS = {"int8": np.array([1.0, 2.0, 3.0, 0.5]), "float32": np.array([4.0, 2.5, 9.0, 0.5])}
#: By how much longer a choice takes that is executed as another one is.
SLOWER = {"w8a8": 1.0}
#: Columns with inputs in integers and in float.
OFFERED = {"i": [0, 1], "f": [2]}
#: Of a conversion to integers, and of one to float.
GLUE_MS = {"int8": 0.5, "float32": 0.7}


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
    return table, graph


class FakeRuntime:
    """Runs plans in their true times; what was written to it, and what it tells."""

    def __init__(self):
        self.written, self.tells, self.environment = [], True, {"runtime": "fake 1.0"}

    def loaded(self, plan):
        executed = {layer: EXECUTED[scheme] for layer, scheme in plan.layers.items()}
        self.written.append(plan)
        profile = (lambda _: operators_of(plan.layers)) if self.tells else None
        return nullcontext(Runner(lambda _: true_ms(plan), lambda: executed, dict(self.environment), profile))


@pytest.fixture
def runtime(monkeypatch, tmp_path):
    fake = FakeRuntime()
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Target, "written", lambda target, simulated, graph, size: fake.loaded(simulated.plan))
    monkeypatch.setattr(
        plan_times,
        "paired_times",
        lambda runs, sample, label: timing.Times({name: np.array([run(sample)]) for name, run in runs.items()}),
    )
    return fake


def simulate(plan):
    """All that the runtime here looks at."""
    return SimpleNamespace(plan=plan)


def operators_of(layers):
    """Operators in order, with a conversion wherever the type changes, from float32 at both ends."""
    operators, former = [], "float32"
    for row, (layer, scheme) in enumerate(layers.items()):
        text = EXECUTED[scheme]
        operators += [("", GLUE_MS[text])] if text != former else []
        operators.append((layer, TRUE_MS[text][row] * SLOWER.get(scheme, 1.0)))
        former = text
    return operators + ([("", GLUE_MS["float32"])] if former != "float32" else [])


def true_ms(plan):
    return sum(ms for _, ms in operators_of(plan.layers))


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


def every_plan(table):
    """All choices in which the two layers that read one tensor read it alike."""
    letters = [next(letter for letter in "if" if column in OFFERED[letter]) for column in range(3)]
    choices = [np.array(choice) for choice in itertools.product(range(3), repeat=4)]
    return [choice for choice in choices if letters[choice[1]] == letters[choice[2]]]


def test_predicted_latencies_are_the_true_ones_of_plans_that_mix_choices(measured, runtime):
    table, graph = measured
    found, off = timed_beside(table, every_plan(table), graph, simulate)
    np.testing.assert_allclose(off, 1)
    for choice in every_plan(table):
        plan = found.plan(choice, "test")
        assert plan.predicted["latency_ms"] == pytest.approx(true_ms(plan))
    # what is before the first and behind the last layer is theirs
    ends = [GLUE_MS["int8"], 0, 0, GLUE_MS["float32"]]
    np.testing.assert_allclose(found.usage["latency_ms"][:, 0], TRUE_MS["int8"] + ends)
    assert found.conversions.shape == (3, 2)
    assert found.conversions[1].tolist() == [0, 0], "these two read one tensor"
    sums = found.usage["latency_ms"][range(4), [0, 2, 2, 0]].sum()
    true = true_ms(table.plan(np.array([0, 2, 2, 0]), "test"))
    assert sums == pytest.approx(true - sum(GLUE_MS.values())), "conversions are no part of the sum"


def test_plans_are_searched_by_their_true_latencies(measured, runtime):
    table, graph = measured
    found, _ = timed(table, graph, simulate)
    by_loss = sorted(every_plan(table), key=lambda choice: table.loss[range(4), choice].sum())
    latencies = sorted({true_ms(table.plan(choice, "test")) for choice in every_plan(table)})
    for limit in latencies:
        plan = mb.search(found, mb.Budget(latency_ms=limit * (1 + 1e-9)))
        best = next(choice for choice in by_loss if true_ms(table.plan(choice, "test")) <= limit * (1 + 1e-9))
        assert true_ms(plan) <= limit * (1 + 1e-6)
        assert plan.predicted["loss"] == pytest.approx(table.loss[range(4), best].sum())
    with pytest.raises(InfeasibleBudget, match=r"latency_ms=1 \(reachable: "):
        mb.search(found, mb.Budget(latency_ms=1))
    with pytest.raises(InfeasibleBudget):
        mb.search(found, mb.Budget(latency_ms=0.99 * latencies[0]))


def test_choices_that_all_read_integers_are_not_mixed(measured, runtime):
    table, graph = measured
    alike = table.pinned(dict.fromkeys(table.layers, "w8a8"))
    found, off = timed_beside(alike, [np.array([0, 1, 1, 0])], graph, simulate)
    assert found.conversions is None
    assert off == pytest.approx(1)
    assert all(EXECUTED[scheme] == "int8" for plan in runtime.written for scheme in plan.layers.values())
    assert len(runtime.written) < 4 * timing_of_choices.FOURS


def test_kernels_of_one_name_may_differ_in_time(measured, runtime, monkeypatch):
    table, graph = measured
    monkeypatch.setitem(SLOWER, "w8a8", 1.5)
    found, off = timed_beside(table, every_plan(table), graph, simulate)
    np.testing.assert_allclose(off, 1)
    latency = found.usage["latency_ms"]
    np.testing.assert_allclose(latency[1:3, 0], 1.5 * latency[1:3, 1])


def test_a_runtime_that_tells_no_times_of_operators(measured, runtime):
    table, graph = measured
    runtime.tells = False
    found, _ = timed_beside(table, [], graph, simulate)
    assert found.conversions is None
    for column in range(3):
        sums = found.usage["latency_ms"][:, column]
        assert sums.sum() == pytest.approx(true_ms(table.plan_like(column, "test")))
        np.testing.assert_allclose(sums / sums.sum(), table.macs / table.macs.sum())


def test_what_is_between_two_layers_counts_half_to_each():
    class Table:
        layers, macs = ("a", "b"), np.array([1.0, 3.0])

    operators = [("", 1.0), ("a", 2.0), ("", 3.0), ("", 1.0), ("b", 5.0), ("a", 2.0), ("", 6.0)]
    shares, told = plan_times._shares(Table, Runner(None, None, {}, lambda _: operators), [])
    np.testing.assert_allclose(shares, np.array([1 + 2 + 2 + 2 + 6, 2 + 5]) / 20)
    assert told
    shares, told = plan_times._shares(Table, Runner(None, None, {}), [])
    np.testing.assert_allclose(shares, [0.25, 0.75])
    assert not told


def test_a_busy_machine_slows_plans_and_the_one_beside_them_alike(measured, runtime, monkeypatch):
    table, graph = measured
    busy = iter(np.linspace(1, 9, 100))

    def slowed(runs, sample, label):
        by = next(busy)
        return timing.Times({name: np.array([by * run(sample)]) for name, run in runs.items()})

    monkeypatch.setattr(plan_times, "paired_times", slowed)
    _, off = timed_beside(table, every_plan(table), graph, simulate)
    np.testing.assert_allclose(off, 1)


def kept_file(tmp_path):
    (file,) = (tmp_path / "cache" / "latency").iterdir()
    return file


def test_times_are_taken_from_the_users_cache(measured, runtime, tmp_path):
    table, graph = measured
    found, note = timed(table, graph, simulate)
    assert "0% off the measured times of 5 random plans in the median, 0% at most" in note
    assert "taken on" not in note
    runtime.written.clear()
    again, note = timed(table, graph, simulate)
    assert len(runtime.written) == 1, "one, which says what runtime it is"
    assert "; taken on 20" in note
    assert f"kept in {kept_file(tmp_path)}: delete it to take them anew" in note
    np.testing.assert_array_equal(again.usage["latency_ms"], found.usage["latency_ms"])
    np.testing.assert_array_equal(again.conversions, found.conversions)


def test_other_questions_are_timed_anew(measured, runtime):
    table, graph = measured
    timed(table, graph, simulate)
    _, note = timed(table.pinned({"a.weight": "w4a8"}), graph, simulate)
    assert "taken on" not in note
    runtime.environment["runtime"] = "fake 1.1"
    _, note = timed(table, graph, simulate)
    assert "taken on" not in note


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: text.replace('"off"', '"of"'),
        lambda text: text.replace('"conversions": [\n  [\n   0', '"conversions": [\n  [\n   1'),
        lambda text: text.replace("fake 1.0", "fake 0.9", 1),
    ],
)
def test_damaged_times_are_taken_anew(measured, runtime, tmp_path, damage):
    table, graph = measured
    found, _ = timed(table, graph, simulate)
    file = kept_file(tmp_path)
    text = file.read_text(encoding="utf-8")
    assert damage(text) != text
    file.write_text(damage(text), encoding="utf-8")
    again, note = timed(table, graph, simulate)
    assert "taken on" not in note
    np.testing.assert_array_equal(again.usage["latency_ms"], found.usage["latency_ms"])
    assert "taken on" in timed(table, graph, simulate)[1], "the file was replaced"


def test_a_cache_that_cannot_be_written_costs_no_times(measured, runtime, tmp_path, monkeypatch):
    table, graph = measured
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MIXBIT_CACHE", str(tmp_path / "file"))
    found, note = timed(table, graph, simulate)
    assert "; they are not kept: " in note
    assert "set MIXBIT_CACHE to a folder that can" in note
    assert found.usage["latency_ms"].sum() > 0


#: Milliseconds of the four layers in integers, and which of them are faster so in the end.
LOSING = {
    "all gain": ([1.0, 2.0, 3.0, 0.1], "iiii"),
    "two lose, and the last by its conversions then": ([1.0, 9.0, 9.0, 0.1], "ifff"),
    "one that gains alone loses by its conversions": ([9.0, 2.0, 12.0, 0.1], "ffff"),
    "all lose": ([9.0, 9.0, 9.0, 9.0], "ffff"),
}


@pytest.mark.parametrize("case", LOSING)
def test_layers_that_lose_read_float_numbers(measured, runtime, monkeypatch, case):
    table, graph = measured
    times, wanted = LOSING[case]
    monkeypatch.setitem(TRUE_MS, "int8", np.array(times))
    monkeypatch.setitem(TRUE_MS, "float32", np.array([4.0, 2.5, 9.0, 0.3]))
    found = faster(timed(table, graph, simulate)[0], graph, simulate)
    offered = {letter: np.isfinite(found.loss)[:, columns].all(axis=1) for letter, columns in OFFERED.items()}
    assert [next(letter for letter in "if" if offered[letter][row]) for row in range(4)] == list(wanted)
    assert (np.isfinite(found.loss).sum(axis=1) == [len(OFFERED[letter]) for letter in wanted]).all()
    true = [true_ms(plan) for plan in (found.plan_like(0, "found"), table.plan_like(CHOICES.index("float"), "float"))]
    assert true[0] <= true[1]
    assert note_on_speed(found).startswith(f"{wanted.count('f')} of 4 layers read float numbers")


def test_a_pinned_layer_stays(measured, runtime, monkeypatch):
    table, graph = measured
    monkeypatch.setitem(TRUE_MS, "int8", np.array([9.0, 9.0, 9.0, 9.0]))
    pinned = table.pinned({"a.weight": "w4a8"})
    found = faster(timed(pinned, graph, simulate)[0], graph, simulate)
    assert np.isfinite(found.loss).sum(axis=1).tolist() == [1, 1, 1, 1]
    assert found.plan_like(0, "found").layers["a.weight"] == "w4a8"
