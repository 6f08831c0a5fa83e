"""Latency of artefacts, paired: runs of several alternate, so that a busy machine slows them alike."""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from mixbit.core import FloatArray, Plan, Runner, Sensitivity, find_target, track
from mixbit.graph import Graph

WARM_UP = 5
ROUNDS = 200
#: Seconds after which fewer rounds are run.
SECONDS = 5.0


#: Plans that are run to find which layers gain by quantized inputs.
TRIES = 5
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

    Every choice is run in all layers together, t_c, all paired. The runtime tells how long each operator takes. A
    layer's part p_lc is its own operators, and half of all that runs between them and the layers before and behind:
    quantizers, functions, moves; where the runtime does not tell, its multiply-accumulates.

        latency[l, c] = t_c p_lc / sum_k p_kc

    Choices that a layer executes alike share the mean. So a plan's latency is a sum over layers: right for plans with
    one choice for all, and close where conversions between choices cost little. A layer that is not offered a choice
    takes the first that it is offered instead.

    Args:
        table: Of the graph.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    return timed_beside(table, (), graph, simulate)[0]


def timed_beside(
    table: Sensitivity, choices: Sequence[NDArray[np.int64]], graph: Graph, simulate: Callable[[Plan], Graph]
) -> tuple[Sensitivity, FloatArray]:
    """The table as of `timed`, and [P] sums over layers by the times of the plans whose choices [L] these are.

    They run in turn with the plans of one choice for all.
    """
    plans = [table.plan_like(column, "timing") for column in range(len(table.choices))]
    others = [table.plan_like(choice, "timing") for choice in choices]
    latency, times, _ = _measured(table, plans, graph, simulate, others)
    rows = np.arange(len(table.layers))
    taken = [table.columns(plan.layers) for plan in others]
    off = [latency.T[rows, columns].sum() / ms for columns, ms in zip(taken, times, strict=True)]
    return dataclasses.replace(table, usage=table.usage | {"latency_ms": latency.T}), np.array(off)


def faster(table: Sensitivity, graph: Graph, simulate: Callable[[Plan], Graph]) -> Sensitivity:
    """The timed table in which a layer is offered quantized inputs only if these make the network faster.

    Layers that read one tensor decide together. At first all take the fastest of their choices with quantized inputs,
    and the plan is run beside float. Layers that take no less time in it than in float, see `timed`, then read float
    numbers, and the new plan is run, until every layer gains, TRIES times at most. The plan that is the fastest as a
    whole stays, or float if none is faster for sure. Layers that read float numbers in it are offered those choices
    that do, and take at most ALIKE times float's time. Pinned layers stay as they are.

    Args:
        table: Of the graph, with the choice `float`.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    table = timed(table, graph, simulate)
    latency, in_float = table.usage["latency_ms"], table.choices.index("float")
    offered, reads_float = np.isfinite(table.loss), np.array([scheme.input is None for scheme in table.schemes])
    groups = [rows for rows in _groups(table) if offered[rows, in_float].all()]
    usable = [np.where(offered[rows].all(axis=0) & ~reads_float, latency[rows].sum(axis=0), np.inf) for rows in groups]
    columns = np.full(len(table.layers), in_float)
    for rows, times in zip(groups, usable, strict=True):
        columns[rows] = times.argmin() if np.isfinite(times).any() else in_float
    best, least = np.full_like(columns, in_float), 1.0
    for _ in range(TRIES):
        plans = [table.plan_like(choice, "timing") for choice in (columns, in_float)]
        (taken, float_ms), _, ratio = _measured(table, plans, graph, simulate)
        if ratio.high < 1 and ratio.value < least:
            best, least = columns, ratio.value
        lose = [rows for rows in groups if columns[rows[0]] != in_float and taken[rows].sum() >= float_ms[rows].sum()]
        if not lose:
            break
        columns = columns.copy()
        columns[[row for rows in lose for row in rows]] = in_float
    for rows in groups:
        stays = best[rows[0]] == in_float
        slow = reads_float & (latency[rows].sum(axis=0) > ALIKE * latency[rows, in_float].sum())
        offered[rows] &= (reads_float & ~slow) if stays else ~reads_float
    return dataclasses.replace(table, loss=np.where(offered, table.loss, np.inf))


def note_on_speed(table: Sensitivity) -> str:
    """A sentence about which layers of a table, made by `faster`, gain by quantized inputs."""
    reads_float = np.array([scheme.input is None for scheme in table.schemes])
    left = int((np.isfinite(table.loss) <= reads_float).all(axis=1).sum())
    return f"{left} of {len(table.layers)} layers read float numbers, as 8 bits make them no faster (--fast)"


def _measured(
    table: Sensitivity,
    plans: Sequence[Plan],
    graph: Graph,
    simulate: Callable[[Plan], Graph],
    others: Sequence[Plan] = (),
) -> tuple[FloatArray, FloatArray, Ratio]:
    """[P, L] milliseconds of each layer in each plan, those of other plans, and the first plan's time by the last's.

    All run in turn.
    """
    target = find_target(table.target)
    target.require()
    sample = [leaf.numpy() for leaf in graph.tensors(graph.example.rows([0]))]
    with ExitStack() as stack:
        runners = [
            stack.enter_context(target.written(simulate(plan), graph, 1))
            for plan in track([*plans, *others], "write choices")
        ]
        executed = [runner.executed() for runner in runners]
        same = [executed.index(texts) for texts in executed]  # plans that are executed alike are timed once
        times = paired_times({str(index): runners[index].run for index in set(same)}, sample, "time choices")
        of_plans = same[: len(plans)]
        parts = {index: _parts(table, runners[index], sample) for index in track(set(of_plans), "profile choices")}
    latency = np.array([times.medians[str(index)] * parts[index] for index in of_plans])
    for row, layer in enumerate(table.layers):
        texts = [each.get(layer) for each in executed[: len(plans)]]
        latency[:, row] = [
            np.mean([latency[other, row] for other in range(len(texts)) if texts[other] == text]) for text in texts
        ]
    of_others = np.array([times.medians[str(index)] for index in same[len(plans) :]])
    return latency, of_others, times.ratio(str(of_plans[0]), of=str(of_plans[-1]))


def _parts(table: Sensitivity, runner: Runner, sample: list[NDArray[Any]]) -> FloatArray:
    """[L] each layer's share of the time: its operators, and half of what is between them and its neighbours'."""
    times, before, between = dict.fromkeys(table.layers, 0.0), "", 0.0
    for layer, ms in runner.profile(sample) if runner.profile is not None else ():
        if not layer:
            between += ms
            continue
        times[layer] += ms + between / 2
        times[before or layer] += between / 2
        before, between = layer, 0.0
    if before:
        times[before] += between
    total = sum(times.values())
    return np.array([*times.values()]) / total if total else _shares(table.macs)


def _groups(table: Sensitivity) -> list[list[int]]:
    """Layers that read one tensor, and so are executed with the same format of input; most are alone."""
    tied = {row for tie in table.input_ties for row in tie}
    return [list(tie) for tie in table.input_ties] + [[row] for row in range(len(table.layers)) if row not in tied]


def _shares(macs: FloatArray) -> FloatArray:
    return macs / macs.sum() if macs.sum() else np.full(len(macs), 1 / len(macs))
