"""Verify and time a folder that auto_quantize() wrote, from its files alone (and, for packed, the model)."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import InvalidInput, Plan, Runner, TargetMismatch, find_target, sha256
from mixbit.core.batches import Inputs
from mixbit.core.io.user_code import load_model
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.evaluate import Evaluation, evaluate
from mixbit.graph.graph import Graph
from mixbit.pipeline.folder import CheckSet, Result, in_float, layer_rows
from mixbit.targets.latency import paired_latency_ms
from mixbit.targets.verify import Comparison, compare


def recheck(folder: Path) -> Comparison:
    """Run the artefact on the folder's check set; compare with the simulation stored there and the predicted bytes.

    Raises:
        InvalidInput: a file of the folder is missing or not what mixbit writes.
        TargetMismatch: the runtime cannot load the artefact. Differences are in the result's `problems`.
    """
    result, check, runner = _open(folder)
    task = Task.named(result.task)

    def run(inputs: Inputs) -> Tensor:
        return _output(runner.run([tensor.numpy() for tensor in inputs.args]), check)

    deployed = evaluate(run, [(Inputs(tuple(check.inputs), {}), check.labels)], task, "run the artefact")
    return compare(folder, result.target, result.predicted_bytes, Evaluation(task, check.outputs), deployed)


def bench(folder: Path, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Median latency at each batch size, and how every layer is stored and was executed.

    `latency_ms` is that of the settings under which the runtime computes as the simulation does, `default_latency_ms`,
    paired with it, that of the runtime's own.

    Raises:
        InvalidInput: a file of the folder is missing or not what mixbit writes, or a batch size below 1.
        TargetMismatch: the runtime cannot load the artefact.
    """
    if any(size < 1 for size in batch_sizes):
        raise InvalidInput(f"batch sizes {batch_sizes}: give whole numbers from 1")
    result, check, runner = _open(folder)
    target = find_target(result.target)
    graph, latency, default_latency = _graph(result, check), {}, {}
    for size in batch_sizes:
        inputs = [tensor.numpy() for tensor in check.rows(size)]
        exact = target.load(folder, graph, batch_size=size)
        default = target.load(folder, graph, batch_size=size, default_settings=True)
        runs = {"artefact": exact.run} | ({"default": default.run} if default.environment != exact.environment else {})
        medians = paired_latency_ms(runs, inputs, f"time batch {size}")
        latency[str(size)] = medians["artefact"]
        default_latency[str(size)] = medians.get("default", medians["artefact"])
    rows = layer_rows(result.schemes, result.predicted_bytes, target.stored(folder), runner.executed())
    return {
        "target": result.target,
        "latency_ms": latency,
        "default_latency_ms": default_latency,
        "layers": {name: row.model_dump() for name, row in rows.items()},
        "in_float": in_float(rows),
        "environment": runner.environment,
    }


def _open(folder: Path) -> tuple[Result, CheckSet, Runner]:
    """What the folder holds, none of it changed since, and the artefact, loaded."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder; give the --out of mixbit quantize")
    result, plan = Result.load(folder), Plan.load(folder / "plan.json")
    if plan.target != result.target or plan.layers != result.schemes:
        raise InvalidInput(f"{folder}: plan.json is not the plan of result.json; quantize again")
    for name, digest in result.files.items():
        if sha256(folder / name) != digest:
            raise TargetMismatch(
                f"the artefact does not match: {name} is not the file that was verified; quantize again"
            )
    target, check = find_target(result.target), CheckSet.load(folder)
    target.require()
    return result, check, target.load(folder, _graph(result, check))


def _graph(result: Result, check: CheckSet) -> Graph | None:
    """The captured graph of the user's model, for the target whose file holds no code."""
    if not find_target(result.target).needs_graph:
        return None
    if result.model is None:
        raise InvalidInput(f"target {result.target}: the folder does not say where the model is; use mixbit.verify()")
    return capture(load_model(result.model), check.example)


def _output(returned: list[NDArray[Any]], check: CheckSet) -> Tensor:
    """The output that the check set is about, as the artefact returns it."""
    shapes = [output.shape for output in returned]
    if check.output < len(returned) and returned[check.output].size == check.outputs.numel():
        output = torch.from_numpy(returned[check.output].copy())
        if not output.isfinite().all():
            raise TargetMismatch("the artefact does not match: it returns NaN or inf where the simulation does not")
        return output
    raise TargetMismatch(f"the artefact returns {shapes}; output {check.output} should be {list(check.outputs.shape)}")
