"""faster(): the table whose plans are no slower than float, as layers read integers only where that saves time."""

import dataclasses
from collections.abc import Callable

import numpy as np

from mixbit.core import Plan, Sensitivity
from mixbit.graph import Graph
from mixbit.targets.latency import ALIKE
from mixbit.targets.time_plans import layer_ratios, time_plans

#: Plans that are run to find which layers gain by quantized inputs.
TRIES = 5


def faster(table: Sensitivity, graph: Graph, simulate: Callable[[Plan], Graph]) -> Sensitivity:
    """The table in which a layer is offered quantized inputs only if these make the network faster.

    Layers that read one tensor decide together. At first all take the fastest of their choices with quantized inputs,
    and the plan is run beside float. Layers that take no less time in it than in float, see `PlanTime`, then read float
    numbers, and the new plan is run, until every layer gains, TRIES times at most. The plan that is the fastest as a
    whole stays, or float if none is faster for sure. Layers that read float numbers in it are offered those choices
    that do, and take at most ALIKE times float's time. Pinned layers stay as they are.

    Args:
        table: Of the graph, with the choice `float`, and the usage of `timed`.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    latency, in_float = table.usage_of("latency_ms"), table.choices.index("float")
    offered, reads_float = np.isfinite(table.loss), np.array([scheme.input is None for scheme in table.schemes])
    groups = [rows for rows in _groups(table) if offered[rows, in_float].all()]
    usable = [np.where(offered[rows].all(axis=0) & ~reads_float, latency[rows].sum(axis=0), np.inf) for rows in groups]
    columns = np.full(len(table.layers), in_float)
    for rows, times in zip(groups, usable, strict=True):
        columns[rows] = times.argmin() if np.isfinite(times).any() else in_float
    best, least = np.full_like(columns, in_float), 1.0
    for _ in range(TRIES):
        plans = [table.plan_like(choice, "timing") for choice in (columns, in_float)]
        beside_float, _ = time_plans(table, plans, graph, simulate)
        taken, of_float = layer_ratios(table, beside_float)
        ratio = beside_float[0].ratio
        if ratio.high < 1 and ratio.value < least:
            best, least = columns, ratio.value
        lose = [rows for rows in groups if columns[rows[0]] != in_float and taken[rows].sum() >= of_float[rows].sum()]
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


def _groups(table: Sensitivity) -> list[list[int]]:
    """Layers that read one tensor, and so are executed with the same format of input; most are alone."""
    tied = {row for tie in table.input_ties for row in tie}
    return [list(tie) for tie in table.input_ties] + [[row] for row in range(len(table.layers)) if row not in tied]
