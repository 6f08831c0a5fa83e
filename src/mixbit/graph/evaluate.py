"""evaluate(): a network's outputs on batches, its accuracy, loss and divergence from another network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import Batch, Inputs, InvalidInput, Task, track
from mixbit.graph.graph import Graph


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set of batches.

    Attributes:
        task: What the outputs mean.
        outputs: [N, ..., C] on the CPU.
        answers: [2, 2] how many top answers are right, and how many labels there are, of the samples with even numbers
            and of those with odd ones; zeros without labels, or where the task has no top answer.
        losses: Mean loss (nats, or in the user's unit) and samples of each batch with labels; empty unless asked for.
    """

    task: Task
    outputs: Tensor
    answers: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2), dtype=np.int64))
    losses: tuple[tuple[float, int], ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Share of right top answers; None without labels, or where the task has no top answer."""
        right, labelled = self.answers.sum(axis=0).tolist()
        return right / labelled if labelled else None

    def divergences(self, reference: "Evaluation") -> Tensor:
        """[N] Kullback-Leibler divergence of each sample from the reference's outputs, in nats."""
        return self.task.divergence(reference.outputs.double(), self.outputs.double())

    def divergence(self, reference: "Evaluation") -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs, in nats."""
        return float(self.divergences(reference).mean())


@torch.no_grad()
def evaluate(
    network: Graph | Callable[[Inputs], Any],
    batches: Iterable[Batch],
    task: Task,
    label: str,
    *,
    with_loss: bool = False,
) -> Evaluation:
    """Run a graph, or a function that returns for the inputs of a batch what the user's model would, over batches.

    Raises:
        InvalidInput: no batch, inputs that do not fit the graph, outputs or labels that do not fit the task, or a loss
            that is not finite; the message says in which batch, counted from 0.
    """
    outputs, losses, seen = [], [], 0
    answers = np.zeros((2, 2), dtype=np.int64)
    for number, (inputs, labels) in enumerate(track(batches, label)):
        try:
            returned = returned_by(network, inputs) if isinstance(network, Graph) else network(inputs)
            output = task.outputs(returned).detach().float().cpu()
            if labels is not None and task.has_accuracy:
                even = slice(seen % 2, None, 2)
                every = np.array(task.right_answers(output, labels))
                half = np.array(task.right_answers(output[even], labels[even]))
                answers += (half, every - half)
            if labels is not None and with_loss:
                losses.append((float(task.loss(returned, labels)), len(output)))
        except InvalidInput as error:
            raise InvalidInput(f"batch {number}: {error}") from error
        outputs.append(output)
        seen += len(output)
    if not outputs:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    return Evaluation(task, torch.cat(outputs), answers, tuple(losses))


def returned_by(graph: Graph, inputs: Inputs) -> Any:
    """What the graph returns for a batch; raises InvalidInput where the batch does not fit it."""
    graph.check(inputs, "batch")
    on_device = inputs.to(graph.device)
    try:
        return graph(*on_device.args, **on_device.kwargs)
    except (IndexError, RuntimeError) as error:
        raise InvalidInput(f"the model fails on inputs {inputs.describe()}: {error}") from error
