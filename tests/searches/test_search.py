import math

import numpy as np
import pytest

from mixbit.core.budget import Budget
from mixbit.core.errors import InfeasibleBudget, InvalidInput, MixbitError
from mixbit.searches.search import SEARCHES, search, uniform_plans
from tests.searches.fixtures import small_table


def test_the_plan_and_what_it_is_predicted_to_cost():
    plan = search(small_table(), Budget(mean_bits=6))
    # 600 weights at a mean of 6 bits: the first layer, or the other two for less loss per bit, go to 4 bits.
    assert plan.layers == {"first.weight": "w8a8", "second.weight": "w8a8", "last.weight": "w4a8"}
    assert plan.predicted == pytest.approx(
        {
            "loss": 0.22,
            "standard_error": math.hypot(0.003, 0.004, 0.01),
            "weight_bytes": 100 + 200 + 150,
            "weight_ratio": 450 / 2400,
            "mean_bits": 6,
            "bit_ops": 64000 + 64000 + 32000,
        }
    )
    assert plan.budget == {"mean_bits": 6}
    assert plan.made_by == "fisher + ilp"
    assert (plan.target, plan.fingerprint) == ("openvino", "0123456789abcdef")


def test_a_plan_from_a_single_sample_has_no_standard_error():
    plan = search(small_table(standard_error=np.full((3, 3), np.inf), num_samples=1), Budget(mean_bits=6))
    assert "standard_error" not in plan.predicted
    assert plan.predicted["loss"] == pytest.approx(0.22)


def test_several_limits_hold_together():
    plan = search(small_table(), Budget(mean_bits=6, bit_ops_ratio=2))
    assert plan.predicted["mean_bits"] <= 6
    assert plan.predicted["bit_ops"] <= 3 * 64000 / 2


def test_layers_that_read_one_tensor_take_the_same_input_format():
    table = small_table(input_ties=((1, 2),))
    plan = search(table, Budget(bit_ops=16000 + 32000 + 32000))
    # Without the tie the second layer's w4a4 would cost least; but the last has none, so both keep 8 bits of input.
    assert plan.layers == {"first.weight": "w4a4", "second.weight": "w4a8", "last.weight": "w4a8"}


def test_any_function_is_a_method():
    def cheapest(problem):
        return problem.usage[0].argmin(axis=1)

    plan = search(small_table(), Budget(mean_bits=6), method=cheapest)
    assert set(plan.layers.values()) == {"w4a8"}
    assert plan.made_by == "fisher + cheapest"


def test_a_function_cannot_change_the_table():
    def vandal(problem):
        problem.loss[:] = 0
        return problem.usage[0].argmin(axis=1)

    with pytest.raises(InvalidInput, match=r"search vandal fails: ValueError: .*read-only"):
        search(small_table(), Budget(mean_bits=6), method=vandal)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="search 'magic' is unknown; known: ilp"):
        search(small_table(), Budget(mean_bits=6), method="magic")
    assert "ilp" in SEARCHES


@pytest.mark.parametrize(
    ("choice", "changes", "message"),
    [
        ([0, 0, 0], {}, "is over the budget"),
        ([1, 1, 2], {}, "gives last.weight the scheme w4a4, which is not offered"),
        ([1, 1], {}, r"has shape \(2,\)"),
        ([1.0, 1.0, 1.0], {}, "type float64"),
        ([1, 1, 3], {}, "has columns from 1 to 3, expected 0 to 2"),
        ([1, 2, 1], {"input_ties": ((0, 1),)}, "breaks the tie of first.weight, second.weight"),
        ([1, 2, 1], {"input_ties": ((1, 2),)}, "breaks the tie of second.weight, last.weight"),
    ],
)
def test_a_method_that_breaks_its_promise_is_an_error(choice, changes, message):
    with pytest.raises(MixbitError, match=message):
        search(small_table(**changes), Budget(mean_bits=6), method=lambda *args, **options: np.array(choice))


def test_infeasible_names_limits_and_layers():
    with pytest.raises(InfeasibleBudget) as caught:
        search(small_table(), Budget(mean_bits=3, bit_ops_ratio=1))
    assert str(caught.value) == (
        "no plan keeps mean_bits=3 (reachable: 4 to 8); bit_ops_ratio=1 (reachable: 1 to 3) could be kept; "
        "last.weight, second.weight, first.weight use most even at their cheapest choice; "
        "loosen the limit or offer narrower schemes, where the target has them"
    )
    assert caught.value.reachable == ((4, 8), (64000, 192000))
    assert caught.value.binding == (2, 1, 0)


def test_infeasible_only_together():
    usage = {
        "weight_bytes": np.array([[100.0, 900.0]]),
        "weight_bits": np.array([[800.0, 7200.0]]),
        "bit_ops": np.array([[9000.0, 1000.0]]),
    }
    table = small_table(
        layers=("only.weight",),
        choices=("w8a8", "w4a8"),
        loss=np.array([[0.1, 0.2]]),
        standard_error=np.zeros((1, 2)),
        usage=usage,
        numel=np.array([900.0]),
        macs=np.array([100.0]),
    )
    with pytest.raises(InfeasibleBudget, match=r"each can be kept alone, but not all together; only\.weight use"):
        search(table, Budget(weight_bytes=500, bit_ops=5000))


def test_ties_that_share_no_scheme_are_named():
    loss = np.array([[0.1, 0.1, np.inf], [np.inf, np.inf, 0.1], [0.1, 0.1, 0.1]])
    with pytest.raises(InfeasibleBudget, match=r"first\.weight, second\.weight are tied .* no scheme fits them all"):
        search(small_table(loss=loss, standard_error=loss, input_ties=((0, 1),)), Budget(mean_bits=6))


def test_uniform_plans_keep_the_budget():
    plans = uniform_plans(small_table(), Budget(mean_bits=8))
    assert [plan.made_by for plan in plans] == ["uniform w8a8", "uniform w4a8"]  # the last layer has no w4a4
    assert [set(plan.layers.values()) for plan in plans] == [{"w8a8"}, {"w4a8"}]
    assert [plan.predicted["mean_bits"] for plan in plans] == [8, 4]
    assert [plan.made_by for plan in uniform_plans(small_table(), Budget(mean_bits=7.9))] == ["uniform w4a8"]
    assert not uniform_plans(small_table(), Budget(mean_bits=3))


@pytest.mark.parametrize("mean_bits", [4, 5, 6, 7, 8])
def test_never_worse_than_uniform(mean_bits):
    budget = Budget(mean_bits=mean_bits)
    best = search(small_table(), budget)
    for plan in uniform_plans(small_table(), budget):
        assert best.predicted["loss"] <= plan.predicted["loss"]
