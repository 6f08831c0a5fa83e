import dataclasses
import itertools
import json
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import mixbit as mb
from mixbit.core.budget import Budget
from mixbit.core.errors import InfeasibleBudget, InvalidInput
from mixbit.searches.front import Front, front, front_to_draw, pareto_choices
from mixbit.searches.search import search
from tests.searches.fixtures import problem_of, small_table


@st.composite
def problems(draw):
    """Small whole numbers, so that equal uses and equal losses are frequent; some choices are not offered."""
    num_layers, num_choices = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    loss = rng.integers(-4, 9, (num_layers, num_choices)).astype(float)
    loss[rng.random(loss.shape) < 0.15] = np.inf
    loss[np.isinf(loss).all(axis=1), 0] = 1.0
    usage = rng.integers(0, 6, (num_layers, num_choices)).astype(float)
    tie = st.lists(st.integers(0, num_layers - 1), min_size=1, max_size=3)
    input_bits = rng.choice([4, 8], num_choices).tolist()
    return loss, usage, draw(st.lists(tie, max_size=2)), input_bits


@settings(deadline=None, max_examples=200)
@given(problems())
def test_equals_all_choices_tried_out(problem):
    loss, usage, input_ties, input_bits = problem
    rows, points = np.arange(len(loss)), set()
    for choice in itertools.product(range(loss.shape[1]), repeat=len(loss)):
        obeyed = all(len({input_bits[choice[i]] for i in tie}) == 1 for tie in input_ties)
        if obeyed and np.isfinite(total := loss[rows, list(choice)].sum()):
            points.add((usage[rows, list(choice)].sum(), total))
    expected = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
    try:
        unlimited = problem_of(loss, np.zeros((0, *loss.shape)), [], input_ties=input_ties, input_bits=input_bits)
    except InfeasibleBudget:
        assert not points
        return
    choices = pareto_choices(unlimited, usage)
    assert [(usage[rows, c].sum(), loss[rows, c].sum()) for c in choices] == expected


@pytest.mark.parametrize("mean_bits", np.linspace(4, 8, 9).tolist())
def test_within_a_budget_it_is_what_ilp_finds(mean_bits):
    found, budget = front(small_table(), "mean_bits"), Budget(mean_bits=mean_bits)
    assert found.within(budget).predicted["loss"] == pytest.approx(search(small_table(), budget).predicted["loss"])
    assert found.within(budget).predicted["mean_bits"] <= mean_bits
    assert found.within(budget).budget == {"mean_bits": mean_bits}


def random_table(num_layers, num_choices, seed=0):
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + num_choices)
    numel = np.round(rng.lognormal(10, 1.5, num_layers))
    loss = rng.lognormal(-6, 3, (num_layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.2, (num_layers, num_choices))
    return small_table(
        layers=tuple(f"layer{i}.weight" for i in range(num_layers)),
        choices=tuple(f"w{b}a8" for b in bits),
        loss=loss,
        standard_error=loss / 10,
        usage={
            "weight_bytes": np.ceil(np.outer(numel, bits / 8)) + 64,
            "weight_bits": np.outer(numel, bits),
            "bit_ops": np.outer(numel * 100, bits * 8),
        },
        numel=numel,
        macs=numel * 100,
    )


def test_53_layers_7_choices_at_once_and_equal_to_ilp():
    table = random_table(53, 7)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        found = front(table)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2  # under one on a machine of its own
    assert len(found) > 1000
    used, loss = found.figures["weight_bytes"], found.figures["loss"]
    assert (np.diff(used) > 0).all()
    assert (np.diff(loss) < 0).all()
    for share in (0.2, 0.5, 0.8):
        budget = Budget(weight_bytes=float(np.quantile(used, share)))
        assert found.within(budget).predicted["loss"] == pytest.approx(
            search(table, budget).predicted["loss"], rel=1e-9
        )


def test_saved_and_loaded_it_is_the_same(tmp_path):
    found = front(random_table(6, 3))
    found.save(tmp_path / "front.json")
    again = Front.load(tmp_path / "front.json")
    assert len(again) == len(found)
    assert [again.plan(i) for i in range(len(again))] == [found.plan(i) for i in range(len(found))]
    stored = json.loads((tmp_path / "front.json").read_text())
    assert stored["resource"] == "weight_bytes"
    assert stored["points"][0].keys() >= {"loss", "weight_bytes", "mean_bits", "layers"}


@pytest.mark.parametrize("resource", ["mean_bits", "weight_ratio", "latency_ms"])
def test_rounding_makes_no_points(resource):
    """Of equal layers only the number with each width counts: sums in another order are the same use."""
    table = random_table(8, 3)
    row = np.array([0.1, 0.3, 0.7])
    usage = table.usage | {"latency_ms": np.tile(row, (8, 1))}
    equal = {name: np.tile(values[0], (8, 1)) for name, values in usage.items()}
    loss = np.tile(table.loss[0], (8, 1))
    found = front(dataclasses.replace(table, usage=equal, loss=loss, numel=np.full(8, table.numel[0])), resource)
    assert len(found) <= 45  # ways to share 8 layers among 3 widths
    assert (np.diff(found.figures["loss"]) < 0).all()


def test_a_front_of_latencies_with_conversions_keeps_limits_that_are_evenly_spaced():
    rng = np.random.default_rng(0)
    usage = small_table().usage | {"latency_ms": np.array([[3.0, 2, 1]]) * rng.uniform(1, 2, (3, 1))}
    choices = ("w8a8", "w4a8", "float")
    table = small_table(choices=choices, usage=usage, conversions=rng.random((2, 2)))
    found = front(table, "latency_ms")
    for index in range(len(found)):
        latency, loss = (found.figures[name][index] for name in ("latency_ms", "loss"))
        best = search(table, Budget(latency_ms=latency * (1 + 1e-9)))
        assert best.predicted["loss"] == pytest.approx(loss)
    assert found.figures["latency_ms"][-1] == pytest.approx(
        search(table, Budget(latency_ms=100)).predicted["latency_ms"]
    )
    assert len(found) > 2


def test_a_front_of_latencies_in_a_narrow_range_has_its_plans():
    usage = small_table().usage | {"latency_ms": np.tile([[100.3, 100.1, 100.0]], (3, 1))}
    table = small_table(choices=("w8a8", "w4a8", "w2a8"), usage=usage, conversions=np.full((2, 2), 0.01))
    found, without = (front(each, "latency_ms") for each in (table, dataclasses.replace(table, conversions=None)))
    assert len(found) >= len(without) - 1 > 1


def test_one_choice_makes_a_front_of_one_point():
    table = small_table(choices=("w8a8",), loss=np.full((3, 1), 0.1), standard_error=np.zeros((3, 1)), usage={
        name: values[:, :1] for name, values in small_table().usage.items()
    })  # fmt: skip
    found = front(table)
    assert len(found) == 1
    assert len(found.thinned(2)) == 1
    assert set(found.plan(0).layers.values()) == {"w8a8"}


def test_thinned_keeps_the_ends_and_no_more_than_asked(tmp_path):
    found = front(random_table(12, 5))
    few = found.thinned(10)
    assert 2 <= len(few) <= 10
    assert few.plan(0) == found.plan(0)
    assert few.plan(len(few) - 1) == found.plan(len(found) - 1)
    assert {few.figures["loss"][i] for i in range(len(few))} <= set(found.figures["loss"])
    assert few.thinned_from == len(found)
    few.save(tmp_path / "front.json")
    assert Front.load(tmp_path / "front.json").thinned_from == len(found)
    with pytest.raises(InvalidInput, match="1 points: give 2 or more"):
        found.thinned(1)


def corners_of(points):
    """Points below every line between two others, by trying all pairs."""

    def is_above(x, y, one, other):
        (a, c), (b, d) = one, other
        return a < x < b and c + (d - c) * (x - a) / (b - a) <= y * (1 + 1e-12)

    pairs = list(itertools.permutations(points, 2))
    return [(x, y) for x, y in points if not any(is_above(x, y, *pair) for pair in pairs)]


@pytest.mark.parametrize("tied", [(), ((0, 1), (2, 4))])
def test_a_front_to_draw_is_all_of_a_small_front_and_the_hull_of_a_large_one(tied, monkeypatch):
    table = dataclasses.replace(random_table(5, 3), input_ties=tied)
    exact = front(table)
    points = list(zip(exact.figures["weight_bytes"].tolist(), exact.figures["loss"].tolist(), strict=True))
    drawn = front_to_draw(table, 10_000)
    np.testing.assert_array_equal(drawn.choices, exact.choices)
    assert len(front_to_draw(table, 7)) <= 7
    monkeypatch.setattr(sys.modules["mixbit.searches.front"], "MOST_EXACT", 1)
    hull = front_to_draw(table, 10_000)
    found = list(zip(hull.figures["weight_bytes"].tolist(), hull.figures["loss"].tolist(), strict=True))
    assert len(found) > 2
    assert np.array(found) == pytest.approx(np.array(corners_of(points)))


def test_a_large_front_is_drawn_in_seconds():
    table, began = random_table(400, 7), time.process_time()
    drawn = front_to_draw(table, 100)
    assert time.process_time() - began < 10
    assert 50 < len(drawn) <= 101
    assert (np.diff(drawn.figures["weight_bytes"]) > 0).all()
    assert (np.diff(drawn.figures["loss"]) < 0).all()
    np.testing.assert_array_equal(table.loss[np.arange(400), drawn.choices[-1]], table.loss.min(axis=1))


def test_budgets_that_the_front_cannot_answer():
    found = front(small_table())
    with pytest.raises(InvalidInput, match="front over weight_bytes: cannot tell the best plan within mean_bits=6"):
        found.within(Budget(mean_bits=6))
    with pytest.raises(InvalidInput, match="search again"):
        found.within(Budget(weight_bytes=500, mean_bits=6))
    with pytest.raises(InfeasibleBudget, match=r"no plan keeps weight_bytes=10 \(reachable: 300 to 600\)"):
        found.within(Budget(weight_bytes=10))
    assert found.within(Budget(weight_ratio=0.25)).predicted["weight_ratio"] <= 0.25


def test_bad_resources_are_refused():
    with pytest.raises(InvalidInput, match="resource 'speed' is unknown"):
        front(small_table(), "speed")
    with pytest.raises(InvalidInput, match="resource 'bit_complexity' is unknown"):
        front(small_table(), "bit_complexity")
    with pytest.raises(InvalidInput, match="take bit_ops"):
        front(small_table(), "bit_ops_ratio")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("points"), "points: Field required"),
        (lambda one: one.update(points=[]), "points: List should have at least 1 item"),
        (lambda one: one["points"][0].pop("weight_bytes"), "point 1 has other layers or figures than point 0"),
        (lambda one: one["points"][1]["layers"].pop("last.weight"), "point 1 has other layers"),
        (lambda one: one["points"].reverse(), "not in the order of 'weight_bytes'"),
        (lambda one: one["points"][0].update(loss=None), "loss"),
        (lambda one: one["points"][-1].update(loss=1e9), "a dearer point has no smaller loss"),
        (lambda one: one["points"][-1]["layers"].update({"last.weight": "w9"}), "front.json: scheme 'w9'"),
    ],
)
def test_bad_files_are_refused(change, message, tmp_path):
    stored = json.loads(front(small_table()).to_json())
    change(stored)
    (tmp_path / "front.json").write_text(json.dumps(stored))
    with pytest.raises(InvalidInput, match=message):
        Front.load(tmp_path / "front.json")


def test_it_is_public():
    assert mb.front is front


def test_a_front_that_is_too_large_to_read_again_is_not_written(tmp_path, monkeypatch):
    found = front(small_table())
    monkeypatch.setattr("mixbit.searches.front.MOST_JSON", len(found.to_json()) - 1)
    with pytest.raises(InvalidInput, match=r"too many to read again; keep some of them, as --points \d+"):
        found.save(tmp_path / "front.json")
    assert list(tmp_path.iterdir()) == []
