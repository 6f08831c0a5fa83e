"""Size of artefacts: what each choice adds to the bytes of all files, what describes the graph included."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixbit.core import (
    OF_FILES,
    Budget,
    InfeasibleBudget,
    Plan,
    Sensitivity,
    Target,
    find_target,
    scratch_folder,
    track,
)
from mixbit.graph import Graph

#: Plans that are written to find one within a number of bytes.
TRIES = 5
#: Of OF_FILES, those that weights are stored in.
_BYTES = ("file_bytes", "flash_bytes")


def file_bytes(target: Target, folder: Path) -> int:
    """Bytes of all the files that the runtime loads."""
    return sum((folder / name).stat().st_size for name in target.files_of(os.listdir(folder)))


def sized(table: Sensitivity, simulate: Callable[[Plan], Graph]) -> Sensitivity:
    """The table with the usages of OF_FILES that the target tells: what each choice of each layer adds to the files.

    For every choice the files of a plan that takes it in all L layers are written, which take F_c. Of bytes, what is
    not weights and scales, F_c less their predicted bytes w_lc, describes operators, scales of activations, biases and
    what no layer covers; it is about the same for every layer, and depends on the choice through the operators that
    unpack weights. Cycles and SRAM depend on the choice through the reading of the weights, of which a layer has n_l:

        file_bytes[l, c] = w_lc + (F_c - sum_k w_kc) / L        flash_bytes alike
        cycles[l, c] = F_c n_l / sum_k n_k                      sram_bytes alike

    So a plan's usage is a sum over layers: exact for plans with one choice for all, and close in bytes for those of
    integers. A network that is partly in float has quantizers that neither uniform plan has. A layer that is not
    offered a choice takes the first that it is offered instead.

    Args:
        table: Of the graph.
        simulate: Makes the simulation of a plan.
    """
    target = find_target(table.target)
    target.require()
    weight_bytes, rows = table.usage["weight_bytes"], np.arange(len(table.layers))
    usage = {
        name: np.array(weight_bytes if name in _BYTES else table.usage["weight_bits"]) for name in figures_of(target)
    }
    for column in track(range(len(table.choices)), "write choices"):
        plan = table.plan_like(column, "sizing")
        columns = table.columns(plan.layers)
        for name, figure in _written(target, simulate(plan)).items():
            if name in _BYTES:
                usage[name][:, column] += (figure - weight_bytes[rows, columns].sum()) / len(rows)
            else:
                usage[name][:, column] = figure * table.numel / table.numel.sum()
    return dataclasses.replace(table, usage=table.usage | usage)


def plan_within(
    budget: Budget, find: Callable[[Sensitivity], Plan], table: Sensitivity, simulate: Callable[[Plan], Graph]
) -> Plan:
    """What `find` makes of a sized table, if its files take no more than the budget's limits of OF_FILES, as it says.

    If they take more, all choices count as that much larger, and another plan is sought. Raises InfeasibleBudget after
    TRIES plans.
    """
    limits, over = {name: bound for name, bound in budget.limits.items() if name in OF_FILES}, dict[str, float]()
    for _ in range(TRIES):
        plan = find(table)
        figures = {name: float(value) for name, value in _written(find_target(table.target), simulate(plan)).items()}
        over = {name: figures[name] for name, bound in limits.items() if figures[name] > bound}
        if not over:
            return plan.model_copy(update={"predicted": plan.predicted | figures})
        more = {name: (figure - plan.predicted[name]) / len(table.layers) for name, figure in over.items()}
        raised = {name: np.maximum(table.usage[name] + each, 0.0) for name, each in more.items()}
        table = dataclasses.replace(table, usage=table.usage | raised)
    name, figure = next(iter(over.items()))
    raise InfeasibleBudget(
        f"budget {name}={limits[name]:.0f}: the files of the last plan take {figure:.0f}; loosen the limit"
    )


def figures_of(target: Target) -> tuple[str, ...]:
    """Names of OF_FILES that the target tells."""
    return ("file_bytes", *target.file_figures)


def _written(target: Target, simulated: Graph) -> dict[str, int]:
    with scratch_folder() as folder:
        target.write(simulated, folder)
        return {"file_bytes": file_bytes(target, folder), **target.read_figures(folder)}
