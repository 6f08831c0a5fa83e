"""Which samples of the check set the artefact answers most unlike the float network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixbit.core import Batch, Head, Labels, Task
from mixbit.graph import Reference
from mixbit.results.check_set import first_batches
from mixbit.results.result import Change, ChangedSample, Guess

#: How many samples are named.
MOST = 12
#: How many classes are named of each answer.
CLASSES = 3


def changed_samples(
    batches: Sequence[Batch], count: int, task: Task, in_float: Reference, deployed: Reference
) -> list[ChangedSample]:
    """Of the first `count` samples of a check set, those that diverge most from the float network, in that order.

    Both references are of the batches. Samples that diverge by nothing are left out.
    """
    rows: list[ChangedSample] = []
    begin = 0
    for number, (inputs, labels) in first_batches(batches):
        wanted, given = in_float.of(number, inputs), deployed.of(number, inputs)
        heads = task.heads_of(wanted)
        divergences = task.divergences(
            {name: output.double() for name, output in wanted.items()},
            {name: output.double() for name, output in given.items()},
        )
        within = min(len(divergences), count - begin)
        told = torch.where(divergences.isfinite(), divergences, 0)[:within]
        for row in told.argsort(descending=True, stable=True)[:MOST].tolist():
            if told[row] <= 0:
                break
            changes = {
                name: _change(heads[name], wanted[name][row : row + 1], given[name][row : row + 1]) for name in wanted
            }
            rows.append(
                ChangedSample(
                    sample=begin + row,
                    label=_class_of(labels, row),
                    divergence=float(divergences[row]),
                    outputs=changes,
                )
            )
        begin += within
    rows.sort(key=lambda each: (-each.divergence, each.sample))
    return rows[:MOST]


def _class_of(labels: Labels | None, row: int) -> int | None:
    """The label of a sample where it is a number of a class."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return None
    return int(labels[row])


def _change(head: Head, wanted: Tensor, given: Tensor) -> Change:
    """What one output says of one sample, of a batch of it alone."""
    if head.answers is not None:
        equal = head.answers(wanted) == head.answers(given)
        if equal.numel() > 1 or head.name != "classes":
            return Change(differing=float((~equal).double().mean()))
        return Change(float_=_guesses(wanted), deployed=_guesses(given))
    finite = torch.where(given == wanted, 0, given.double() - wanted.double()).square().mean().sqrt()
    size = torch.where(wanted.isfinite(), wanted.double(), 0).square().mean().sqrt()
    distance = float(finite / size) if size > 0 else float(finite)
    return Change(distance=distance if distance < float("inf") else None)


def _guesses(outputs: Tensor) -> list[Guess]:
    """The top classes of the logits [1, C], and their probabilities."""
    top = outputs.double().flatten().softmax(0).topk(min(CLASSES, outputs.numel()))
    return [Guess(*pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
