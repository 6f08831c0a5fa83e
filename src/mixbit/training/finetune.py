"""finetune(): training of a simulated graph with its roundings, or of a float graph that was pruned."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixbit.core import (
    InvalidInput,
    Store,
    Task,
    checked,
    digest,
    hold_out,
    loaded,
    outputs_of,
    reserved,
    split_all,
    track,
)
from mixbit.graph import Graph, check_arguments, check_graph, fitted, returned_by, try_data
from mixbit.quantization.quantizer import quantizers_of
from mixbit.training.loop import Loop, Objective, Trained, Training, generator_of

FILE_NAME = "training.safetensors"


@checked
def finetune(
    graph: Graph,
    batches: Iterable[Any],
    *,
    task: Task | str | None = None,
    epochs: int = 3,
    teacher: Graph | None = None,
    eval_batches: Iterable[Any] | None = None,
    settings: Training | None = None,
    folder: str | Path | None = None,
) -> Graph:
    """A graph trained with its roundings in place: weights, biases and scales; the best epoch by held-out loss.

    Weights are rounded in forward and pass gradients straight through; scales of weights and activations are learned
    (`mixbit.training.learnable`); zero points stay. The loss is the task's, or the divergence from the teacher, or a
    mixture, see `mixbit.training.loop.Objective`. Where no epoch is better than the graph was, it comes back as it was.
    The graph runs as captured: in eval mode, batch norms folded, without dropout. A float graph trains alike.

    Args:
        graph: What `quantize` returned, or a float graph; it is left as it is.
        batches: Any iterable that can be gone through again, shuffled and augmented by its owner; of a list, the
            batches are shuffled. Labels last or under `labels`; not needed with a teacher.
        task: What the outputs mean, as a Task or its name; classification where None.
        epochs: How many times to go through the batches.
        teacher: The float graph to distil from.
        eval_batches: Held-out data; of a list of batches every fourth where None.
        settings: How to train.
        folder: Where `training.safetensors` is written after each epoch: the same call resumes there, to the same bits.
            A list of batches is checked to be the same; a loader, by its length alone.

    Raises:
        InvalidInput: data, settings or the checkpoint do not fit, or the loss is not finite; the message says where.
    """
    task = Task.of(task)
    check_arguments(graph, task, 0 if settings is None else settings.seed)
    if teacher is not None:
        check_graph(teacher, "teacher")
        _check_alike(teacher, graph)
    settings, place = settings or Training(), Store(folder).folder
    objective = Objective(task, teacher, settings.distil, settings.temperature)
    path = None if place is None else place / FILE_NAME
    with reserved(place):
        return train(
            graph, batches, objective, epochs=epochs, eval_batches=eval_batches, settings=settings, path=path
        ).graph


def train(
    graph: Graph,
    batches: Iterable[Any],
    objective: Objective,
    *,
    epochs: int,
    settings: Training,
    eval_batches: Iterable[Any] | None = None,
    path: Path | None = None,
    force: bool = False,
) -> Trained:
    """Like `finetune`, with the losses; `force` throws away a checkpoint of another training."""
    settings.check()
    if not isinstance(epochs, int) or epochs < 1:
        raise InvalidInput(f"epochs={epochs!r}: give a whole number from 1")
    num_inputs = len(graph.example.args)
    check_first(graph, batches)
    if eval_batches is not None:
        held_out = split_all(eval_batches, num_inputs)
    elif isinstance(batches, Sequence):
        held_out, batches = hold_out(split_all(batches, num_inputs))
    else:
        raise InvalidInput(
            f"batches: of a {type(batches).__name__} none can be held out, since they differ from epoch to epoch; "
            "give eval_batches, or a list"
        )
    try:
        num_batches = len(batches)  # type: ignore[arg-type]
    except TypeError:
        num_batches = sum(1 for _ in track(batches, "count batches"))
    objective = replace(objective, task=fitted(objective.task, objective.teacher or graph, held_out))
    loop = Loop(graph, objective, settings, epochs, num_batches)
    if path is None:
        return loop.run(batches, held_out, None, lambda *_: None)
    store = Store(path.parent)
    data = digest(split_all(batches, num_inputs)) if isinstance(batches, Sequence) else num_batches
    question = {"data": data, "held_out": digest(held_out), **_about(graph, objective), **settings_of(epochs, settings)}
    if not force:
        store.check(path.stem, question)
    return loop.run(batches, held_out, store.get(path.stem, question), partial(store.put, path.stem, question))


def _check_alike(teacher: Graph, graph: Graph) -> None:
    """Raise InvalidInput unless both graphs take the same inputs, and return outputs of the same names and shapes."""
    teacher.check(graph.example, "teacher")
    with torch.no_grad():
        ours, wanted = (
            {name: [*output.shape] for name, output in outputs_of(returned_by(each, graph.example)).items()}
            for each in (graph, teacher)
        )
    if ours != wanted:
        raise InvalidInput(f"teacher: returns {wanted}, the graph {ours}; give the float graph of the same network")


def _about(graph: Graph, objective: Objective) -> dict[str, Any]:
    """The fields of a checkpoint's question that say what is trained, and to do what."""
    task, teacher = objective.task, objective.teacher
    return {
        "graph": digest(graph.module),
        "masks": digest([quantizer.mask for quantizer in quantizers_of(graph)]),
        "plan": None if graph.plan is None else graph.plan.layers,
        "task": digest(task.unfitted),
        "teacher": None if teacher is None else digest(teacher.module),
    }


def check_first(graph: Graph, batches: Iterable[Any], task: Task | None = None) -> None:
    """Raise InvalidInput unless the batches can be gone through again, and the first of them fits graph and task.

    What a loader draws for it is given back: the training begins as if no batch had been drawn.
    """
    if isinstance(batches, Iterator):
        raise InvalidInput("batches: used up after one pass; give a list or a loader, which start again every epoch")
    generator = generator_of(batches)
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng([]):
        first = next(loaded(batches), None)
    if generator is not None and state is not None:
        generator.set_state(state)
    if first is None:
        raise InvalidInput("the data holds no batch to train on: an empty loader or list")
    pairs = split_all([first], len(graph.example.args))
    if task is None:
        graph.check(pairs[0][0], "batch 0 to train on")
    else:
        try_data(graph, task, task.aligned(pairs), " to train on", with_loss=None)


def settings_of(epochs: int, settings: Training) -> dict[str, Any]:
    """The fields of a checkpoint's question that are known before there is anything to train."""
    return {"epochs": epochs, "settings": asdict(settings)}
