"""Running a network over labelled batches: outputs, accuracy, divergence from the float network."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixbit.core import InvalidInput, track
from mixbit.core.batches import Batch, Inputs
from mixbit.core.task import Task
from mixbit.graph.graph import Graph


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set of batches.

    Attributes:
        outputs: [N, ..., C] on the CPU.
        accuracy: Share of right top answers, None without labels or where the task has no top answer.
    """

    outputs: Tensor
    accuracy: float | None

    def divergence(self, reference: "Evaluation", task: Task) -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs, in nats."""
        return float(task.divergence(reference.outputs.double(), self.outputs.double()).mean())


def evaluate(
    run: Callable[[Inputs], Tensor], batches: Sequence[Batch] | Iterable[Batch], task: Task, label: str
) -> Evaluation:
    """Run over the batches; `run` returns the task's output [n, ..., C] of one batch.

    Raises:
        InvalidInput: no batch, or labels that are not class numbers.
    """
    outputs, right, labelled = [], 0, 0
    with torch.no_grad():
        for inputs, labels in track(batches, label):
            output = run(inputs).detach().float().cpu()
            outputs.append(output)
            if labels is not None and task.has_accuracy:
                found = task.right_answers(output, labels)
                right, labelled = right + found[0], labelled + found[1]
    if not outputs:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    return Evaluation(torch.cat(outputs), right / labelled if labelled else None)


def graph_runner(graph: Graph, task: Task) -> Callable[[Inputs], Tensor]:
    """The graph as `evaluate` wants it; each batch is checked against the example."""
    return lambda inputs: task.outputs(returned_by(graph, inputs))


def returned_by(graph: Graph, inputs: Inputs) -> Any:
    """What the graph returns for a batch; raises InvalidInput where the batch does not fit it."""
    graph.check(inputs, "batch")
    on_device = inputs.to(graph.device)
    try:
        return graph(*on_device.args, **on_device.kwargs)
    except (IndexError, RuntimeError) as error:
        raise InvalidInput(f"the model fails on inputs {inputs.describe()}: {error}") from error
