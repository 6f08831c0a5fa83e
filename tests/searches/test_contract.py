"""What every search promises."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mixbit.core.budget import Budget
from mixbit.core.errors import InfeasibleBudget
from mixbit.searches._problem import Trials
from mixbit.searches.autoq import Precisions
from mixbit.searches.search import SEARCHES, search
from tests.searches.fixtures import problem_of, small_table

CHEAP = [name for name in SEARCHES if name != "autoq"]
#: Schemes with weight and input bits: what a target with narrow inputs offers.
BITS = [(2, 8), (4, 8), (8, 8), (4, 4), (8, 4)]


def trials_for(loss):
    rows = np.arange(len(loss))
    return Trials(lambda choice: -float(loss[rows, choice].sum()), lambda: 0.0, lambda: np.ones((len(loss), 7)))


@st.composite
def problems(draw):
    """Up to 6 layers, losses that fall with bits or not, one limit that can be kept, ties."""
    num_layers = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    weight_bits, input_bits = np.array(BITS).T
    numel = rng.integers(1, 100, num_layers)
    loss = (
        rng.lognormal(0, 2, (num_layers, 1))
        * 4.0 ** -np.minimum(weight_bits, input_bits)
        * rng.lognormal(0, 0.3, (num_layers, len(BITS)))
    )
    usage = np.outer(numel, weight_bits)[None].astype(float)
    low, high = usage.min(axis=2).sum(), usage.max(axis=2).sum()
    tie = st.lists(st.integers(0, num_layers - 1), min_size=1, max_size=3)
    input_ties = draw(st.lists(tie, max_size=3))
    limit = low + draw(st.floats(0, 1)) * (high - low)
    bits = {"weight_bits": weight_bits, "input_bits": input_bits}
    return problem_of(
        loss, usage, [limit], input_ties=input_ties, numel=numel.astype(float), trials=trials_for(loss), **bits
    )


@settings(deadline=None, max_examples=60)
@given(problems())
def test_within_limits_ties_obeyed_and_never_better_than_exact(problem):
    rows = np.arange(len(problem.loss))
    input_bits = np.array(problem.input_bits)
    exact, fell_short = SEARCHES["ilp"](problem), []
    for name in CHEAP:
        try:
            choice = SEARCHES[name](problem)
        except InfeasibleBudget:
            fell_short.append(name)
            continue
        assert problem.usage[0][rows, choice].sum() <= problem.limits[0] * (1 + 1e-9), name
        assert all(len({input_bits[choice[i]] for i in tie}) == 1 for tie in problem.input_ties), name
        assert problem.loss[rows, exact].sum() <= problem.loss[rows, choice].sum() * (1 + 1e-9), name
    assert set(fell_short) <= {"hawq", "uniform", "mixquant"}  # which do not try everything
    precisions = Precisions(problem, problem.trials)
    choice = precisions.choice_of(np.random.default_rng(0).random(len(precisions.steps)))
    if choice is not None:
        assert problem.usage[0][rows, choice].sum() <= problem.limits[0] * (1 + 1e-9)
        assert all(len({input_bits[choice[i]] for i in tie}) == 1 for tie in problem.input_ties)


@pytest.mark.parametrize("name", SEARCHES)
def test_same_answer_every_time_and_arrays_left_alone(name):
    if name == "autoq":
        pytest.importorskip("stable_baselines3")
    table = small_table(input_ties=((0, 1),))
    loss = table.loss.copy()
    answers = [
        search(
            table, Budget(mean_bits=6), method=name if name != "autoq" else "autoq:episodes=4", trials=trials_for(loss)
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert answers[0].predicted["mean_bits"] <= 6
    np.testing.assert_array_equal(table.loss, loss)


@pytest.mark.parametrize("name", SEARCHES)
def test_infeasible_says_so(name):
    with pytest.raises(InfeasibleBudget, match=r"no plan keeps mean_bits=3 \(reachable: 4 to 8\)"):
        search(small_table(), Budget(mean_bits=3), method=name, trials=trials_for(small_table().loss))


def test_greedy_stops_where_its_steps_go_round_in_circles():
    usage = [[[6, 6, 0], [3, 5, 1]], [[1, 1, 1], [6, 1, 1]]]
    problem = problem_of([[3, 0, 3], [1, 1, 2]], usage, [2, 2])
    assert SEARCHES["ilp"](problem).tolist() == [2, 2]
    with pytest.raises(InfeasibleBudget, match="go round in circles between the limits; the search ilp finds a plan"):
        SEARCHES["greedy"](problem)
