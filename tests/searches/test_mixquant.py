import numpy as np
import pytest

from mixbit.core.errors import InfeasibleBudget, InvalidInput
from mixbit.searches.mixquant import mixquant
from tests.searches.fixtures import problem_of

BITS = [2, 3, 4, 5, 6, 7, 8]
# Round-off error at 2 .. 8 bits over that at 8: published analysis of min-max quantizers, 300,000 samples each.
RATIOS = {
    "uniform": [7207, 1326, 288, 67.7, 16.3, 4.0, 1],
    "gaussian": [6284, 1329, 289, 67.7, 16.4, 4.0, 1],
    "laplace": [1951, 915, 264, 66, 16.3, 4.0, 1],
    "student": [50, 49, 45, 32.5, 14.4, 4.0, 1],
}
INT8 = np.array([1e-5, 1e-4, 5e-4, 2e-2])


def problem(limit=1e9, **changes):
    loss = np.array(list(RATIOS.values())) * INT8[:, None]
    return problem_of(loss, np.tile(BITS, (1, 4, 1)), [limit], **({"weight_bits": BITS} | changes))


def bits(choice):
    return [BITS[column] for column in choice]


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    [
        (1, [8, 8, 8, 8]),
        (4, [7, 7, 7, 7]),
        (17, [6, 6, 6, 6]),
        (50, [6, 6, 6, 2]),  # a layer with outliers gets fewer bits
        (68, [5, 5, 5, 2]),
        (300, [4, 4, 4, 2]),
        (1e4, [2, 2, 2, 2]),
    ],
)
def test_the_published_rule(multiplier, expected):
    assert bits(mixquant(problem(), multiplier=multiplier)) == expected


def test_without_a_multiplier_the_smallest_within_the_limits():
    assert bits(mixquant(problem(limit=32))) == [8, 8, 8, 8]
    assert bits(mixquant(problem(limit=28))) == [7, 7, 7, 7]
    # multipliers 16.3, 16.4: the third layer needs 16.3, the second 16.4; both and the fourth (14.4) at 6
    assert bits(mixquant(problem(limit=24))) == [6, 6, 6, 6]
    assert sum(bits(mixquant(problem(limit=23)))) <= 23


def test_absolute_bounds_the_error_itself():
    """1e-3: the first layer reaches it at 4 bits (2.9e-3), no: 5 bits (6.8e-4); ... the last at 8 bits has 2e-2."""
    found = bits(mixquant(problem(), criterion="absolute", multiplier=1e-3))
    assert found == [5, 7, 8, 8]  # the last cannot reach it, and takes the widest


def test_budgeted_is_the_smallest_sum_of_squares():
    numel = np.array([100.0, 10.0, 10.0, 1.0])
    choice = mixquant(problem(limit=20, numel=numel), criterion="budgeted")
    assert sum(bits(choice)) <= 20
    loss = problem().loss * numel[:, None]
    best = min(
        (loss[0, a] + loss[1, b] + loss[2, c] + loss[3, d])
        for a in range(7) for b in range(7) for c in range(7) for d in range(7)
        if BITS[a] + BITS[b] + BITS[c] + BITS[d] <= 20
    )  # fmt: skip
    assert loss[np.arange(4), choice].sum() == pytest.approx(best)


def test_inputs_take_the_widest():
    loss = np.array([[4.0, 4.0, 1.0, 1.0]])
    usage = np.array([[[4.0, 4.0, 8.0, 8.0]]])
    one = problem_of(loss, usage, [9], weight_bits=[4, 4, 8, 8], input_bits=[4, 8, 4, 8])
    assert mixquant(one, multiplier=5).tolist() == [1]
    assert mixquant(one, multiplier=2).tolist() == [3]


BOTH = [(4, 4), (4, 8), (8, 4), (8, 8), (32, 32)]


def of_both(loss, limit=1e9, **changes):
    weight_bits, input_bits = np.array(BOTH).T
    fields = {"weight_bits": weight_bits, "input_bits": input_bits}
    return problem_of(loss, np.tile(weight_bits, (1, len(loss), 1)), [limit], **(fields | changes))


@pytest.mark.parametrize("options", [{"criterion": "absolute", "multiplier": 1e-9}, {"multiplier": 0.5}])
def test_where_the_bound_cannot_be_reached_the_widest_that_is_offered(options):
    one = of_both([[4, 4, 1, 1, np.inf]])
    assert BOTH[mixquant(one, **options)[0]] == (8, 8)


def test_a_choice_in_float_does_not_hide_the_quantized_ones():
    one = of_both([[np.inf, 4, np.inf, 1, 0.0], [np.inf, 3, np.inf, 1, 0.0]])
    assert [BOTH[column] for column in mixquant(one, multiplier=4)] == [(4, 8), (4, 8)]
    tied = of_both([[np.inf, 4, np.inf, 1, 0.0], [np.inf, 3, np.inf, 1, 0.0]], input_ties=[[0, 1]])
    assert [BOTH[column] for column in mixquant(tied, multiplier=2)] == [(8, 8), (8, 8)]


def test_each_width_of_weight_takes_the_input_that_it_is_offered():
    """As of the choices w4, whose input is in float, and w8a8."""
    one = problem_of([[4, 1]], [[[4, 8]]], [9], weight_bits=[4, 8], input_bits=[32, 8])
    assert mixquant(one, multiplier=5).tolist() == [0]
    assert mixquant(one, multiplier=2).tolist() == [1]


def test_budgeted_counts_the_weights_of_each_tied_layer():
    """Tied layers of 1 and 100 weights: 4 bits cost 1 x 1 + 100 x 3 = 301, against 100 for the third layer alone."""
    loss = np.array([[1.0, 0.0], [3.0, 0.0], [10.0, 0.0]])
    usage = np.array([[[4.0, 8.0], [4.0, 8.0], [8.0, 16.0]]])
    bits_ = {"weight_bits": [4, 8], "input_bits": [4, 8], "input_ties": [[0, 1]]}
    one = problem_of(loss, usage, [24], numel=np.array([1.0, 100.0, 10.0]), **bits_)
    assert mixquant(one, criterion="budgeted").tolist() == [1, 1, 0]


def test_a_layer_without_any_error_at_8_bits():
    loss = np.array([[1.0, 0.0]])
    one = problem_of(loss, [[[4, 8]]], [9], weight_bits=[4, 8])
    assert mixquant(one, multiplier=100).tolist() == [1]
    both_exact = problem_of(np.zeros((1, 2)), [[[4, 8]]], [9], weight_bits=[4, 8])
    assert mixquant(both_exact, multiplier=1).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "best"}, "criterion 'best' is unknown; known: relative, absolute, budgeted"),
        ({"multiplier": 0}, "mixquant: multiplier=0: give more than 0"),
        ({"multiplier": float("nan")}, "multiplier=nan"),
        ({"criterion": "budgeted", "multiplier": 2}, "multiplier=2 with budgeted"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InvalidInput, match=message):
        mixquant(problem(), **options)


def test_what_is_missing_is_named():
    with pytest.raises(InvalidInput, match="layer 0 is offered no choice of 8 bits to compare with"):
        mixquant(problem_of(np.ones((1, 1)), np.ones((1, 1, 1)), [9], weight_bits=[4]))
    with pytest.raises(InfeasibleBudget, match="multiplier=4 does not lead to a choice within every limit"):
        mixquant(problem(limit=20), multiplier=4)
