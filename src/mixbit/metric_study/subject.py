"""The network that a study is about, what plans truly cost on its evaluation data, and who answers jobs about it."""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from mixbit.core import Answer, Batch, Batches, Engine, InvalidInput, Job, Plan, Task, digest, run_jobs, split_all
from mixbit.graph import Evaluation, Graph, Reference, evaluate, fitted, try_data
from mixbit.metric_study.folder import Truth
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.roundings.quantize import quantize


@dataclass(frozen=True)
class Subject:
    """The float network that a study is about, with its data; all evaluation batches have labels, or none."""

    graph: Graph
    evaluation: Sequence[Batch]
    task: Task
    calibration: Calibration

    @classmethod
    def of(cls, parts: Any, calibration: Calibration | None = None, digests: dict[str, str] | None = None) -> "Subject":
        """From what the `setup` of `study()` returns; calibrates, unless that was done.

        Raises InvalidInput for other parts, data that does not fit the graph, some batches with labels and some
        without, fewer than two samples to evaluate on, or a subject with other digests than these.
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
        if calibration is None:
            with_loss = None if task.has_accuracy or task.own_loss is not None else False
            for name, data in (("calibration", batches), ("evaluation", evaluation)):
                with _naming(name):
                    try_data(graph, task, data, with_loss=with_loss)
            calibration = calibrate(graph, batches)
        calibration = dataclasses.replace(calibration, batches=batches)
        subject = cls(graph, evaluation, task, calibration)
        for name, value in digests.items() if digests else ():
            if subject.digests[name] != value:
                raise InvalidInput(
                    f"setup: returns other {name} each time it is called; seed what it draws, load weights from a file "
                    "instead of training them, or take --processes 1 (engine=Engine()), which calls it once"
                )
        return subject

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
        """What the float graph returns on the evaluation data, kept by the first pass, which `reference` makes."""
        return Reference.recorded(self.graph, self.task)

    @cached_property
    def reference(self) -> Evaluation:
        """The float graph on the evaluation data; without losses where labels are not values of a regression.

        Raises InvalidInput, which says in which batch, where it cannot be run or the labels do not fit.
        """
        return self._evaluate_float(with_loss=True)

    def _evaluate_float(self, *, with_loss: bool) -> Evaluation:
        try:
            return evaluate(self.in_float, self.evaluation, self.task, "evaluate float", with_loss=with_loss)
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


@dataclass(frozen=True)
class Workers:
    """Answers jobs about a subject: in this process, or in others, which set it up again."""

    setup: Any
    subject: Subject
    engine: Engine

    def answers(
        self, answer: Callable[[Subject, Job], Answer], jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer, as `run_jobs` does."""
        if self.engine.is_this_process:
            start = partial(partial, answer, self.subject)
        else:
            calibration = dataclasses.replace(self.subject.calibration, batches=())  # which each process makes itself
            start = partial(_start, self.setup, answer, calibration, self.subject.digests)
        yield from run_jobs(self.engine, start, jobs)


def _start(setup: Callable[[], Any], answer: Callable[[Subject, Job], Answer], *known: Any) -> Callable[[Job], Answer]:
    """In a worker process: make the subject again, for which some is known, and return what answers its jobs."""
    return partial(answer, Subject.of(setup(), *known))


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
