"""The network that a study is about, and what plans truly cost on its evaluation data."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mixbit.core import Batch, Batches, InvalidInput, Outputs, Plan, Task, split_all
from mixbit.graph import Case, Evaluation, Graph, Reference, evaluate, fitted, try_data
from mixbit.metric_study.folder import Truth
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.shared import digests
from mixbit.roundings.quantize import quantize

#: Bytes of the float network's outputs that go to other processes; where they are more, each runs it again.
MOST_SENT = 2**28


@dataclass(frozen=True)
class InFloat:
    """What the float network does on the evaluation data, found by another process.

    Attributes:
        outputs: Of each batch, as `Reference.of` returns them.
        has_losses: Whether labels lead to losses.
    """

    outputs: Sequence[Outputs]
    has_losses: bool


@dataclass(frozen=True)
class Subject:
    """The float network that a study is about, with its data; all evaluation batches have labels, or none.

    Attributes:
        case: The network, its data, and the task.
        calibration: On its data.
        known: What the float network does; None where that is to be found.
    """

    case: Case
    calibration: Calibration
    known: InFloat | None = None

    @classmethod
    def of(cls, parts: Any, seed: int = 0) -> "Subject":
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
        calibration = dataclasses.replace(calibrate(graph, batches), batches=batches)
        return cls(Case(graph, batches, task, seed, evaluation), calibration)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Its identity in a study's folder: of the graph's code and tensors, of the task's loss, and of the data."""
        found = digests(self.case)
        return {
            "code": found["code"],
            "loss": found["task"],
            "weights": found["weights"],
            "calibration": found["data"],
            "evaluation": found["evaluation data"],
        }

    @cached_property
    def in_float(self) -> Reference:
        """What the float graph returns on the evaluation data, kept by the first pass, which `reference` makes."""
        if self.known is not None:
            outputs = self.known.outputs
            return Reference(self.case.task, lambda number, _: outputs[number])
        return Reference.recorded(self.case.graph, self.case.task)

    @cached_property
    def reference(self) -> Evaluation:
        """The float graph on the evaluation data; without losses where labels are not values of a regression.

        Raises InvalidInput, which says in which batch, where it cannot be run or the labels do not fit.
        """
        return self._evaluate_float(with_loss=True)

    def found(self) -> InFloat | None:
        """What others need not find again; None where that is more than MOST_SENT."""
        outputs, size = [], 0
        for number, (inputs, _) in enumerate(self.case.evaluation):
            outputs.append(self.in_float.of(number, inputs))
            size += sum(output.nbytes for output in outputs[-1].values())
            if size > MOST_SENT:
                return None
        return InFloat(outputs, bool(self.reference.losses))

    def _evaluate_float(self, *, with_loss: bool) -> Evaluation:
        evaluation, task = self.case.evaluation, self.case.task
        try:
            return evaluate(self.in_float, evaluation, task, "evaluate float", with_loss=with_loss)
        except InvalidInput as error:
            if with_loss and not task.has_accuracy and task.own_loss is None:
                return self._evaluate_float(with_loss=False)
            raise InvalidInput(f"evaluation {error}") from error

    def truth(self, plan: Plan) -> Truth:
        """Simulate the plan on the evaluation data; the labelled loss is the batches' mean, weighted by samples."""
        task, known = self.case.task, self.known
        with_loss = bool(self.reference.losses) if known is None else known.has_losses
        evaluation = evaluate(
            quantize(self.case.graph, plan, self.calibration),
            self.case.evaluation,
            task,
            "evaluate",
            with_loss=with_loss,
            diverging_from=self.in_float,
        )
        kl, losses = evaluation.divergences, evaluation.losses
        right, counted = np.array(evaluation.answers, dtype=float).T
        judged_by, halves = "kl", (float(kl[0::2].mean()), float(kl[1::2].mean()))
        if losses and (task.name == "language" or task.own_loss is not None):
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
