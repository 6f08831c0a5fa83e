"""The network that a study is about, and what plans truly cost on its evaluation data."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mixbit.core import Batch, InvalidInput, Plan, Task, digest, split_all
from mixbit.graph.evaluate import Evaluation, evaluate
from mixbit.graph.graph import Graph
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
    def of(
        cls, parts: Any, calibration: Calibration | None = None, digests: Mapping[str, str] | None = None
    ) -> "Subject":
        """From what the `setup` of `study()` returns; calibrates, unless that was done.

        Raises:
            InvalidInput: the parts are something else, data that does not fit the graph, some batches with labels and
                some without, fewer than two samples to evaluate on, or the subject has other digests than these.
        """
        if not isinstance(parts, tuple) or len(parts) not in (3, 4) or not isinstance(parts[0], Graph):
            raise InvalidInput(
                f"setup: a {type(parts).__name__}; give (graph, calibration batches, evaluation batches), and last a "
                "task where it is not classification"
            )
        graph, task = parts[0], parts[3] if len(parts) == 4 else Task.classification()
        batches, evaluation = _split("calibration", parts[1], graph), _split("evaluation", parts[2], graph)
        if len({labels is None for _, labels in evaluation}) > 1:
            raise InvalidInput("evaluation data: some batches have labels and some have none; give all or none")
        if sum(inputs.batch_size for inputs, _ in evaluation) < 2:
            raise InvalidInput("evaluation data: a study needs two samples or more, better a thousand")
        if calibration is None:
            calibration = calibrate(graph, batches)
        subject = cls(graph, evaluation, task, dataclasses.replace(calibration, batches=batches))
        for name, value in digests.items() if digests else ():
            if subject.digests[name] != value:
                raise InvalidInput(
                    f"setup: returns other {name} each time it is called; seed what it draws, and load weights from a "
                    "file instead of training them, which gives others with another number of threads; or pass "
                    "processes=1 (--processes 1), which calls it once"
                )
        return subject

    @cached_property
    def digests(self) -> dict[str, str]:
        """Its identity: digests of the graph's code and tensors, of the user's loss, of the data."""
        module, loss = self.graph.module, self.task.own_loss
        return {
            "code": digest(module.code),
            "loss": "the task's" if loss is None else digest(loss),
            "weights": digest(module.state_dict()),
            "calibration": digest(self.calibration.batches),
            "evaluation": digest(self.evaluation),
        }

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
            if with_loss and self.task.name == "regression" and self.task.own_loss is None:
                return self._evaluate_float(with_loss=False)
            raise InvalidInput(f"evaluation {error}") from error

    def truth(self, plan: Plan) -> Truth:
        """Simulate the plan on the evaluation data; the labelled loss is the batches' mean, weighted by samples."""
        simulated, with_loss = quantize(self.graph, plan, self.calibration), bool(self.reference.losses)
        evaluation = evaluate(simulated, self.evaluation, self.task, "evaluate", with_loss=with_loss)
        kl, losses = evaluation.divergences(self.reference), evaluation.losses
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


def _split(name: str, batches: Any, graph: Graph) -> list[Batch]:
    try:
        return split_all(batches, len(graph.example.args))
    except InvalidInput as error:
        raise InvalidInput(f"{name} {str(error).removeprefix('the ')}") from error


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    """Of (value, weight)."""
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
