"""Size of artefacts: what each choice adds to the bytes of all files, what describes the graph included."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixbit.core import FloatArray, InfeasibleBudget, Plan, Sensitivity, Target, find_target, scratch_folder, track
from mixbit.graph import Graph

#: Plans that are written to find one within a number of bytes.
TRIES = 5


def file_bytes(target: Target, folder: Path) -> int:
    """Bytes of all the files that the runtime loads."""
    return sum((folder / name).stat().st_size for name in target.files)


def sized(table: Sensitivity, simulate: Callable[[Plan], Graph]) -> Sensitivity:
    """The table with the usage `file_bytes`: what each choice of each layer adds to all the files.

    For every choice the files of a plan that takes it in all L layers are written, F_c bytes. What is not weights and
    scales, F_c less their predicted bytes w_lc, describes operators, scales of activations, biases and what no layer
    covers; it is about the same for every layer, and depends on the choice through the operators that unpack weights:

        file_bytes[l, c] = w_lc + (F_c - sum_k w_kc) / L

    So a plan's size is a sum over layers: exact for plans with one choice for all, and close for those of integers. A
    network that is partly in float has quantizers that neither uniform plan has. A layer that is not offered a choice
    takes the first that it is offered instead.

    Args:
        table: Of the graph.
        simulate: Makes the simulation of a plan.
    """
    target = find_target(table.target)
    target.require()
    weight_bytes, rows = table.usage["weight_bytes"], np.arange(len(table.layers))
    usage = np.array(weight_bytes)
    for column in track(range(len(table.choices)), "write choices"):
        plan = table.plan_like(column, "sizing")
        beside = _written(target, simulate(plan)) - weight_bytes[rows, table.columns(plan.layers)].sum()
        usage[:, column] += beside / len(rows)
    return _with(table, usage)


def plan_within(
    bound: float, find: Callable[[Sensitivity], Plan], table: Sensitivity, simulate: Callable[[Plan], Graph]
) -> Plan:
    """What `find` makes of a sized table, if its files take at most `bound` bytes; the plan says how many they take.

    If they take more, all choices count as that much larger, and another plan is sought. Raises InfeasibleBudget after
    TRIES plans.
    """
    size = 0
    for _ in range(TRIES):
        plan = find(table)
        size = _written(find_target(table.target), simulate(plan))
        if size <= bound:
            return plan.model_copy(update={"predicted": plan.predicted | {"file_bytes": float(size)}})
        more = (size - plan.predicted["file_bytes"]) / len(table.layers)
        table = _with(table, np.maximum(table.usage["file_bytes"] + more, 0.0))
    raise InfeasibleBudget(f"budget file_bytes={bound:.0f}: the files of the last plan take {size}; loosen the limit")


def _written(target: Target, simulated: Graph) -> int:
    with scratch_folder() as folder:
        target.write(simulated, folder)
        return file_bytes(target, folder)


def _with(table: Sensitivity, usage: FloatArray) -> Sensitivity:
    return dataclasses.replace(table, usage=table.usage | {"file_bytes": usage})
