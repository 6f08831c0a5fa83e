import numpy as np
import pytest

from mixbit.core.budget import Budget
from mixbit.core.errors import InfeasibleBudget, InvalidInput, MixbitError
from mixbit.searches._problem import Trials
from mixbit.searches.autoq import Precisions, _decay, _unit, autoq
from mixbit.searches.ilp import ilp
from mixbit.searches.search import search
from tests.searches.fixtures import problem_of, small_table

pytest.importorskip("stable_baselines3")

BITS = [(w, a) for w in (2, 4, 8) for a in (4, 8)]
WEIGHT_BITS, INPUT_BITS = np.array(BITS).T


def problem(limit, num_layers=4, input_ties=((1, 2),), offered=None, score=None):
    rng = np.random.default_rng(0)
    loss = rng.lognormal(0, 1, (num_layers, 1)) * 4.0 ** -np.minimum(WEIGHT_BITS, INPUT_BITS)
    loss = loss if offered is None else np.where(offered, loss, np.inf)
    usage = np.tile(WEIGHT_BITS, (num_layers, 1))[None].astype(float)
    rows = np.arange(num_layers)
    trials = Trials(
        score or (lambda choice: 1 - float(loss[rows, choice].sum())), lambda: 1.0, lambda: np.eye(num_layers, 7)
    )
    bits = {"weight_bits": WEIGHT_BITS, "input_bits": INPUT_BITS}
    return problem_of(loss, usage, [limit], input_ties=input_ties, trials=trials, **bits)


def precisions_of(*arguments, **changes):
    made = problem(*arguments, **changes)
    return Precisions(made, made.trials)


def bits_of(choice):
    return [BITS[column] for column in choice]


def test_one_step_for_each_quantizer_in_execution_order():
    steps = precisions_of(32).steps
    assert [step.layer for step in steps] == [None, 0, None, 1, 2, None, 3]  # layers 1 and 2 read one tensor
    assert [step.widths for step in steps] == [(4, 8), (2, 4, 8), (4, 8), (2, 4, 8), (2, 4, 8), (4, 8), (2, 4, 8)]


def test_quantizers_with_one_width_take_no_step():
    offered = np.ones((4, 6), bool)
    offered[0] = (WEIGHT_BITS == 8) & (INPUT_BITS == 8)
    assert [step.layer for step in precisions_of(32, offered=offered).steps] == [None, 1, 2, None, 3]


@pytest.mark.parametrize(("action", "width"), [(0.0, 2), (0.33, 2), (0.34, 4), (0.66, 4), (0.67, 8), (1.0, 8)])
def test_actions_pick_among_the_quantizers_own_widths(action, width):
    assert precisions_of(32).steps[1].width(action) == width


def test_too_large_a_plan_is_lowered_from_the_last_layer():
    """All at 8 bits use 32. For 26, the last goes to 4, which is 28, then the one before: 24."""
    found = bits_of(precisions_of(26, input_ties=()).choice_of(np.ones(8)))
    assert [weight for weight, _ in found] == [8, 8, 4, 4]


def test_round_after_round_where_one_is_not_enough():
    found = bits_of(precisions_of(12, input_ties=()).choice_of(np.ones(8)))
    assert [weight for weight, _ in found] == [4, 4, 2, 2]


def test_adjacent_quantizers_are_aligned():
    """Layers 1 and 2 read one tensor. With weights of 8 and 4 bits and an input of 8, all three take 4."""
    actions = np.array([1, 1, 1, 1, 0.5, 1, 1])
    assert bits_of(precisions_of(32).choice_of(actions)) == [(8, 8), (4, 4), (4, 4), (8, 8)]
    # 2 bits are offered to weights alone: the input takes the smallest width that all have, 4, and the other weight too
    actions = np.array([1, 1, 1, 1, 0, 1, 1])
    assert bits_of(precisions_of(32).choice_of(actions)) == [(8, 8), (4, 4), (2, 4), (8, 8)]


def test_observations_are_scaled_and_hold_the_previous_bits():
    precisions = precisions_of(32)
    seen = precisions.observations(np.array([8.0, 2, 4, 8, 4, 8, 8]))
    assert seen.shape == (7, 10)
    assert seen.min() == 0
    assert seen.max() == 1
    np.testing.assert_allclose(seen[:, 7], np.array([0, 8, 2, 4, 8, 4, 8]) / 8)
    np.testing.assert_allclose(seen[:, 8], np.arange(7) / 6)
    np.testing.assert_allclose(seen[:, 9], [0, 1, 0, 1, 1, 0, 1])


def test_actions_of_a_choice_lead_back_to_it():
    precisions = precisions_of(32, input_ties=())
    choice = precisions.choice_of(np.array([0, 0, 1, 1, 0, 0.5, 1, 1]))
    np.testing.assert_array_equal(precisions.choice_of(precisions.actions_of(choice)), choice)


def test_the_best_of_what_was_tried_is_the_answer():
    tried = []

    def score(choice):
        tried.append(tuple(choice.tolist()))
        return -abs(sum(choice) - 7.0)

    found = autoq(problem(20, score=score), episodes=8)
    assert len(tried) == 8
    best = max(tried, key=lambda choice: -abs(sum(choice) - 7.0))
    assert tuple(found.tolist()) == best


@pytest.mark.slow
def test_it_learns():
    """The mean score of the last tries is better than that of the random ones."""
    scores = []

    def score(choice):
        scores.append(1 - float(np.abs(WEIGHT_BITS[choice] - [2, 8, 8, 2]).sum()) / 24)
        return scores[-1]

    autoq(problem(1e9, input_ties=(), score=score), episodes=150, seed=1)
    assert np.mean(scores[-20:]) > np.mean(scores[:20]) + 0.15


def test_a_warm_start_tries_the_plan_of_ilp_first():
    tried = []
    one = problem(20, input_ties=(), score=lambda choice: tried.append(choice.tolist()) or 0.0)
    autoq(one, episodes=4, warm_start=True)
    assert tried[0] == ilp(one).tolist()
    assert tried[1] != tried[0]


def test_where_lowering_does_not_help_the_plan_of_ilp_is_tried():
    """The narrower choice uses more, as a width that the runtime has no kernel for."""
    loss, usage = np.array([[1.0, 0.5]]), np.array([[[9.0, 4.0]]])
    tried = []
    trials = Trials(lambda choice: tried.append(choice.tolist()) or 0.0, lambda: 1.0, lambda: np.ones((1, 7)))
    one = problem_of(loss, usage, [5], weight_bits=[4, 8], trials=trials)
    assert autoq(one, episodes=6).tolist() == [1]
    assert tried == [[1]] * 6


def test_the_global_generators_are_left_alone():
    import torch

    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    autoq(problem(20), episodes=3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.slow
def test_noise_of_the_evaluation_on_the_global_generators_changes_nothing():
    import torch

    def noisy(choice):
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        return -float(sum(choice))

    plain = autoq(problem(20, score=lambda choice: -float(sum(choice))), episodes=30)
    np.testing.assert_array_equal(autoq(problem(20, score=noisy), episodes=30), plain)


@pytest.mark.parametrize(("episodes", "decay"), [(100, 0.96), (300, 0.987), (999, 0.996), (1000, 0.997), (5000, 0.999)])
def test_decay_by_number_of_episodes(episodes, decay):
    assert _decay(episodes) == pytest.approx(decay)


@pytest.mark.parametrize(("score", "unit"), [(0, 1), (0.75, 10), (75, 0.1), (-0.003, 1000), (1, 1)])
def test_rewards_are_of_the_size_of_one(score, unit):
    assert _unit(score) == pytest.approx(unit)


def test_bad_input():
    with pytest.raises(InvalidInput, match="autoq tries plans on the network: use mixbit quantize"):
        search(small_table(), Budget(mean_bits=6), method="autoq")
    with pytest.raises(InvalidInput, match="episodes=0"):
        autoq(problem(20), episodes=0)
    with pytest.raises(InfeasibleBudget):
        autoq(problem(1))

    def fails(choice):
        raise MixbitError("the evaluation returns nan")

    with pytest.raises(MixbitError, match="returns nan"):
        autoq(problem(20, score=fails))
