"""AutoQ: deep deterministic policy gradient over precisions, as NNCF had it after HAQ.

An episode walks over the quantizers in execution order, of each tensor that layers read and of each weight, those with
one width left out. At each the agent sees ten features, each scaled to 0 .. 1 over all quantizers:

    depthwise, input channels, output channels, stride, kernel, number of weights, size of the input map,
    bits of the previous quantizer / the most there are, index, weight or input

and acts with a number in [0, 1], which picks among the quantizer's own widths, in equal shares. At the end

1.  while a limit is exceeded, weights go one width down, from the last layer to the first, round after round, then
    inputs alike; where that does not help, the episode has the plan of `ilp`;
2.  adjacent quantizers, of the layers that read one tensor and of the tensor, are aligned: the tensor takes the
    smallest width that was picked for any of them, or where that is not offered to all, the smallest that is; and no
    weight stays wider. Where the pair is not offered, the nearest is taken, and 1. repeated;
3.  the plan is scored by the evaluation function; reward = score x 10^-floor(log10 |float score|), less its moving
    average, in equal parts to all steps.

The first episodes act at random; then noise of a normal distribution truncated to [0, 1] decays with every episode. The
best plan of all episodes is the answer.

Differences from NNCF 2: widths are the quantizer's own, in equal shares of the action, where NNCF had 2, 4 and 8 up to
0.125, 0.5 and 1; inputs are lowered too, and limits may be any; the feature of depthwise
convolutions is not always 0; bits of the previous quantizer are the realised ones and scaled alike everywhere; old
episodes leave the memory in order, as in stable-baselines3.

Sources: Q. Lou et al., "AutoQ: Automated Kernel-Wise Neural Network Quantization", ICLR 2020; K. Wang et al., "HAQ:
Hardware-Aware Automated Quantization", CVPR 2019; NNCF 2, `AutoQPrecisionInitializer`.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from scipy import stats

from mixbit.core import InvalidInput, method, track
from mixbit.searches._autoq_steps import Precisions
from mixbit.searches._exact import optimum
from mixbit.searches._problem import Floats, Integers, Problem

#: Of each layer: the columns of `Trials.features`.
FEATURES = ("depthwise", "input_channels", "output_channels", "stride", "kernel", "num_weights", "input_size")
#: Standard deviation of the noise at first, and what each episode leaves of it, by hundreds of episodes.
NOISE, DECAYS = 0.5, (0.96, 0.96, 0.98, 0.987, 0.992, 0.993, 0.995, 0.995, 0.996, 0.996)
#: The same around the plan of a warm start.
WARM_NOISE = 0.2
#: Weight of the past in the moving average of rewards.
PAST = 0.5


@method(rank=6)
def autoq(
    problem: Problem,
    *,
    episodes: Annotated[int, Ge(1)] = 100,
    warmup: Annotated[int, Ge(0)] = 20,
    warm_start: bool = False,
    seed: Annotated[int, Ge(0)] | None = None,
) -> Integers:
    """AutoQ: an agent trained by reinforcement tries plans on the network; needs the extra `autoq`.

    Deterministic for a seed and an evaluation that is.

    Args:
        problem: With `weight_bits`, `input_bits` and `trials`.
        episodes: Plans to try.
        warmup: How many of them, the first, act at random; at most half.
        warm_start: Whether the first plan is that of `ilp` as it is, and the random ones are drawn around it.
        seed: Of every draw; that of the trials where None.

    Raises:
        InvalidInput: no network to try plans on, the extra is missing, or an option is out of its range.
        InfeasibleBudget: no plan within the limits.
        MixbitError: the evaluation failed.
    """
    if problem.trials is None:
        raise InvalidInput(
            "search autoq tries plans on the network: use mixbit quantize --search autoq, or give trials"
        )
    seed = problem.trials.seed if seed is None else seed
    if not 0 <= seed < 2**32 - episodes:  # each episode has a seed of its own
        raise InvalidInput(f"search autoq: seed={seed}: give 0 to 2^32 less the number of episodes")
    best = optimum(problem.groups).choice  # says so where nothing keeps within the limits
    precisions = Precisions(problem)
    if not precisions.steps:
        return best[problem.groups.group]
    agent = _new_agent(precisions, seed)
    start = precisions.actions_of(best) if warm_start else None
    actions = _Actions(agent.act, np.random.default_rng(seed), min(warmup, episodes // 2), _decay(episodes), start)
    found, scores, average = best, [-math.inf], None
    unit = _unit(problem.trials.evaluate_float())
    for episode in track(range(episodes), lambda: f"autoq, best score {max(scores):.4f}"):
        walked = _walk(precisions, actions, episode)
        tried = precisions.choice_of(walked)
        choice = best if tried is None or (warm_start and episode == 0) else tried
        score = problem.trials.evaluate(choice[problem.groups.group])
        if score > max(scores):
            found = choice
        scores.append(score)
        reward = score * unit
        average = reward if average is None else PAST * average + (1 - PAST) * reward
        agent.learn(precisions.observations(precisions.widths_of(choice)), walked, reward - average, seed + episode)
    return found[problem.groups.group]


def _new_agent(precisions: Precisions, seed: int) -> Any:
    try:
        from mixbit.searches._autoq_agent import Agent  # noqa: PLC0415 the extra is for this search alone
    except ImportError as error:
        raise InvalidInput(f"search autoq: {error}; install it: pip install 'mixbit[autoq]'") from error
    return Agent(len(precisions.steps), precisions.observations(np.zeros(len(precisions.steps))).shape[1], seed)


class _Actions:
    """What to do at each step: at random at first, then what the agent says, with noise that decays."""

    def __init__(
        self,
        act: Callable[[Floats], float],
        rng: np.random.Generator,
        warmup: int,
        decay: float,
        start: Floats | None,
    ) -> None:
        self.act, self.rng, self.warmup, self.decay, self.start = act, rng, warmup, decay, start

    def of(self, episode: int, step: int, observation: Floats) -> float:
        if episode >= self.warmup:
            return self._near(self.act(observation), NOISE * self.decay ** (episode - self.warmup))
        if self.start is None:
            return float(self.rng.uniform())
        return float(self.start[step]) if episode == 0 else self._near(float(self.start[step]), WARM_NOISE)

    def _near(self, mean: float, deviation: float) -> float:
        """Normal around the mean, truncated to 0 .. 1."""
        low, high = (0 - mean) / deviation, (1 - mean) / deviation
        return float(stats.truncnorm.rvs(low, high, mean, deviation, random_state=self.rng))


def _walk(precisions: Precisions, actions: _Actions, episode: int) -> Floats:
    """[S] the actions of one episode."""
    taken, widths = np.zeros(len(precisions.steps)), np.zeros(len(precisions.steps))
    for number, step in enumerate(precisions.steps):
        taken[number] = actions.of(episode, number, precisions.observations(widths)[number])
        widths[number] = step.width(taken[number])
    return taken


def _decay(episodes: int) -> float:
    """What an episode leaves of the noise."""
    if episodes < 1000:
        return DECAYS[episodes // 100]
    return float(np.interp(episodes, [1000, 3000], [0.997, 0.999]))


def _unit(score: float) -> float:
    """The power of ten that brings a score to between 1 and 10."""
    return 1.0 if score == 0 else 10.0 ** -math.floor(math.log10(abs(score)))
