"""evaluate(): a network's outputs on batches, its accuracy, loss and divergence from another network."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixbit.core import (
    Batch,
    Head,
    Inputs,
    InvalidInput,
    Outputs,
    Task,
    are_probabilities,
    labels_at,
    named_leaves,
    outputs_of,
    track,
)
from mixbit.graph.graph import Graph, sample_axis, sizes_of

#: The spread of outputs is taken from so many batches.
MOST_BATCHES = 16
_log = logging.getLogger("mixbit")


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set of batches.

    Attributes:
        task: What the outputs mean.
        outputs: Of each batch, name -> output in the form of its head [N, ..., C], on the CPU.
        answers: [2, 2] how many top answers are right, and how many labels there are, of the samples with even numbers
            and of those with odd ones; zeros without labels, or where the task has no top answer.
        losses: Mean loss (nats, or in the user's unit) and samples of each batch with labels; empty unless asked for.
    """

    task: Task
    outputs: tuple[Outputs, ...]
    answers: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2), dtype=np.int64))
    losses: tuple[tuple[float, int], ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Share of right top answers; None without labels, or where the task has no top answer."""
        right, labelled = self.answers.sum(axis=0).tolist()
        return right / labelled if labelled else None

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(len(next(iter(batch.values()))) for batch in self.outputs)

    @property
    def heads(self) -> dict[str, Head]:
        """Name of each output -> what it means."""
        return self.task.heads_of(self.outputs[0])

    def divergences(self, reference: "Evaluation") -> Tensor:
        """[N] Kullback-Leibler divergence of each sample from the reference's outputs, in nats."""
        pairs = zip(reference.outputs, self.outputs, strict=True)
        return torch.cat([reference.task.divergences(_double(wanted), _double(given)) for wanted, given in pairs])

    def divergence(self, reference: "Evaluation") -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs, in nats."""
        return float(self.divergences(reference).mean())


def _double(outputs: Outputs) -> dict[str, Tensor]:
    return {name: output.double() for name, output in outputs.items()}


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
            output = {name: _on_cpu(value) for name, value in task.read(returned).items()}
            if labels is not None and task.has_accuracy:
                even = slice(seen % 2, None, 2)
                every = np.array(task.right_answers(output, labels))
                some = {name: value[even] for name, value in output.items()}
                half = np.array(task.right_answers(some, labels_at(labels, even)))
                answers += (half, every - half)
            if labels is not None and with_loss:
                losses.append((float(task.loss(returned, labels)), inputs.batch_size))
        except InvalidInput as error:
            raise InvalidInput(f"batch {number}: {error}") from error
        outputs.append(output)
        seen += inputs.batch_size
    if not outputs:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    return Evaluation(task, tuple(outputs), answers, tuple(losses))


def _on_cpu(output: Tensor) -> Tensor:
    output = output.detach().cpu()
    return output.float() if output.is_floating_point() else output


def fitted(task: Task, graph: Graph, batches: Sequence[Batch]) -> Task:
    """The task for this network: what each of its outputs means, with the spread of its numbers over the batches.

    A task that is fitted comes back as it is. The spread is that of MOST_BATCHES batches, taken from all over the data.
    A regression of what looks like probabilities is warned of.

    Raises:
        InvalidInput: as `Task.fitted` does, or where a batch does not fit the graph.
    """
    if task.heads:
        return task
    some = batches[:: max(1, math.ceil(len(batches) / MOST_BATCHES))]

    def outputs() -> Iterator[Outputs]:
        for inputs, _ in track(some, "look at outputs"):
            yield outputs_of(returned_by(graph, inputs))

    with torch.no_grad():
        example = returned_by(graph, graph.example)
        done = task.fitted(outputs_of(example), _batch_axes(graph), outputs)
    if task.name == "regression" and are_probabilities(done.outputs(example)):
        _log.warning(
            "task regression: every row of the output sums to 1, as probabilities do, which classification, language "
            "and ctc tell from numbers"
        )
    return done


def _batch_axes(graph: Graph) -> dict[str, int | None]:
    """Name of each output -> its dimension of samples; None where it has none, as a constant."""
    (output,) = graph.module.graph.find_nodes(op="output")
    axes: dict[str, int | None] = {}
    for name, node in named_leaves(graph.module.graph.process_outputs(output.args[0])).items():
        if isinstance(node, fx.Node):
            axis = sample_axis(node)
            depends = any(isinstance(size, torch.SymInt) for size in sizes_of(node))
            axes[name] = axis.axis if axis is not None else 0 if depends else None
    return axes


def returned_by(graph: Graph, inputs: Inputs) -> Any:
    """What the graph returns for a batch; raises InvalidInput where the batch does not fit it."""
    graph.check(inputs, "batch")
    on_device = inputs.to(graph.device)
    try:
        return graph(*on_device.args, **on_device.kwargs)
    except (IndexError, RuntimeError) as error:
        raise InvalidInput(f"the model fails on inputs {inputs.describe()}: {error}") from error
