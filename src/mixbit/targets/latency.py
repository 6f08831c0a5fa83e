"""Latency of artefacts, paired: runs of several alternate, so that a busy machine slows them alike."""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from mixbit.core import FloatArray, Plan, Sensitivity, find_target, track
from mixbit.graph import Graph

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


def timed(table: Sensitivity, graph: Graph, simulate: Callable[[Plan], Graph]) -> Sensitivity:
    """The table with the usage `latency_ms`: what each choice adds to the time of one sample in the target's runtime.

    Every choice is run in all layers together, t_c. Those that a layer does not execute as it does the first one are
    also run in it alone, and in those that read the same tensor, while all others take the first: t_lc, which such
    layers share by their multiply-accumulates. All runs are paired. With m_l the layer's share of all
    multiply-accumulates,

        latency[l, c] = m_l t_1 + a_c (t_lc - t_1),    a_c such that a column adds up to t_c

    but never below zero. So a plan's latency is a sum over layers: right for plans with one choice for all, and close
    where conversions between choices cost little; `mixbit quantize` reports the true one beside it. A layer that is not
    offered a choice takes the first that it is offered instead.

    Args:
        table: Of the graph.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    target = find_target(table.target)
    target.require()
    (num_layers, num_choices), groups = table.loss.shape, _groups(table)
    with ExitStack() as stack:
        runners = {
            str(column): stack.enter_context(target.written(simulate(table.plan_like(column, "timing")), graph, 1))
            for column in track(range(num_choices), "write choices")
        }
        executed = [runners[str(column)].executed() for column in range(num_choices)]
        # name of (group, how its layers are executed) for every choice
        names = [[f"{rows} {[texts.get(table.layers[row]) for row in rows]}" for rows in groups] for texts in executed]
        alone = {
            name: (rows, column)
            for column in range(1, num_choices)
            for rows, name, first in zip(groups, names[column], names[0], strict=True)
            if name != first
        }
        for name, (rows, column) in track(alone.items(), "write layers alone", len(alone)):
            plan = table.plan_like(np.where(np.isin(np.arange(num_layers), rows), column, 0), "timing")
            runners[name] = stack.enter_context(target.written(simulate(plan), graph, 1))
        sample = [leaf.numpy() for leaf in graph.tensors(graph.example.rows([0]))]
        times = paired_times({name: runner.run for name, runner in runners.items()}, sample, "time choices").medians
    changes = np.zeros((num_layers, num_choices))
    for column in range(num_choices):
        for rows, name in zip(groups, names[column], strict=True):
            changes[rows, column] = (times.get(name, times["0"]) - times["0"]) * _shares(table.macs[rows])
    usage = _latency(table, changes, np.array([times[str(column)] for column in range(num_choices)]))
    return dataclasses.replace(table, usage=table.usage | {"latency_ms": usage})


def _latency(table: Sensitivity, changes: FloatArray, uniform: FloatArray) -> FloatArray:
    """[L, C] from what each choice alone changes [L, C], and the times of one choice for all [C]."""
    total, wanted = changes.sum(axis=0), uniform - uniform[0]
    # where the sum is of the other sign, or none, what is to be added goes to the layers by their shares
    trusted = total * wanted > 0
    scale = np.divide(wanted, total, out=np.zeros_like(total), where=trusted)
    shared = uniform[0] + np.where(trusted, 0.0, wanted)
    return np.maximum(_shares(table.macs)[:, None] * shared + scale * changes, 0.0)


def _groups(table: Sensitivity) -> list[list[int]]:
    """Layers that read one tensor, and so are executed with the same format of input; most are alone."""
    tied = {row for tie in table.input_ties for row in tie}
    return [list(tie) for tie in table.input_ties] + [[row] for row in range(len(table.layers)) if row not in tied]


def _shares(macs: FloatArray) -> FloatArray:
    return macs / macs.sum() if macs.sum() else np.full(len(macs), 1 / len(macs))
