import dataclasses
import re

import numpy as np
import pytest

from mixbit.core.table import Sensitivity
from mixbit.metrics.measure import TOLERANCE, ranking_problem, resampled_excess

BITS = (2, 4, 8)


def table(loss, standard_error=0.0, num_samples=10, **changes):
    loss = np.asarray(loss, dtype=float)
    numel = np.full(len(loss), 100.0)
    bits = np.array([[100.0 * one for one in BITS]] * len(loss))
    made = Sensitivity(
        layers=tuple(f"layer{row}" for row in range(len(loss))),
        choices=tuple(f"w{one}" for one in BITS),
        loss=loss,
        standard_error=np.broadcast_to(standard_error, loss.shape).astype(float),
        usage={"weight_bytes": bits / 8, "weight_bits": bits, "bit_ops": bits * 32},
        numel=numel,
        macs=numel,
        input_ties=(),
        metric="test",
        target="packed",
        fingerprint="0",
        num_samples=num_samples,
        seed=0,
    )
    return dataclasses.replace(made, **changes)


def costs(layers=8):
    return np.random.default_rng(1).uniform(0.5, 2, (layers, 1)) * np.array([1.0, 0.1, 0.001])


def test_exact_costs_that_differ_can_rank():
    assert ranking_problem(table(costs())) is None
    assert resampled_excess(table(costs())) == 0


def test_costs_about_zero_cannot():
    assert "about zero (at most 2e-12)" in ranking_problem(table(costs() * 1e-12, 1e-13))


def test_ties_in_most_rows_cannot():
    flat = costs()
    flat[:5] = 0.3
    assert ranking_problem(table(flat)) == (
        "5 of 8 layers cost the same whatever their scheme; give other data or another metric"
    )
    flat[4, 0] = 0.4
    assert ranking_problem(table(flat)) is None, "half of them may"
    one_choice = costs()
    one_choice[:, 1:] = np.inf
    assert ranking_problem(table(one_choice)) is None, "nothing is to be ranked"


def test_a_single_sample_cannot():
    assert "single sample" in ranking_problem(table(costs(), np.inf, num_samples=1))


@pytest.mark.parametrize(("relative", "stable"), [(0.01, True), (2.0, False)])
def test_standard_errors_larger_than_the_differences_cannot(relative, stable):
    made = table(costs(), relative * costs())
    assert (ranking_problem(made) is None) == stable
    assert stable or "no better than chance" in ranking_problem(made)


def test_as_many_samples_as_are_said_would_do():
    few, share = 40, 0.3
    reason = ranking_problem(table(costs(40), share * costs(40), num_samples=few)) or ""
    enough = int(re.search(r"about ([\d,]+) samples would do", reason)[1].replace(",", ""))
    assert enough > few
    with_enough = resampled_excess(table(costs(40), share * (few / enough) ** 0.5 * costs(40), num_samples=enough))
    assert 0.4 * TOLERANCE < with_enough < 1.6 * TOLERANCE
    assert "no better than chance" in ranking_problem(table(costs(), 20 * costs()))


def test_excess_grows_with_the_standard_error():
    found = [resampled_excess(table(costs(), share * costs())) for share in (0.05, 0.3, 1.0)]
    assert found == sorted(found)
    assert found[-1] > 0.05


def test_tables_whose_choices_differ_in_inputs_alone_compare_bit_operations():
    inputs = table(costs(), 2 * costs(), choices=("w8a2", "w8a4", "w8a8"))
    usage = {**inputs.usage, "weight_bits": np.full((8, 3), 800.0)}
    assert "no better than chance" in ranking_problem(dataclasses.replace(inputs, usage=usage))


def test_layers_that_are_tied_are_searched_within_what_they_reach():
    offered = costs()
    offered[0, 0], offered[1, 2] = np.inf, np.inf
    one_input = {"choices": ("w8a2", "w8a4", "w8a8"), "input_ties": ((0, 1),)}
    assert ranking_problem(table(offered, **one_input)) is None


def test_a_best_plan_that_loses_nothing_does_not_hide_standard_errors():
    clipped = costs()
    clipped[:, 1:] = 0
    made = table(clipped, 0.4)
    assert "no better than chance" in ranking_problem(made)


def test_exact_costs_may_be_small():
    assert ranking_problem(table(costs() * 1e-11)) is None
    assert "about zero" in ranking_problem(table(costs() * 1e-11, 1e-12))
    assert "about zero" in ranking_problem(table(costs() * 0))


def test_what_varies_with_all_layers_together_does_not_change_plans():
    """Few samples hold most of the information: every entry is twice as large with other data, and plans the same."""
    together = costs() * np.random.default_rng(0).uniform(0.5, 2, (32, 1, 1))
    assert resampled_excess(table(costs(), 0.5 * costs()), together) == pytest.approx(0, abs=1e-9)
    apart = costs() * np.random.default_rng(0).uniform(0.5, 2, (32, 8, 3))
    assert resampled_excess(table(costs(), 0.5 * costs()), apart) > 0.01


def test_resampled_means_foretell_what_plans_lose_by_other_samples():
    """On data of which few samples cost most, the excess that a half foretells is what it has on the other half."""
    rng = np.random.default_rng(0)
    foretold, found = [], []
    for _ in range(20):
        weight = rng.exponential(1, (400, 1, 1)) ** 2
        samples = costs(12) * weight * rng.standard_normal((400, 12, 3)) ** 2
        half, other = samples[:200].mean(0), samples[200:].mean(0)
        made = table(half, samples[:200].std(0) / np.sqrt(200))
        draws = np.stack([(rng.poisson(1, (200, 1, 1)) * samples[:200]).mean(0) for _ in range(32)])
        foretold.append(resampled_excess(made, draws))
        judged = dataclasses.replace(made, loss=other)
        found.append(resampled_excess(judged, half[None]))
    assert 0.5 * np.mean(found) < 2 * np.mean(foretold) < 2 * np.mean(found)
