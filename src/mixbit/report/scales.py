"""Axes of charts: values to places in percent, and what to write beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: A logarithmic axis ends so many decades below its top.
DECADES = 5
#: What is nearer to 0 is taken for it: computing with it would underflow.
LEAST = 1e-250


@dataclass(frozen=True)
class Axis:
    """From `low` at 0 to `high` at 100, by logarithms or not; values outside are put at the ends."""

    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        """The place of a value, 0 to 100, two decimals."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    @property
    def ticks(self) -> list[float]:
        """Some five round values."""
        if not self.logarithmic:
            return _round_steps(self.low, self.high, 5)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for parts in ((1,), (1, 3), (1, 2, 5)):
            values = [part * 10.0**power for power in range(first, last + 1) for part in parts]
            ticks = [value for value in values if self.low <= value <= self.high]
            if len(ticks) >= 3:
                return ticks
        return _round_steps(self.low, self.high, 5)


def linear(values: Sequence[float]) -> Axis:
    """An axis that holds the values, with a little room at both ends."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    room = 0.03 * (high - low if high - low > 1e-9 * size else size)
    room = room if room > LEAST else 1.0
    return Axis(low - room, high + room, logarithmic=False)


def logarithmic(values: Sequence[float]) -> Axis:
    """An axis by logarithms, of the positive values within DECADES of the largest; linear where few are positive."""
    positive = [value for value in values if value > LEAST]
    if 2 * len(positive) < len(values) or not positive:
        return linear(values)
    high = max(positive)
    low = max(min(positive), high * 10.0**-DECADES)
    return Axis(low / 1.3, high * 1.3, logarithmic=True)


def _round_steps(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(part * power for part in (1, 2, 2.5, 5, 10) if part * power >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
