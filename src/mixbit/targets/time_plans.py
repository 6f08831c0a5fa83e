"""time_plans(): how long plans take in a target's runtime, and each layer's share of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixbit.core import FloatArray, Plan, Runner, Sensitivity, find_target, track
from mixbit.graph import Graph
from mixbit.targets.latency import Ratio, paired_times

#: Plans that are open at once, beside the one that they are compared with.
TOGETHER = 8
#: The run of that one.
LAST = "last"


@dataclass(frozen=True)
class PlanTime:
    """How long a plan takes in the runtime.

    Attributes:
        ratio: Its time by that of the plan that all are compared with.
        shares: [L] of each layer in its time: the layer's operators as the runtime tells their times, and half of all
            that runs between them and those of the layers before and behind: quantizers, functions, moves. Where the
            runtime does not tell, its multiply-accumulates.
        told: Whether the runtime told the times of operators.
        executed: Layer -> operators that the runtime made of it, and the type that they compute in.
    """

    ratio: Ratio
    shares: FloatArray
    told: bool
    executed: Mapping[str, str]


def time_plans(
    table: Sensitivity, plans: Sequence[Plan], graph: Graph, simulate: Callable[[Plan], Graph]
) -> tuple[list[PlanTime], float]:
    """The times of plans by that of the last one, and the milliseconds that this one takes for one sample.

    TOGETHER of them take turns with the last one, so that a machine that is busier for a while slows them alike.

    Args:
        table: Of the graph.
        plans: One or more.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    target = find_target(table.target)
    target.require()
    sample = [leaf.numpy() for leaf in graph.tensors(graph.example.rows([0]))]
    found, last_ms = list[PlanTime](), list[FloatArray]()
    with target.written(simulate(plans[-1]), graph, 1) as last:
        for start in range(0, len(plans), TOGETHER):
            some = plans[start : start + TOGETHER]
            which = f"plans {start + 1} to {start + len(some)} of {len(plans)}"
            with ExitStack() as stack:
                runners = [
                    last if plan is plans[-1] else stack.enter_context(target.written(simulate(plan), graph, 1))
                    for plan in track(some, f"write {which}")
                ]
                runs = {str(number): runner.run for number, runner in enumerate(runners)} | {LAST: last.run}
                times = paired_times(runs, sample, f"time {which}")
                last_ms.append(times.ms[LAST])
                for number, runner in enumerate(track(runners, f"profile {which}")):
                    ratio = times.ratio(LAST if runner is last else str(number), of=LAST)
                    found.append(PlanTime(ratio, *_shares(table, runner, sample), runner.executed()))
    return found, float(np.median(np.concatenate(last_ms)))


def layer_ratios(table: Sensitivity, times: Sequence[PlanTime]) -> FloatArray:
    """[P, L] what each layer adds to each plan's ratio; plans that execute a layer alike share the mean."""
    parts = np.array([each.ratio.value * each.shares for each in times])
    for row, layer in enumerate(table.layers):
        texts = np.array([each.executed.get(layer, "") for each in times])
        parts[:, row] = [parts[texts == text, row].mean() for text in texts]
    return parts


def _shares(table: Sensitivity, runner: Runner, sample: list[NDArray[Any]]) -> tuple[FloatArray, bool]:
    """`shares` and `told` of a `PlanTime`."""
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
    of_layers = np.array([*times.values()])
    told = bool(of_layers.sum())
    known = of_layers if told else table.macs if table.macs.sum() else np.ones(len(table.layers))
    return known / known.sum(), told
