import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given, settings, strategies as st

from mixbit.core import Limit
from mixbit.core.errors import InfeasibleBudget, MixbitError
from mixbit.searches._problem import Optimum, optimum, shadow_prices
from mixbit.searches.ilp import ilp
from tests.searches.fixtures import RESNET18_OPTIMA, RESNET18_TIES, problem_of, resnet18


def solve(*arrays, **options):
    return ilp(problem_of(*arrays, **options))


@pytest.mark.parametrize(("resource", "alpha", "objective", "bits"), RESNET18_OPTIMA)
def test_published_resnet18(resource, alpha, objective, bits):
    loss, usage = resnet18()
    four, eight = usage[resource].sum(axis=0)
    limit = four + alpha * (eight - four)
    choice = solve(loss, usage[resource][None], [limit], input_ties=RESNET18_TIES, input_bits=[4, 8])
    assert "".join("48"[column] for column in choice) == bits
    assert f"{loss[np.arange(19), choice].sum():.6f}" == f"{objective:.6f}"


def obeys(choice, input_ties, classes):
    return all(len({classes[choice[i]] for i in tie}) == 1 for tie in input_ties)


def brute_force(loss, usage, limits, input_ties, classes):
    """The smallest loss within the limits (None where nothing is) and the range of each resource without limits."""
    best, used_by_all = None, []
    num_layers, num_choices = loss.shape
    for choice in itertools.product(range(num_choices), repeat=num_layers):
        total = sum(loss[layer, column] for layer, column in enumerate(choice))
        if total == np.inf or not obeys(choice, input_ties, classes):
            continue
        used = [sum(table[layer, column] for layer, column in enumerate(choice)) for table in usage]
        used_by_all.append(used)
        if all(u <= limit + 1e-9 * abs(limit) for u, limit in zip(used, limits, strict=True)):
            best = total if best is None else min(best, total)
    reachable = [(min(column), max(column)) for column in zip(*used_by_all, strict=True)]
    return best, reachable


@st.composite
def problems(draw):
    num_layers, num_choices = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    num_limits = draw(st.integers(1, 2))

    def table(values):
        row = st.lists(values, min_size=num_choices, max_size=num_choices)
        return np.array(draw(st.lists(row, min_size=num_layers, max_size=num_layers)), dtype=float)

    loss = table(st.integers(-20, 20)) * draw(st.sampled_from([1e-12, 1.0, 1e3]))
    loss[table(st.integers(0, 5)) == 0] = np.inf
    loss[np.isinf(loss).all(axis=1), 0] = 0.0
    usage, limits = [], []
    for _ in range(num_limits):
        scale = draw(st.sampled_from([1e-6, 1.0, 1e10]))
        usage.append(table(st.integers(0, 12)) * scale)
        limits.append(draw(st.integers(3 * num_layers, 12 * num_layers)) * scale)
    tie = st.lists(st.integers(0, num_layers - 1), min_size=1, max_size=3)
    classes = draw(st.lists(st.sampled_from([4, 8]), min_size=num_choices, max_size=num_choices))
    return loss, np.array(usage), limits, draw(st.lists(tie, max_size=3)), classes


@settings(deadline=None, max_examples=200)
@given(problems())
@example((np.array([[np.inf, 1.0], [2.0, np.inf]]), np.ones((1, 2, 2)), [9.0], [[0, 1]], [8, 4]))
@example((np.array([[1.0, 1.0]]), np.array([[[1.0, 9.0]], [[9.0, 1.0]]]), [5.0, 5.0], [], [8, 8]))
def test_equals_brute_force(problem):
    loss, usage, limits, input_ties, classes = problem
    best, reachable = brute_force(*problem)
    if best is None:
        with pytest.raises(InfeasibleBudget) as caught:
            solve(loss, usage, limits, input_ties=input_ties, input_bits=classes)
        assert caught.value.binding
        np.testing.assert_allclose(caught.value.reachable, reachable, rtol=1e-12)
        return
    choice = solve(loss, usage, limits, input_ties=input_ties, input_bits=classes)
    layers = np.arange(len(loss))
    assert obeys(choice, input_ties, classes)
    assert np.all(usage[:, layers, choice].sum(axis=1) <= np.array(limits) * (1 + 1e-9))
    assert loss[layers, choice].sum() == pytest.approx(best, rel=1e-9, abs=1e-9 * np.abs(loss[np.isfinite(loss)]).max())


def random_problem(seed, num_layers=53, num_choices=7):
    """Losses over many orders of magnitude; weight bytes and bit operations as of a real network."""
    generator = np.random.default_rng(seed)
    bits = np.arange(2, 2 + num_choices)
    weights = np.round(generator.lognormal(10, 1.5, num_layers))
    macs = np.round(weights * generator.lognormal(4, 1, num_layers))
    loss = (
        generator.lognormal(-6, 3, (num_layers, 1))
        * 4.0**-bits
        * generator.lognormal(0, 0.2, (num_layers, num_choices))
    )
    usage = np.stack([np.outer(weights, bits / 8), np.outer(macs, bits**2)])
    return loss, usage, usage[:, :, num_choices // 2].sum(axis=1) * [0.9, 1.1]


@pytest.mark.parametrize("seed", range(5))
def test_small_differences_under_large_losses(seed):
    """One choice a billion times worse than the rest must not hide the rest from the solver."""
    loss, usage, limits = random_problem(seed, num_layers=5, num_choices=4)
    loss[:, 0] += 1e6
    choice = solve(loss, usage, limits)
    best, _ = brute_force(loss, usage, limits, (), ())
    assert loss[np.arange(5), choice].sum() == pytest.approx(best, rel=1e-12)


def smallest_by_table(loss, usage, limits):
    """The smallest loss under two whole-number limits, by dynamic programming over what the layers so far may use."""
    smallest = np.zeros((limits[0] + 1, limits[1] + 1))
    for layer, losses in enumerate(loss):
        before, smallest = smallest, np.full_like(smallest, np.inf)
        for choice, more in enumerate(losses):
            a, b = usage[:, layer, choice]
            reached = before[: limits[0] + 1 - a, : limits[1] + 1 - b] + more
            smallest[a:, b:] = np.minimum(smallest[a:, b:], reached)
    return smallest[-1, -1]


@pytest.mark.parametrize("seed", range(5, 10))  # the last shows what the solver's own tolerance would miss
def test_equals_dynamic_programming(seed):
    generator = np.random.default_rng(seed)
    loss = np.sort(generator.lognormal(-5, 3, (40, 5)), axis=1)
    usage = np.sort(generator.integers(0, 12, (2, 40, 5)), axis=2)[:, :, ::-1]
    share = generator.uniform(0.1, 0.7)
    ends = usage.min(axis=2).sum(axis=1), usage.max(axis=2).sum(axis=1)
    limits = ((1 - share) * ends[0] + share * ends[1]).astype(int)
    choice = solve(loss, usage, limits)
    assert loss[np.arange(40), choice].sum() == pytest.approx(smallest_by_table(loss, usage, limits), rel=1e-9)


def test_53_layers_7_choices_2_limits_in_half_a_second():
    loss, usage, limits = random_problem(0)
    solve(loss, usage, limits)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        choice = solve(loss, usage, limits)
        seconds.append(time.process_time() - start)
    assert np.all(usage[:, np.arange(53), choice].sum(axis=1) <= limits)
    assert min(seconds) < 0.5


def test_same_answer_every_time():
    problem = random_problem(1)
    np.testing.assert_array_equal(solve(*problem), solve(*problem))


def test_limits_met_exactly_are_kept():
    usage = np.array([[[0.1, 0.3], [0.2, 0.7]]])
    assert solve([[1, 0], [1, 0]], usage, [0.1 + 0.2]).tolist() == [0, 0]
    assert solve([[1, 0], [1, 0]], usage, [0.3 + 0.7]).tolist() == [1, 1]


def test_without_limits_the_smallest_loss():
    assert solve([[1, 0], [2, 3]], np.zeros((0, 2, 2)), []).tolist() == [1, 0]


def test_usage_of_what_is_not_offered_does_not_matter():
    assert solve([[np.inf, 2.0]], [[[np.inf, 1.0]]], [1]).tolist() == [1]


def test_infeasible_says_what_is_reachable_and_what_binds():
    with pytest.raises(
        InfeasibleBudget, match=r"limit 0=3 \(reachable: 12 to 14\); layer 1, layer 0 use most"
    ) as caught:
        solve([[1, 2], [1, 2]], [[[5, 6], [7, 8]]], [3])
    assert caught.value.reachable == ((12, 14),)
    assert caught.value.binding == (1, 0)


def test_infeasible_together_but_not_alone():
    with pytest.raises(InfeasibleBudget, match="each can be kept alone, but not all together"):
        solve([[1, 2]], [[[1, 9]], [[9, 1]]], [5, 5])


def test_ties_without_a_common_choice_are_named():
    with pytest.raises(InfeasibleBudget, match="layer 0, layer 2 are tied"):
        solve([[1, np.inf], [1, 1], [np.inf, 1]], np.ones((1, 3, 2)), [9], input_ties=[[0, 2]], input_bits=[8, 4])


@pytest.mark.parametrize("gap", [None, np.inf, 0.01])
def test_a_solver_that_gives_up_is_an_error(gap, monkeypatch):
    stopped = SimpleNamespace(status=1, message="Time limit reached", x=np.array([0.0, 1.0]), mip_gap=gap)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *args, **options: stopped)
    with pytest.raises(MixbitError, match="without a proven optimum: Time limit reached"):
        solve([[1, 2]], [[[1, 2]]], [3])


def test_out_of_time_an_answer_proven_to_be_close_is_taken(monkeypatch):
    stopped = SimpleNamespace(status=1, message="Time limit reached", x=np.array([0.0, 1.0]), mip_gap=5e-4)
    monkeypatch.setattr(scipy.optimize, "milp", lambda *args, **options: stopped)
    assert optimum(problem_of([[1, 2]], [[[1, 2]]], [3])) == Optimum(pytest.approx([1]), 5e-4)


def test_shadow_prices_are_the_slope_of_the_smallest_loss():
    """Two layers, two choices: of the relaxation, one more unit moves a share of the better step."""
    problem = problem_of([[4, 0], [1, 0]], [[[0, 2], [0, 2]], [[0, 0], [0, 1]]], [1, 9])
    # the first layer gains 4 for 2 units: 2 a unit; the second limit does not bind
    np.testing.assert_allclose(shadow_prices(problem), [2, 0], atol=1e-9)


def test_an_answer_over_the_limit_is_solved_again(monkeypatch):
    real, calls = scipy.optimize.milp, []

    def loose(cost, **options):
        calls.append(options)
        return SimpleNamespace(status=0, x=np.array([0.0, 1.0, 0.0, 1.0])) if len(calls) == 1 else real(cost, **options)

    monkeypatch.setattr(scipy.optimize, "milp", loose)
    assert solve([[1, 0], [1, 0.5]], [[[1, 2], [1, 2]]], [3]).tolist() == [1, 0]
    assert len(calls) == 2


def with_conversions(rng):
    """A problem of up to 5 layers with choices in 8 bits, and in float, where neighbours that differ use more."""
    num_layers = int(rng.integers(1, 6))
    loss, usage = rng.random((num_layers, 3)), rng.random((num_layers, 3))
    conversions = rng.random((num_layers - 1, 2)) * rng.integers(2, size=(num_layers - 1, 2))
    bound = usage.min(axis=1).sum() * rng.uniform(0.9, 2)
    ties = [rng.choice(num_layers, size=2, replace=False).tolist()] if num_layers > 1 and rng.random() < 0.4 else []
    budget = [Limit("latency_ms", usage, bound, conversions=conversions)]
    return problem_of(loss, usage[None], [bound], input_bits=np.array([8, 8, 32]), input_ties=ties, budget=budget)


def used_of(problem, choice):
    """The sum over layers, and what neighbours use that read differently."""
    (limit,), bits = problem.budget, [problem.input_bits[column] for column in choice]
    total = sum(limit.usage[row, column] for row, column in enumerate(choice))
    for row, pair in enumerate(itertools.pairwise(bits)):
        total += {(8, 32): limit.conversions[row, 0], (32, 8): limit.conversions[row, 1]}.get(pair, 0.0)
    return total


def test_conversions_between_neighbours_count():
    rng, infeasible = np.random.default_rng(0), 0
    for _ in range(100):
        problem = with_conversions(rng)
        choices = list(itertools.product(range(3), repeat=len(problem.loss)))
        choices = [choice for choice in choices if obeys(choice, problem.input_ties, problem.input_bits)]
        within = [choice for choice in choices if used_of(problem, choice) <= problem.limits[0]]
        if not within:
            infeasible += 1
            with pytest.raises(InfeasibleBudget) as caught:
                ilp(problem)
            ((least, _),) = caught.value.reachable
            assert least == pytest.approx(min(used_of(problem, choice) for choice in choices))
            continue
        found = ilp(problem)
        assert tuple(found) in within
        assert problem.used(found)[0] == pytest.approx(used_of(problem, found))
        least = min(sum(problem.loss[row, column] for row, column in enumerate(choice)) for choice in within)
        assert problem.loss[range(len(found)), found].sum() == pytest.approx(least)
    assert 10 < infeasible < 50
