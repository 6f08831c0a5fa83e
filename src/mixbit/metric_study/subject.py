"""The network that a study is about, what plans truly cost on its evaluation data, and who answers jobs about it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from mixbit.core import Answer, Batch, Batches, InvalidInput, Job, Plan, Task, digest, split_all
from mixbit.graph import Case, Evaluation, Graph, Reference, evaluate, fitted, try_data
from mixbit.metric_study.folder import Truth
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.shared import Work
from mixbit.roundings.quantize import quantize


@dataclass(frozen=True)
class Subject:
    """The float network that a study is about, with its data; all evaluation batches have labels, or none."""

    graph: Graph
    evaluation: Sequence[Batch]
    task: Task
    calibration: Calibration

    @classmethod
    def of(cls, parts: Any) -> "Subject":
        """From what the `setup` of `study()` returns; calibrates.

        Raises InvalidInput for other parts, data that does not fit the graph, some batches with labels and some
        without, or fewer than two samples to evaluate on.
        """
        if not isinstance(parts, tuple) or len(parts) not in (3, 4) or not isinstance(parts[0], Graph):
            raise InvalidInput(f"setup: a {type(parts).__name__}; give (graph, calibration, evaluation data[, task])")
        graph, task = parts[0], Task.of(parts[3] if len(parts) == 4 else None)
        batches, evaluation = _split("calibration", parts[1], graph), _split("evaluation", parts[2], graph)
        if len({labels is None for _, labels in evaluation}) > 1:
            raise InvalidInput("evaluation data: some batches have labels and some have none; give all or none")
        if sum(evaluation.sizes) < 2:
            raise InvalidInput("evaluation data: a study needs two samples or more, better a thousand")
        task = fitted(task, graph, batches)
        with_loss = None if task.has_accuracy or task.own_loss is not None else False
        for name, data in (("calibration", batches), ("evaluation", evaluation)):
            with _naming(name):
                try_data(graph, task, data, with_loss=with_loss)
        return cls(graph, evaluation, task, calibrate(graph, batches))

    @property
    def case(self) -> Case:
        """What processes that share the work make again."""
        return Case(self.graph, self.calibration.batches, self.task, evaluation=self.evaluation)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Its identity: digests of the graph's code and tensors, of the task's loss, of the data."""
        module = self.graph.module
        return {
            "code": digest(module.code),
            "loss": digest(self.task.unfitted),
            "weights": digest(module.state_dict()),
            "calibration": digest(self.calibration.batches),
            "evaluation": digest(self.evaluation),
        }

    @cached_property
    def in_float(self) -> Reference:
        """What the float graph returns on the evaluation data."""
        return Reference.recorded(self.graph, self.task)

    @cached_property
    def reference(self) -> Evaluation:
        """The float graph on the evaluation data; without losses where labels are not values of a regression.

        Raises InvalidInput, which says in which batch, where it cannot be run or the labels do not fit.
        """
        return self._evaluate_float(with_loss=True)

    def _evaluate_float(self, *, with_loss: bool) -> Evaluation:
        try:
            return evaluate(self.graph, self.evaluation, self.task, "evaluate float", with_loss=with_loss)
        except InvalidInput as error:
            if with_loss and not self.task.has_accuracy and self.task.own_loss is None:
                return self._evaluate_float(with_loss=False)
            raise InvalidInput(f"evaluation {error}") from error

    def truth(self, plan: Plan) -> Truth:
        """Simulate the plan on the evaluation data; the labelled loss is the batches' mean, weighted by samples."""
        simulated, with_loss = quantize(self.graph, plan, self.calibration), bool(self.reference.losses)
        evaluation = evaluate(
            simulated, self.evaluation, self.task, "evaluate", with_loss=with_loss, diverging_from=self.in_float
        )
        kl, losses = evaluation.divergences, evaluation.losses
        right, counted = np.array(evaluation.answers, dtype=float).T
        judged_by, halves = "kl", (float(kl[0::2].mean()), float(kl[1::2].mean()))
        if losses and (self.task.name == "language" or self.task.own_loss is not None):
            judged_by = "loss"
            if len(losses) > 1:  # else the halves of the divergence stand for those of the loss
                halves = (_weighted_mean(losses[0::2]), _weighted_mean(losses[1::2]))
        elif counted.all():
            judged_by, halves = "accuracy", tuple((right / counted).tolist())
        return Truth(
            layers=plan.layers,
            accuracy=float(right.sum() / counted.sum()) if counted.all() else None,
            kl=float(kl.mean()),
            loss=_weighted_mean(losses) if losses else None,
            judged_by=judged_by,
            halves=halves,
        )


def about(answer: Callable[[Subject, Job], Answer]) -> Work[Job, Answer]:
    """Work that answers jobs about the subject that a process makes again."""
    return partial(_about, answer)


def _about(answer: Callable[[Subject, Job], Answer], case: Case, calibration: Calibration) -> Callable[[Job], Answer]:
    return partial(answer, Subject(case.graph, case.evaluation, case.task, calibration))


def _split(name: str, batches: Any, graph: Graph) -> Batches[Batch]:
    with _naming(name):
        return split_all(batches, len(graph.example.args))


@contextmanager
def _naming(data: str) -> Iterator[None]:
    """Say of which data an error is."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{data} {str(error).removeprefix('the ')}") from error


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    """Of (value, weight)."""
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
