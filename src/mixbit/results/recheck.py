"""Verify and time again what the folder of a run holds.

A folder may come from anyone: nothing that it names is run or read outside of it, and each of its figures that can be
measured again is. Only target packed needs the network.
"""

import dataclasses
import math
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixbit.core import (
    Inputs,
    InvalidInput,
    Plan,
    Runner,
    TargetMismatch,
    Task,
    find_target,
    quoted,
)
from mixbit.graph import Evaluation, Graph, Reference, evaluate
from mixbit.graph.capture import capture
from mixbit.results.check_set import CHECK_FILE, CheckSet
from mixbit.results.digests import check_digests
from mixbit.results.promises import broken_promises, other_names
from mixbit.results.result import FOLDED, RESULT_FILE, Result, in_float, inside_of, layer_rows
from mixbit.targets.latency import paired_times
from mixbit.targets.verify import (
    Comparison,
    compare,
    few_rows,
    own_difference,
    predicted_bytes,
    problems_of_sizes,
    with_layers,
)


def recheck(folder: Path, *, model: nn.Module | None = None, layers: bool = False) -> Comparison:
    """Run the artefact on the folder's check set; compare with the simulation stored there, and with result.json.

    `model` is the network, for target packed. With `layers`, look for the first tensor inside that differs.

    Raises InvalidInput where a file of the folder is missing or not what mixbit writes, and TargetMismatch where the
    runtime cannot load the artefact. Differences are in the result's `problems`.
    """
    result, check, graph = open_folder(folder, model)
    target, task = find_target(result.target), dataclasses.replace(Task.named(result.task), batch_axes=check.batch_axes)
    target.try_apart(folder, [tensor.numpy() for tensor in check.inputs.rows([0]).tensors])
    runner = target.load(folder, graph)
    reference = Reference(task, lambda *_: check.outputs)

    def run_by(runner: Runner, inputs: Inputs) -> dict[str, Tensor]:
        return checked_outputs(runner.run([tensor.numpy() for tensor in inputs.tensors]), check, inputs.batch_size)

    def ran(runner: Runner) -> Evaluation:
        run, batches = partial(run_by, runner), [(check.inputs, check.labels)]
        return evaluate(run, batches, task, "run the artefact", differing_from=reference)

    sizes = {
        name: (check.inputs.rows(rows), Reference(task, lambda *_, rows=rows: check.outputs_of(rows)))
        for name, rows in few_rows(check.inputs.batch_size).items()
    }
    deployed = ran(runner)
    comparison = compare(
        folder,
        target,
        result.predicted_bytes,
        deployed,
        environment=runner.environment,
        default=own_difference(partial(target.load, folder, graph), runner, ran),
        amplify=lambda: result.deployed.get("amplification"),
        more=problems_of_sizes(partial(run_by, runner), sizes, deployed),
    )
    simulated = evaluate(reference, [(check.inputs, check.labels)], task, "read the simulation")
    broken = broken_promises(result, comparison, check.evaluated, target.stored(folder), simulated, deployed)
    broken += other_names(result, runner)
    comparison = dataclasses.replace(comparison, problems=(*comparison.problems, *broken))
    if not layers:
        return comparison
    if not check.watched:
        raise InvalidInput(f"{folder / CHECK_FILE}: holds no tensors inside the simulation; use mixbit.verify()")
    rows = check.watched_samples
    arrays = [tensor.numpy() for tensor in check.inputs.rows(torch.arange(rows)).tensors]
    return with_layers(comparison, target, folder, runner, check.watched, arrays)


def bench(folder: Path, batch_sizes: tuple[int, ...], *, model: nn.Module | None = None) -> dict[str, Any]:
    """Median latency at each batch size, and how every layer is stored and was executed.

    `latency_ms` is that of the settings under which the runtime computes as the simulation does, `default_latency_ms`,
    paired with it, that of the runtime's own. Samples repeat where there are too few. Raises as `recheck` does.
    """
    result, check, graph = open_folder(folder, model)
    target = find_target(result.target)
    target.try_apart(folder, [tensor.numpy() for tensor in check.inputs.rows([0]).tensors])
    runner = target.load(folder, graph)
    latency, default_latency = {}, {}
    for size in batch_sizes:
        rows = check.inputs.rows(torch.arange(size) % check.inputs.batch_size)
        exact = target.load(folder, graph, batch_size=size)
        runs = {"artefact": exact.run}
        with suppress(TargetMismatch):  # some runtimes fail under their own settings
            default = target.load(folder, graph, batch_size=size, default_settings=True)
            runs |= {"default": default.run} if default.environment != exact.environment else {}
        medians = paired_times(runs, [tensor.numpy() for tensor in rows.tensors], f"time batch {size}").medians
        latency[str(size)] = medians["artefact"]
        default_latency[str(size)] = medians.get("default", medians["artefact"])
    tables = {name for name, row in result.layers.items() if row.executed == FOLDED}
    rows = layer_rows(result.schemes, result.predicted_bytes, target.name, folder, runner.executed(), tables=tables)
    return {
        "target": result.target,
        "latency_ms": latency,
        "default_latency_ms": default_latency,
        "layers": {name: row.model_dump() for name, row in rows.items()},
        "in_float": in_float(rows),
        "environment": runner.environment,
    }


def open_folder(folder: Path, model: nn.Module | None) -> tuple[Result, CheckSet, Graph | None]:
    """What the folder holds, unchanged since it was written; and the model's graph for a target that needs it."""
    result, plan = Result.load(folder), Plan.load(inside_of(folder, "plan.json"))
    if plan.target != result.target or plan.layers != result.schemes:
        raise InvalidInput(f"{folder}: plan.json is not the plan of result.json; quantize again")
    target = find_target(result.target)
    if target.needs_graph and model is None:
        hint = "" if result.model is None else f" (the run used {quoted(result.model)})"
        raise InvalidInput(
            f"target {target.name} needs the network: pass --model FILE.py:function (model=...){hint}; a folder's own "
            "word for it is not run"
        )
    if model is not None and not target.needs_graph:
        raise InvalidInput(f"target {target.name} runs its file alone: leave out --model (model=...)")
    if missing := {*target.files_of(os.listdir(folder)), "plan.json", CHECK_FILE} - result.files.keys():
        raise TargetMismatch(f"{folder / RESULT_FILE}: files lacks {', '.join(sorted(missing))}; quantize again")
    check_digests(folder, result, result.files)
    target.require()
    check = CheckSet.load(folder)
    if model is None:
        return result, check, None
    graph = capture(model, check.inputs)
    if predicted_bytes(graph, plan) != result.predicted_bytes:
        raise TargetMismatch(f"{folder / RESULT_FILE}: predicted_bytes are not those of the plan; quantize again")
    return result, check, graph


def checked_outputs(returned: list[NDArray[Any]], check: CheckSet, count: int) -> dict[str, Tensor]:
    """Name -> output that the check set holds, as the artefact returns it for that many samples."""
    if len(returned) < len(check.returned):
        raise TargetMismatch(f"the artefact returns {len(returned)} tensors; {len(check.returned)} are expected")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in zip(check.returned, returned, strict=False)}
    for name, wanted in check.outputs.items():
        has_samples = check.batch_axes.get(name, 0) is not None
        expected = [count, *wanted.shape[1:]] if has_samples else list(wanted.shape)
        if tensors[name].numel() != math.prod(expected):
            shapes = f"{list(tensors[name].shape)}; output {name} should be {expected}"
            raise TargetMismatch(f"the artefact returns {shapes}")
        if wanted.is_floating_point() and tensors[name].isnan().any() and not wanted.isnan().any():
            raise TargetMismatch("the artefact does not match: it returns NaN or inf where the simulation does not")
    return {name: tensors[name] for name in check.returned if name in check.outputs}
