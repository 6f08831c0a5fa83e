"""What AutoQ's agent sees and does: one step per quantizer, and from actions to a choice within the limits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixbit.searches._problem import Floats, Integers, Problem

#: Place of the bits of the previous quantizer among the ten features.
PREVIOUS = 7


@dataclass(frozen=True)
class Step:
    """One quantizer: of the weight of a group of tied layers, or of the tensor that a unit reads (group None)."""

    unit: int
    group: int | None
    widths: tuple[int, ...]

    def width(self, action: float) -> int:
        """The width that an action in 0 .. 1 picks."""
        return self.widths[min(int(action * len(self.widths)), len(self.widths) - 1)]


class Precisions:
    """The quantizers with two widths or more, in execution order.

    Attributes:
        steps: S of them.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.groups = problem, problem.groups
        self.weight_bits = problem.bits_of("weight_bits", "autoq")
        self.input_bits = problem.bits_of("input_bits", "autoq")
        self.units = self.groups.units
        offered = self.groups.offered
        self.input_widths = [
            tuple(
                bits
                for bits in np.unique(self.input_bits).tolist()
                if offered[np.ix_(unit, self.input_bits == bits)].any(axis=1).all()
            )
            for unit in self.units
        ]
        self.weight_widths = [tuple(np.unique(self.weight_bits[row]).tolist()) for row in offered]
        self.steps = self._steps()
        self._column = [
            {bits: self._columns_by_width(group, bits) for bits in np.unique(self.input_bits).tolist()}
            for group in range(len(self.groups.loss))
        ]

    def observations(self, widths: Floats) -> Floats:
        """[S, 10] the features of every step, for widths [S] that the steps before took or will take."""
        table = self._static
        before = np.concatenate([[0.0], widths[:-1]]) / max(max(step.widths) for step in self.steps)
        return np.concatenate([table[:, :PREVIOUS], before[:, None], table[:, PREVIOUS:]], axis=1)

    def widths_of(self, choice: Integers) -> Floats:
        """[S] the width that a choice [G] gives each quantizer."""
        members = [self.units[step.unit][0] if step.group is None else step.group for step in self.steps]
        bits = [self.input_bits if step.group is None else self.weight_bits for step in self.steps]
        return np.array([one[choice[member]] for member, one in zip(members, bits, strict=True)], dtype=float)

    def actions_of(self, choice: Integers) -> Floats:
        """[S] the middle of each action that leads to a choice [G]."""
        pairs = zip(self.steps, self.widths_of(choice), strict=True)
        return np.array([(step.widths.index(int(width)) + 0.5) / len(step.widths) for step, width in pairs])

    def choice_of(self, actions: Floats) -> Integers | None:
        """[G] the choice that actions [S] in 0 .. 1 lead to, lowered to within the limits and aligned.

        None where even the narrowest widths exceed a limit, as where a wider choice uses less.
        """
        weights = [widths[0] for widths in self.weight_widths]
        inputs = [widths[0] for widths in self.input_widths]
        for step, action in zip(self.steps, actions, strict=True):
            width = step.width(action)
            if step.group is None:
                inputs[step.unit] = width
            else:
                weights[step.group] = width
        self._lower(weights, inputs)
        self._align(weights, inputs)
        self._lower(weights, inputs)  # where an aligned pair is not offered, its nearest may be wider
        choice = self._choice(weights, inputs)
        return choice if self.groups.keeps(choice) else None

    def _steps(self) -> tuple[Step, ...]:
        first = {index: int(np.flatnonzero(self.groups.group == index)[0]) for index in range(len(self.groups.loss))}
        found = []
        for number, unit in enumerate(self.units):
            place = min(first[group] for group in unit)
            found.append((place, 0, Step(number, None, self.input_widths[number])))
            found += [(first[group], 1, Step(number, int(group), self.weight_widths[group])) for group in unit]
        found.sort(key=lambda one: one[:2])
        return tuple(step for _, _, step in found if len(step.widths) > 1)

    @cached_property
    def _static(self) -> Floats:
        """[S, 9] the features but for the previous bits, each scaled to 0 .. 1 over the steps."""
        layers = self.problem.trials.features()  # type: ignore[union-attr] the search asks for them
        rows = []
        for index, step in enumerate(self.steps):
            group = self.units[step.unit][0] if step.group is None else step.group
            features = layers[np.flatnonzero(self.groups.group == group)[0]].astype(float)
            if step.group is None:
                channels = features[1]
                features = np.array([0.0, channels, channels, 0.0, 0.0, 0.0, features[6]])
            rows.append([*features, index, step.group is not None])
        table = np.array(rows, dtype=float)
        low, span = table.min(axis=0), np.ptp(table, axis=0)
        return np.divide(table - low, span, out=np.zeros_like(table), where=span > 0)

    def _columns_by_width(self, group: int, bits: int) -> dict[int, int]:
        """Width of weight -> the offered column with that input width that is nearest, the narrower of two."""
        offered = np.flatnonzero(self.groups.offered[group] & (self.input_bits == bits))
        if not offered.size:
            return {}
        losses = self.groups.loss[group, offered]
        keys = {
            width: np.lexsort((losses, self.weight_bits[offered], np.abs(self.weight_bits[offered] - width)))[0]
            for width in self.weight_widths[group]
        }
        return {width: int(offered[key]) for width, key in keys.items()}

    def _choice(self, weights: list[int], inputs: list[int]) -> Integers:
        choice = np.zeros(len(weights), dtype=np.int64)
        for number, unit in enumerate(self.units):
            for group in unit:
                choice[group] = self._column[group][inputs[number]][weights[group]]
        return choice

    def _lower(self, weights: list[int], inputs: list[int]) -> None:
        """Weights go one width down, from last to first, round after round; then inputs; until within the limits."""
        while not self.groups.keeps(self._choice(weights, inputs)):
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
                if self.groups.keeps(self._choice(weights, inputs)):
                    break
        return changed

    def _align(self, weights: list[int], inputs: list[int]) -> None:
        for number, unit in enumerate(self.units):
            common = set(self.input_widths[number]).intersection(*(self.weight_widths[group] for group in unit))
            smallest = min(inputs[number], *(weights[group] for group in unit))
            if smallest not in common:
                if not common:
                    continue
                smallest = min(common)
            inputs[number] = smallest
            for group in unit:
                weights[group] = min(weights[group], smallest)
