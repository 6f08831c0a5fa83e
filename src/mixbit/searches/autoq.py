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

With `parallel`, rounds of so many episodes act with the agent as it is at the beginning of the round; their plans are
scored at once, and the agent learns from them in the order of episodes.

Differences from NNCF 2: widths are the quantizer's own, in equal shares of the action, where NNCF had 2, 4 and 8 up to
0.125, 0.5 and 1; inputs are lowered too, and limits may be any; the feature of depthwise
convolutions is not always 0; bits of the previous quantizer are the realised ones and scaled alike everywhere; old
episodes leave the memory in order, as in stable-baselines3.

Sources: Q. Lou et al., "AutoQ: Automated Kernel-Wise Neural Network Quantization", ICLR 2020; K. Wang et al., "HAQ:
Hardware-Aware Automated Quantization", CVPR 2019; NNCF 2, `AutoQPrecisionInitializer`.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from scipy import stats

from mixbit.core import InvalidInput, method, track
from mixbit.searches._problem import FEATURES, Floats, Integers, Problem, Trials, optimum

#: Place of the bits of the previous quantizer among the ten features.
PREVIOUS = 7
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
    parallel: Annotated[int, Ge(1)] = 1,
    seed: Annotated[int, Ge(0)] | None = None,
) -> Integers:
    """AutoQ: an agent trained by reinforcement tries plans on the network; needs the extra `autoq`.

    Deterministic for a seed and an evaluation that is.

    Args:
        problem: With `trials`.
        episodes: Plans to try.
        warmup: How many of them, the first, act at random; at most half.
        warm_start: Whether the first plan is that of `ilp` as it is, and the random ones are drawn around it.
        parallel: Episodes of a round, whose plans are tried at once where work is shared out; the answer depends on it.
        seed: Random seed; that of the trials where None.

    Raises:
        InvalidInput: no network to try plans on, the extra is missing, or an option is out of its range.
        InfeasibleBudget: no plan within the limits.
        MixbitError: the evaluation failed.
    """
    trials = problem.trials
    if trials is None:
        raise InvalidInput("search autoq tries plans on the network: use mixbit quantize --search autoq or give trials")
    seed = trials.seed if seed is None else seed
    if not 0 <= seed < 2**32 - episodes:  # each episode has a seed of its own
        raise InvalidInput(f"search autoq: seed={seed}: give 0 to 2^32 less the number of episodes")
    exact = optimum(problem).choice
    precisions = Precisions(problem, trials)
    if not precisions.steps:
        return exact
    agent, rng = _new_agent(len(precisions.steps), seed), np.random.default_rng(seed)
    start = precisions.actions_of(exact) if warm_start else None
    warmup = min(warmup, episodes // 2)
    best, scores, average = exact, [-math.inf], None
    unit = _unit(trials.evaluate_float())

    def acted(episode: int) -> tuple[Floats, Integers]:
        noise = NOISE * _decay(episodes) ** (episode - warmup) if episode >= warmup else None
        actions, widths = np.zeros((2, len(precisions.steps)))
        for number, step in enumerate(precisions.steps):
            if noise is not None:
                actions[number] = _near(agent.act(precisions.observations(widths)[number]), noise, rng)
            elif start is None:
                actions[number] = rng.uniform()
            else:
                actions[number] = start[number] if episode == 0 else _near(float(start[number]), WARM_NOISE, rng)
            widths[number] = step.width(actions[number])
        reached = precisions.choice_of(actions)
        return actions, exact if reached is None or (warm_start and episode == 0) else reached

    for first in track(range(0, episodes, parallel), lambda: f"autoq, best score {max(scores):.4f}"):
        tries = [acted(episode) for episode in range(first, min(first + parallel, episodes))]
        together = zip(tries, trials.scores([choice for _, choice in tries]), strict=True)
        for episode, ((actions, choice), score) in enumerate(together, first):
            if score > max(scores):
                best = choice
            scores.append(score)
            reward = score * unit
            average = reward if average is None else PAST * average + (1 - PAST) * reward
            widths = precisions.widths_of(choice)
            agent.learn(precisions.observations(widths), actions, reward - average, seed + episode)
    return best


def _new_agent(num_steps: int, seed: int) -> Any:
    try:
        from mixbit.searches._autoq_agent import Agent  # noqa: PLC0415 the extra is for this search alone
    except ImportError as error:
        raise InvalidInput(f"search autoq: {error}; install it: pip install 'mixbit[autoq]'") from error
    return Agent(num_steps, len(FEATURES) + 3, seed)


def _near(mean: float, deviation: float, rng: np.random.Generator) -> float:
    """A number drawn from a normal distribution around the mean, truncated to 0 .. 1."""
    low, high = (0 - mean) / deviation, (1 - mean) / deviation
    return float(stats.truncnorm.rvs(low, high, mean, deviation, random_state=rng))


def _decay(episodes: int) -> float:
    """What an episode leaves of the noise."""
    if episodes < 1000:
        return DECAYS[episodes // 100]
    return float(np.interp(episodes, [1000, 3000], [0.997, 0.999]))


def _unit(score: float) -> float:
    """The power of ten that brings a score to between 1 and 10."""
    return 1.0 if score == 0 else 10.0 ** -math.floor(math.log10(abs(score)))


@dataclass(frozen=True)
class Step:
    """One quantizer: of the weight of a layer, or of the tensor that a unit reads (layer None)."""

    place: int  # among all quantizers
    first: int  # the layer, or the first one that reads the tensor
    layer: int | None
    widths: tuple[int, ...]

    def width(self, action: float) -> int:
        """The width that an action in 0 .. 1 picks."""
        return self.widths[min(int(action * len(self.widths)), len(self.widths) - 1)]


class Precisions:
    """What the agent sees and does: a step for each quantizer, and from actions to a choice within the limits.

    Attributes:
        quantizers: Of the U units' tensors and of the L layers' weights.
        steps: S quantizers with two widths or more, in execution order.
        columns: Layer, input bits, weight bits -> the nearest column with that input, the narrower of two.
    """

    def __init__(self, problem: Problem, trials: Trials) -> None:
        self.problem, self.trials, self.units = problem, trials, problem.units
        offered, weight_bits, input_bits = problem.offered, problem.weight_bits, problem.input_bits
        self.quantizers: list[Step] = []
        for place, unit in enumerate(self.units):
            in_common = [
                bits
                for bits in np.unique(input_bits).tolist()
                if offered[np.ix_(unit, input_bits == bits)].any(axis=1).all()
            ]
            self.quantizers.append(Step(place, int(unit[0]), None, tuple(in_common)))
        self.columns: dict[tuple[int, int, int], int] = {}
        for layer, row in enumerate(offered):
            widths = tuple(np.unique(weight_bits[row]).tolist())
            self.quantizers.append(Step(len(self.units) + layer, layer, layer, widths))
            for bits, width in itertools.product(np.unique(input_bits[row]).tolist(), widths):
                columns = np.flatnonzero(row & (input_bits == bits))
                distance = np.abs(weight_bits[columns] - width)
                nearest = np.lexsort((problem.loss[layer, columns], weight_bits[columns], distance))[0]
                self.columns[layer, bits, width] = int(columns[nearest])
        in_order = sorted(self.quantizers, key=lambda step: (step.first, step.layer is not None))
        self.steps = tuple(step for step in in_order if len(step.widths) > 1)

    def observations(self, widths: Floats) -> Floats:
        """[S, 10] the features of every step, for widths [S] that the steps before took or will take."""
        table = self._static
        before = np.concatenate([[0.0], widths[:-1]]) / max(max(step.widths) for step in self.steps)
        return np.concatenate([table[:, :PREVIOUS], before[:, None], table[:, PREVIOUS:]], axis=1)

    def widths_of(self, choice: Integers) -> Floats:
        """[S] the width that a choice [L] gives each quantizer."""
        weights, inputs = self.problem.weight_bits[choice], self.problem.input_bits[choice]
        return np.array([(inputs if step.layer is None else weights)[step.first] for step in self.steps], dtype=float)

    def actions_of(self, choice: Integers) -> Floats:
        """[S] the middle of each action that leads to a choice [L]."""
        pairs = zip(self.steps, self.widths_of(choice), strict=True)
        return np.array([(step.widths.index(int(width)) + 0.5) / len(step.widths) for step, width in pairs])

    def choice_of(self, actions: Floats) -> Integers | None:
        """[L] the choice that actions [S] in 0 .. 1 lead to, lowered to within the limits and aligned.

        None where even the narrowest widths exceed a limit, as where a wider choice uses less.
        """
        picked = [step.widths[0] for step in self.quantizers]
        for step, action in zip(self.steps, actions, strict=True):
            picked[step.place] = step.width(action)
        self._lower(picked)
        self._align(picked)
        self._lower(picked)  # where an aligned pair is not offered, its nearest may be wider
        choice = self._choice(picked)
        return choice if self.problem.keeps(choice) else None

    @cached_property
    def _static(self) -> Floats:
        """[S, 9] the features but for the previous bits, each scaled to 0 .. 1 over the steps."""
        layers = self.trials.features()
        rows = []
        for index, step in enumerate(self.steps):
            features = layers[step.first].astype(float)
            if step.layer is None:
                channels = features[1]
                features = np.array([0.0, channels, channels, 0.0, 0.0, 0.0, features[6]])
            rows.append([*features, index, step.layer is not None])
        table = np.array(rows, dtype=float)
        low, span = table.min(axis=0), np.ptp(table, axis=0)
        return np.divide(table - low, span, out=np.zeros_like(table), where=span > 0)

    def _choice(self, picked: list[int]) -> Integers:
        """[L] the choice for the width of each quantizer."""
        choice = np.zeros(len(self.problem.loss), dtype=np.int64)
        for place, unit in enumerate(self.units):
            choice[unit] = [self.columns[layer, picked[place], picked[len(self.units) + layer]] for layer in unit]
        return choice

    def _lower(self, picked: list[int]) -> None:
        """Weights go one width down, from last to first, round after round; then inputs; until within the limits."""
        inputs, weights = range(len(self.units)), range(len(self.units), len(picked))
        while not self.problem.keeps(self._choice(picked)):
            if not any(self._lower_round(picked, places) for places in (weights, inputs)):
                return

    def _lower_round(self, picked: list[int], places: range) -> bool:
        """One round from the last to the first; whether anything went down."""
        changed = False
        for place in reversed(places):
            widths = self.quantizers[place].widths
            if picked[place] > widths[0]:
                picked[place], changed = widths[widths.index(picked[place]) - 1], True
                if self.problem.keeps(self._choice(picked)):
                    break
        return changed

    def _align(self, picked: list[int]) -> None:
        """Within each unit the tensor takes the smallest width that was picked, and no weight stays wider."""
        for place, unit in enumerate(self.units):
            weights = (len(self.units) + unit).tolist()
            smallest = min(picked[each] for each in (place, *weights))
            common = set.intersection(*(set(self.quantizers[each].widths) for each in (place, *weights)))
            if common:
                smallest = smallest if smallest in common else min(common)
                picked[place] = smallest
                for each in weights:
                    picked[each] = min(picked[each], smallest)
