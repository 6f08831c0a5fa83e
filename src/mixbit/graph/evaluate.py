"""evaluate(): a network's accuracy and loss on batches, and how far its outputs are from another network's."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    Spill,
    Task,
    are_probabilities,
    labels_at,
    moments,
    named_leaves,
    outputs_of,
    track,
)
from mixbit.graph.graph import Graph, sample_axis, sizes_of

#: The spread of outputs is taken from so many batches.
MOST_BATCHES = 16
#: Outputs of one network that are kept in a file, in all; what is more is computed again. Those of a language model
#: take hundreds of megabytes a sequence.
MOST_BYTES = 2**32
_log = logging.getLogger("mixbit")


@dataclass(frozen=True, eq=False)
class Reference:
    """What a network returns for each batch of some data, for others to be compared with.

    Attributes:
        task: What the outputs mean.
        of: Number and inputs of a batch -> name -> output in the form of its head [N, ..., C], on the CPU.
        run: The same arguments -> what the network itself returns, for losses, and what `of` does; None without losses.
    """

    task: Task
    of: Callable[[int, Inputs], Outputs]
    run: Callable[[int, Inputs], tuple[Any, Outputs]] | None = None

    @classmethod
    def running(cls, network: Graph | Callable[[Inputs], Any], task: Task) -> "Reference":
        """Run each time it is asked for."""

        def run(_: int, inputs: Inputs) -> tuple[Any, Outputs]:
            return _run(network, inputs, task)

        return cls(task, lambda *batch: run(*batch)[1], run)

    @classmethod
    def recorded(cls, network: Graph | Callable[[Inputs], Any], task: Task) -> "Reference":
        """Run when first asked for, and read from a file afterwards, up to MOST_BYTES of it."""
        spill, numbers, is_full = Spill(), dict[int, int](), False

        def of(number: int, inputs: Inputs) -> Outputs:
            return spill[numbers[number]] if number in numbers else run(number, inputs)[1]

        def run(number: int, inputs: Inputs) -> tuple[Any, Outputs]:
            nonlocal is_full
            returned, outputs = _run(network, inputs, task)
            num_bytes = sum(output.nbytes for output in outputs.values())
            fits = not is_full and spill.size + num_bytes <= MOST_BYTES and spill.has_room(num_bytes)
            if fits and number not in numbers:
                place = len(spill)
                try:
                    spill.put(outputs)
                    numbers[number] = place
                except InvalidInput:  # no room after all
                    is_full = True
            return returned, outputs

        return cls(task, of, run)


class Difference:
    """Sums over samples and positions of how far an output is from the reference's.

    Attributes:
        head: What the output means.
        moments: [3, C] of the reference's numbers in each channel, see `moments`.
        squares: [C] of the differences.
        largest: [C] difference.
        equal, answers: How many top answers are equal, of how many; zeros where the output has none.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.moments, self.squares, self.largest = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        self.equal, self.answers = 0, 0

    def update(self, wanted: Tensor, given: Tensor) -> None:
        """Take in a batch, in the form of the head."""
        axis = self.head.channels(wanted)
        apart = torch.where(given == wanted, 0, given.double() - wanted.double()).movedim(axis, -1).flatten(0, -2)
        self.moments = self.moments + moments(wanted, axis)
        self.squares = self.squares + apart.square().sum(0)
        self.largest = torch.maximum(self.largest, apart.abs().amax(0))
        if self.head.answers is not None:
            equal = self.head.answers(wanted) == self.head.answers(given)
            self.equal, self.answers = self.equal + int(equal.sum()), self.answers + equal.numel()

    @property
    def agreement(self) -> float:
        """Share of equal top answers; NaN where the output has none."""
        return self.equal / self.answers if self.answers else math.nan


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set of batches.

    Attributes:
        task: What the outputs mean.
        heads: Name of each output -> what it means.
        num_samples: Samples in all batches.
        answers: [2, 2] how many top answers are right, and how many labels there are, of the samples with even numbers
            and of those with odd ones; zeros without labels, or where the task has no top answer.
        losses: Mean loss (nats, or in the user's unit) and samples of each batch with labels; empty unless asked for.
        divergences: [N] Kullback-Leibler divergence of each sample from the reference's outputs, in nats; empty
            without a reference for it.
        divergence_of: Name of each output that counts -> its mean part of the divergence, with its weight.
        differences: Name of each output -> its difference from the reference's; empty without a reference for it.
    """

    task: Task
    heads: Mapping[str, Head]
    num_samples: int
    answers: NDArray[np.int64]
    losses: tuple[tuple[float, int], ...]
    divergences: Tensor
    divergence_of: Mapping[str, float]
    differences: Mapping[str, Difference]

    @property
    def accuracy(self) -> float | None:
        """Share of right top answers; None without labels, or where the task has no top answer."""
        right, labelled = self.answers.sum(axis=0).tolist()
        return right / labelled if labelled else None

    @property
    def divergence(self) -> float:
        """Mean Kullback-Leibler divergence from the reference's outputs, in nats."""
        return float(self.divergences.mean())


def _double(outputs: Outputs) -> dict[str, Tensor]:
    return {name: output.double() for name, output in outputs.items()}


@torch.no_grad()
def evaluate(
    network: Graph | Callable[[Inputs], Any] | Reference,
    batches: Iterable[Batch],
    task: Task,
    label: str,
    *,
    with_loss: bool = False,
    diverging_from: Reference | None = None,
    differing_from: Reference | None = None,
) -> Evaluation:
    """Run a network over batches, and sum up what it does; no outputs are kept.

    Args:
        network: A graph; or a function that returns for the inputs of a batch what the user's model would; or what a
            network that others are compared with returns on these batches.
        batches: Inputs, and labels where there are any.
        task: What the outputs mean.
        label: Of the progress bar.
        with_loss: Whether to take the task's loss on labels.
        diverging_from: What another network returns on the same batches, to take divergences from.
        differing_from: The same, to sum up differences of each output.

    Raises:
        InvalidInput: no batch, inputs that do not fit the graph, outputs or labels that do not fit the task, or a loss
            that is not finite; the message says in which batch, counted from 0.
    """
    losses, divergences, sums, seen = [], [], dict[str, float](), 0
    heads, differences = dict[str, Head](), dict[str, Difference]()
    answers = np.zeros((2, 2), dtype=np.int64)
    own = network if isinstance(network, Reference) else Reference.running(network, task)
    for number, (inputs, labels) in enumerate(track(batches, label)):
        try:
            if with_loss and labels is not None and own.run is not None:
                returned, output = own.run(number, inputs)
                losses.append((float(task.loss(returned, labels)), inputs.batch_size))
            else:
                output = own.of(number, inputs)
            if labels is not None and task.has_accuracy:
                answers += _right_answers(task, output, labels, seen % 2)
            others = {each for each in (diverging_from, differing_from) if each is not None}
            wanted = {each: output if each is network else each.of(number, inputs) for each in others}
            if diverging_from is not None:
                parts = task.divergence_of(_double(wanted[diverging_from]), _double(output))
                divergences.append(torch.stack([*parts.values()]).sum(0))
                sums = {name: sums.get(name, 0.0) + float(part.sum()) for name, part in parts.items()}
        except InvalidInput as error:
            raise InvalidInput(f"batch {number}: {error}") from error
        heads = heads or task.heads_of(output)
        if differing_from is not None:
            differences = differences or {name: Difference(head) for name, head in heads.items()}
            for name, difference in differences.items():
                difference.update(wanted[differing_from][name], output[name])
        seen += inputs.batch_size
    if not seen:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    kl = torch.cat(divergences) if divergences else torch.empty(0, dtype=torch.float64)
    divergence_of = {name: total / seen for name, total in sums.items()}
    return Evaluation(task, heads, seen, answers, tuple(losses), kl, divergence_of, differences)


def _run(network: Graph | Callable[[Inputs], Any], inputs: Inputs, task: Task) -> tuple[Any, Outputs]:
    """What it returns, and its outputs in the form of their heads, on the CPU."""
    returned = returned_by(network, inputs) if isinstance(network, Graph) else network(inputs)
    return returned, {name: _on_cpu(value) for name, value in task.read(returned).items()}


def _right_answers(task: Task, output: Outputs, labels: Any, odd: int) -> NDArray[np.int64]:
    """[2, 2] as `Evaluation.answers`, of a batch whose first sample has an even number, or an odd one."""
    even = slice(odd, None, 2)
    every = np.array(task.right_answers(output, labels))
    some = {name: value[even] for name, value in output.items()}
    half = np.array(task.right_answers(some, labels_at(labels, even)))
    return np.stack([half, every - half])


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
