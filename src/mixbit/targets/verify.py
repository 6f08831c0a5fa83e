"""verify(): does the artefact do, weigh and hold what was promised?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import Inputs, Plan, Runner, Target, TargetMismatch, Task, find_target, split_batch
from mixbit.graph import Evaluation, Graph, Layer, evaluate
from mixbit.targets._integers import plan_of

#: Largest share by which the bytes of the weights may differ from the prediction.
BYTES_TOLERANCE = 0.01
#: Largest share of top answers that may differ from the simulation; one answer may always.
ANSWERS_TOLERANCE = 0.02
#: Largest root mean square difference from the simulation, relative to the spread of its outputs.
OUTPUT_TOLERANCE = 0.03


def artefact_runner(runner: Runner, graph: Graph) -> Callable[[Inputs], Any]:
    """An artefact of the graph as a function for `evaluate`: it returns what the graph would."""
    with torch.no_grad():
        example = graph.example.to(graph.device)
        leaves, structure = pytree.tree_flatten(graph(*example.args, **example.kwargs))

    def run(inputs: Inputs) -> Any:
        arrays = [leaf.numpy() for leaf in graph.tensors(inputs)]
        outputs = [torch.from_numpy(np.array(output)) for output in runner.run(arrays)]
        if any(output.isnan().any() for output in outputs):
            raise TargetMismatch("the artefact returns NaN where the simulation does not")
        left = iter(outputs)
        returned = [next(left, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return pytree.tree_unflatten(returned, structure)

    return run


@dataclass(frozen=True)
class Comparison:
    """The artefact against the simulation and the prediction.

    Attributes:
        num_samples: Samples compared.
        max_abs_diff: Largest difference of an output.
        relative_rms: Root mean square difference / standard deviation of the simulation's outputs.
        agreement: Share of equal top answers; None where the task has none.
        accuracy: Of the artefact; None without labels.
        weight_bytes: Of weights and scales, read from the file.
        predicted_bytes: The same, as predicted from the plan.
        file_bytes: Of all the files that the runtime loads.
        problems: Each difference from what was promised; empty when the artefact matches.
    """

    num_samples: int
    max_abs_diff: float
    relative_rms: float
    agreement: float | None
    accuracy: float | None
    weight_bytes: int
    predicted_bytes: int
    file_bytes: int
    problems: tuple[str, ...]

    def check(self) -> None:
        """Raise TargetMismatch where there are problems."""
        if self.problems:
            raise TargetMismatch("the artefact does not match: " + "; ".join(self.problems))

    def __str__(self) -> str:
        agreement = "" if self.agreement is None else f", top answers agree on {self.agreement:.2%}"
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
        verdict = "matches" if not self.problems else "DOES NOT MATCH: " + "; ".join(self.problems)
        return (
            f"{self.num_samples} samples: outputs differ by {self.relative_rms:.2%} of their spread (at most "
            f"{self.max_abs_diff:.3g}){agreement}{accuracy}; weights "
            f"{self.weight_bytes:,} bytes ({self.predicted_bytes:,} predicted), files {self.file_bytes:,} bytes; "
            f"{verdict}"
        )


def verify(
    path: str | Path, graph: Graph, simulated: Graph, batches: Iterable[Any], *, task: Task | None = None
) -> Comparison:
    """Run the artefact in its runtime on real batches and compare it with the simulation.

    Args:
        path: Folder that `export` wrote, or the artefact in it.
        graph: The captured graph in float.
        simulated: The quantized graph that was exported.
        batches: Data, with labels where there are any.
        task: What the outputs mean; classification where None.

    Raises:
        InvalidInput: the folder does not hold the artefact, or the data does not fit.
        TargetMismatch: the runtime cannot load the artefact. Differences are in the result's `problems`.
    """
    plan = plan_of(simulated)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    task = task or Task.classification()
    pairs = [split_batch(batch, len(graph.example.args)) for batch in batches]
    reference = evaluate(simulated, pairs, task, "simulate")
    runner = find_target(plan.target).load(folder, graph)
    deployed = evaluate(artefact_runner(runner, graph), pairs, task, "run the artefact")
    return compare(folder, plan.target, predicted_bytes(graph.layers, plan), reference, deployed)


def predicted_bytes(layers: tuple[Layer, ...], plan: Plan) -> dict[str, int]:
    """Layer -> bytes of its weight and scales in the target's file, predicted from the plan alone."""
    bytes_of = find_target(plan.target).weight_bytes
    return {layer.name: bytes_of(layer.shape, layer.axis, plan.scheme(layer.name).weight) for layer in layers}


def compare(
    folder: Path, target: str | Target, predicted: dict[str, int], reference: Evaluation, deployed: Evaluation
) -> Comparison:
    """Compare the outputs, and the bytes in the file with the prediction."""
    target = find_target(target)
    stored = {name: weight.weight_bytes for name, weight in target.stored(folder).items()}
    difference = (deployed.outputs - reference.outputs).double()
    spread = float(reference.outputs.double().std()) if reference.outputs.numel() > 1 else 0.0
    rms = float(difference.square().mean().sqrt())
    relative = rms / spread if spread > 0 else rms
    agree = agreement(reference.outputs, deployed.outputs) if reference.task.has_accuracy else None
    problems = [f"the file holds no weight of {name}" for name in predicted if name not in stored]
    for name, expected in predicted.items():
        held = stored.get(name, expected)
        if abs(held - expected) > BYTES_TOLERANCE * expected:
            problems.append(f"{name} takes {held:,} bytes in the file, {expected:,} were predicted")
    if not relative <= OUTPUT_TOLERANCE:
        problems.append(f"outputs differ by {relative:.1%} of their spread (allowed {OUTPUT_TOLERANCE:.0%})")
    count = len(reference.outputs)
    if agree is not None and round((1 - agree) * count) > max(1, ANSWERS_TOLERANCE * count):
        problems.append(f"top answers agree on {agree:.2%} only (at least {1 - ANSWERS_TOLERANCE:.0%} wanted)")
    return Comparison(
        num_samples=count,
        max_abs_diff=float(difference.abs().max()),
        relative_rms=relative,
        agreement=agree,
        accuracy=deployed.accuracy,
        weight_bytes=sum(stored.values()),
        predicted_bytes=sum(predicted.values()),
        file_bytes=sum((folder / name).stat().st_size for name in target.files),
        problems=tuple(problems),
    )


def agreement(reference: Tensor, deployed: Tensor) -> float:
    """Share of equal top answers of two outputs [N, ..., C]."""
    return float((reference.argmax(-1) == deployed.argmax(-1)).to(torch.float64).mean())
