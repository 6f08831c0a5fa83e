"""Latency of artefacts, paired: runs of several alternate, so that a busy machine slows them alike."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from mixbit.core import FloatArray, track

WARM_UP = 5
ROUNDS = 200
#: Seconds after which fewer rounds are run.
SECONDS = 5.0
#: Two loads of one file differ by up to this, as their data lies in other places.
ALIKE = 1.05


@dataclass(frozen=True)
class Times:
    """Milliseconds of runs that took turns.

    Attributes:
        ms: Run -> [rounds] its time in each round.
    """

    ms: Mapping[str, FloatArray]

    @property
    def medians(self) -> dict[str, float]:
        """Run -> its median time."""
        return {name: float(np.median(values)) for name, values in self.ms.items()}

    def ratio(self, name: str, of: str) -> "Ratio":
        """How many times the other's time a run takes, round by round: the median of the ratios.

        Its 95 % interval is between two of the n sorted ratios, 0.98 sqrt(n) places from the middle, as for any median
        of independent numbers.
        """
        ratios = np.sort(self.ms[name] / self.ms[of])
        middle, away = (len(ratios) - 1) / 2, 0.98 * math.sqrt(len(ratios))
        low, high = max(0, math.floor(middle - away)), min(len(ratios) - 1, math.ceil(middle + away))
        return Ratio(float(np.median(ratios)), float(ratios[low]), float(ratios[high]))


@dataclass(frozen=True)
class Ratio:
    """A run's time by another's, and the ends of its 95 % interval."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: Annotated[float, Field(gt=0)]
    low: Annotated[float, Field(gt=0)]
    high: Annotated[float, Field(gt=0)]

    @property
    def in_words(self) -> str:
        """Slower or faster only where the whole interval says so, by more than two loads of one file differ."""
        return "slower than" if self.low > ALIKE else "faster than" if self.high < 1 / ALIKE else "as fast as"

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired_times(
    runs: Mapping[str, Callable[[list[NDArray[Any]]], Any]], inputs: list[NDArray[Any]], label: str
) -> Times:
    """Times of each run on these inputs, over rounds in which each runs once.

    The order is drawn in each round, as each run leaves its data in the caches.
    """
    orders = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for round_number in track(range(WARM_UP + ROUNDS), label):
        for name in orders.sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name](inputs)
            if round_number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
        if round_number > 2 * WARM_UP and time.perf_counter() - began > SECONDS:
            break
    return Times({name: np.array(values) for name, values in times.items()})
