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
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from scipy import stats

from mixbit.core import InvalidInput, method, track
from mixbit.searches._exact import optimum
from mixbit.searches._problem import Floats, Integers, Problem, Trials

#: Of each layer: the columns of `Trials.features`.
FEATURES = ("depthwise", "input_channels", "output_channels", "stride", "kernel", "num_weights", "input_size")
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
    seed: Annotated[int, Ge(0)] | None = None,
) -> Integers:
    """AutoQ: an agent trained by reinforcement tries plans on the network; needs the extra `autoq`.

    Deterministic for a seed and an evaluation that is.

    Args:
        problem: With `trials`.
        episodes: Plans to try.
        warmup: How many of them, the first, act at random; at most half.
        warm_start: Whether the first plan is that of `ilp` as it is, and the random ones are drawn around it.
        seed: Random seed; that of the trials where None.

    Raises:
        InvalidInput: no network to try plans on, the extra is missing, or an option is out of its range.
        InfeasibleBudget: no plan within the limits.
        MixbitError: the evaluation failed.
    """
    trials = problem.trials
    if trials is None:
        raise InvalidInput(
            "search autoq tries plans on the network: use mixbit quantize --search autoq, or give trials"
        )
    seed = trials.seed if seed is None else seed
    if not 0 <= seed < 2**32 - episodes:  # each episode has a seed of its own
        raise InvalidInput(f"search autoq: seed={seed}: give 0 to 2^32 less the number of episodes")
    exact = optimum(problem).choice
    precisions = Precisions(problem, trials)
    if not precisions.steps:
        return exact
    agent, rng = _new_agent(precisions, seed), np.random.default_rng(seed)
    start = precisions.actions_of(exact) if warm_start else None
    warmup = min(warmup, episodes // 2)
    best, scores, average = exact, [-math.inf], None
    unit = _unit(trials.evaluate_float())
    for episode in track(range(episodes), lambda: f"autoq, best score {max(scores):.4f}"):
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
        choice = exact if reached is None or (warm_start and episode == 0) else reached
        score = trials.evaluate(choice)
        if score > max(scores):
            best = choice
        scores.append(score)
        reward = score * unit
        average = reward if average is None else PAST * average + (1 - PAST) * reward
        agent.learn(precisions.observations(precisions.widths_of(choice)), actions, reward - average, seed + episode)
    return best


def _new_agent(precisions: "Precisions", seed: int) -> Any:
    try:
        from mixbit.searches._autoq_agent import Agent  # noqa: PLC0415 the extra is for this search alone
    except ImportError as error:
        raise InvalidInput(f"search autoq: {error}; install it: pip install 'mixbit[autoq]'") from error
    return Agent(len(precisions.steps), precisions.observations(np.zeros(len(precisions.steps))).shape[1], seed)


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

    unit: int
    layer: int | None
    widths: tuple[int, ...]

    def width(self, action: float) -> int:
        """The width that an action in 0 .. 1 picks."""
        return self.widths[min(int(action * len(self.widths)), len(self.widths) - 1)]


class Precisions:
    """What the agent sees and does: a step for each quantizer, and from actions to a choice within the limits.

    Attributes:
        steps: S quantizers with two widths or more, in execution order.
    """

    def __init__(self, problem: Problem, trials: Trials) -> None:
        self.problem, self.trials, self.units = problem, trials, problem.units
        offered, all_bits = problem.offered, np.unique(problem.input_bits).tolist()
        self.input_widths = [
            tuple(bits for bits in all_bits if offered[np.ix_(unit, problem.input_bits == bits)].any(axis=1).all())
            for unit in self.units
        ]
        self.weight_widths = [tuple(np.unique(problem.weight_bits[row]).tolist()) for row in offered]
        self.columns = [
            {bits: self._columns_by_width(layer, bits) for bits in all_bits} for layer in range(len(offered))
        ]
        inputs = [(unit[0], 0, Step(number, None, self.input_widths[number])) for number, unit in enumerate(self.units)]
        weights = [
            (layer, 1, Step(number, int(layer), self.weight_widths[layer]))
            for number, unit in enumerate(self.units)
            for layer in unit
        ]
        in_order = sorted(inputs + weights, key=lambda entry: entry[:2])
        self.steps = tuple(step for _, _, step in in_order if len(step.widths) > 1)

    def observations(self, widths: Floats) -> Floats:
        """[S, 10] the features of every step, for widths [S] that the steps before took or will take."""
        table = self._static
        before = np.concatenate([[0.0], widths[:-1]]) / max(max(step.widths) for step in self.steps)
        return np.concatenate([table[:, :PREVIOUS], before[:, None], table[:, PREVIOUS:]], axis=1)

    def widths_of(self, choice: Integers) -> Floats:
        """[S] the width that a choice [L] gives each quantizer."""
        weight_bits, input_bits = self.problem.weight_bits[choice], self.problem.input_bits[choice]
        return np.array(
            [
                input_bits[self.units[step.unit][0]] if step.layer is None else weight_bits[step.layer]
                for step in self.steps
            ],
            dtype=float,
        )

    def actions_of(self, choice: Integers) -> Floats:
        """[S] the middle of each action that leads to a choice [L]."""
        pairs = zip(self.steps, self.widths_of(choice), strict=True)
        return np.array([(step.widths.index(int(width)) + 0.5) / len(step.widths) for step, width in pairs])

    def choice_of(self, actions: Floats) -> Integers | None:
        """[L] the choice that actions [S] in 0 .. 1 lead to, lowered to within the limits and aligned.

        None where even the narrowest widths exceed a limit, as where a wider choice uses less.
        """
        weights = [widths[0] for widths in self.weight_widths]
        inputs = [widths[0] for widths in self.input_widths]
        for step, action in zip(self.steps, actions, strict=True):
            if step.layer is None:
                inputs[step.unit] = step.width(action)
            else:
                weights[step.layer] = step.width(action)
        self._lower(weights, inputs)
        self._align(weights, inputs)
        self._lower(weights, inputs)  # where an aligned pair is not offered, its nearest may be wider
        choice = self._choice(weights, inputs)
        return choice if self.problem.keeps(choice) else None

    @cached_property
    def _static(self) -> Floats:
        """[S, 9] the features but for the previous bits, each scaled to 0 .. 1 over the steps."""
        layers = self.trials.features()
        rows = []
        for index, step in enumerate(self.steps):
            features = layers[self.units[step.unit][0] if step.layer is None else step.layer].astype(float)
            if step.layer is None:
                channels = features[1]
                features = np.array([0.0, channels, channels, 0.0, 0.0, 0.0, features[6]])
            rows.append([*features, index, step.layer is not None])
        table = np.array(rows, dtype=float)
        low, span = table.min(axis=0), np.ptp(table, axis=0)
        return np.divide(table - low, span, out=np.zeros_like(table), where=span > 0)

    def _columns_by_width(self, layer: int, bits: int) -> dict[int, int]:
        """Width of weight -> the offered column with that input width that is nearest, the narrower of two."""
        offered = np.flatnonzero(self.problem.offered[layer] & (self.problem.input_bits == bits))
        if not offered.size:
            return {}
        losses, weight_bits = self.problem.loss[layer, offered], self.problem.weight_bits[offered]
        return {
            width: int(offered[np.lexsort((losses, weight_bits, np.abs(weight_bits - width)))[0]])
            for width in self.weight_widths[layer]
        }

    def _choice(self, weights: list[int], inputs: list[int]) -> Integers:
        choice = np.zeros(len(weights), dtype=np.int64)
        for unit, bits in zip(self.units, inputs, strict=True):
            choice[unit] = [self.columns[layer][bits][weights[layer]] for layer in unit]
        return choice

    def _lower(self, weights: list[int], inputs: list[int]) -> None:
        """Weights go one width down, from last to first, round after round; then inputs; until within the limits."""
        while not self.problem.keeps(self._choice(weights, inputs)):
            lowered = self._lower_round(weights, self.weight_widths, weights, inputs)
            if not lowered and not self._lower_round(inputs, self.input_widths, weights, inputs):
                return

    def _lower_round(
        self, lowered: list[int], widths: list[tuple[int, ...]], weights: list[int], inputs: list[int]
    ) -> bool:
        """One round from the last to the first; whether anything went down."""
        changed = False
        for index in reversed(range(len(lowered))):
            place = widths[index].index(lowered[index])
            if place:
                lowered[index], changed = widths[index][place - 1], True
                if self.problem.keeps(self._choice(weights, inputs)):
                    break
        return changed

    def _align(self, weights: list[int], inputs: list[int]) -> None:
        """Within each unit no weight stays wider than the smallest width that was picked, and the tensor takes it."""
        for number, unit in enumerate(self.units):
            common = set(self.input_widths[number]).intersection(*(self.weight_widths[layer] for layer in unit))
            smallest = min(inputs[number], *(weights[layer] for layer in unit))
            if smallest not in common:
                if not common:
                    continue
                smallest = min(common)
            inputs[number] = smallest
            for layer in unit:
                weights[layer] = min(weights[layer], smallest)
