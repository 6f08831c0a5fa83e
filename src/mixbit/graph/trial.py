"""Data, task and loss, tried on a batch or two before anything that takes long."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mixbit.core import Batch, InvalidInput, Task
from mixbit.graph.evaluate import returned_by
from mixbit.graph.graph import Graph

#: A batch of every shape is run, up to so many shapes.
MOST_SHAPES = 8


def try_data(
    graph: Graph,
    task: Task,
    batches: Iterable[Batch],
    what: str = "",
    *,
    with_loss: bool | None = False,
    answers: bool = True,
) -> None:
    """Raise InvalidInput, which says in which batch, for inputs and labels that the graph or the task cannot take.

    The first batch of each shape runs; the labels of the others are compared with its outputs, which costs little.

    Args:
        graph: In float.
        task: Fitted to the graph.
        batches: Inputs and labels, as `split_batch` makes them and `Task.aligned` moves them.
        what: Which data, for errors, as ` to train on`.
        with_loss: Whether every batch needs labels, since their loss is taken, and of the first of each shape it is
            taken here; of those that have labels, where None.
        answers: Whether labels, where there are any, are to tell right answers from wrong ones.
    """
    seen: dict[Any, dict[str, Tensor]] = {}
    answers = answers and task.has_accuracy
    for number, (inputs, labels) in enumerate(batches):
        graph.check(inputs, f"batch {number}{what}")
        looks_at_labels = with_loss or (labels is not None and (with_loss is None or answers))
        if not looks_at_labels:
            continue
        shape = tuple(tuple(leaf.shape[1:]) for leaf in inputs.tensors)
        try:
            if labels is None:
                task.loss({}, labels)  # raises
            if shape not in seen and len(seen) < MOST_SHAPES:
                returned = returned_by(graph, inputs)
                if with_loss is not False:
                    task.loss(returned, labels)
                seen[shape] = {name: tensor.detach()[:1].clone() for name, tensor in task.read(returned).items()}
            if shape in seen and answers:
                count = inputs.batch_size
                same = {name: first.expand(count, *first.shape[1:]) for name, first in seen[shape].items()}
                task.check_labels(same, labels)
        except InvalidInput as error:
            raise InvalidInput(f"batch {number}{what}: {error}") from error
