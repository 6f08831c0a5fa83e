"""What plans truly cost on the evaluation data, and what metrics predict, with their time and memory."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixbit.core import InvalidInput, MixbitError, Plan, Sensitivity
from mixbit.core.batches import Batch, split_all
from mixbit.core.io.digest import digest
from mixbit.core.io.user_code import users_code
from mixbit.core.task import Task
from mixbit.graph.evaluate import Evaluation, evaluate
from mixbit.graph.graph import Graph
from mixbit.metrics import METRICS, Metric
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.roundings.quantize import quantize

Number = Annotated[float, Field(allow_inf_nan=False)]


class Truth(BaseModel):
    """What one plan costs on the evaluation data; the file of a plan.

    Attributes:
        layers: The plan: layer -> scheme.
        accuracy: Share of right top answers; None without labels, or where the task has no top answer.
        kl: Mean Kullback-Leibler divergence from the float network, in nats.
        loss: Mean labelled loss, in nats (or the unit of the user's own); None without labels, and for a regression
            whose labels are not values of its outputs, as class numbers beside embeddings: it is judged by kl anyway.
        judged_by: Which of the three the plan is judged by: with labels the loss where it is the user's own, or of a
            language model, as is usual there, else accuracy; without labels kl.
        halves: That figure on two halves of the data: samples of even and odd number, for a loss batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: dict[str, str]
    accuracy: Annotated[float, Field(ge=0, le=1)] | None
    kl: Number
    loss: Number | None
    judged_by: Literal["accuracy", "loss", "kl"]
    halves: tuple[Number, Number]

    @model_validator(mode="after")
    def _is_judged(self) -> Self:
        if getattr(self, self.judged_by) is None:
            raise ValueError(f"judged by {self.judged_by}, which is null")
        return self

    @property
    def cost(self) -> float:
        """What the plan is judged by, the higher the worse: -accuracy, loss or kl."""
        value = getattr(self, self.judged_by)
        return -value if self.judged_by == "accuracy" else value


@dataclass(frozen=True)
class Subject:
    """The network that a study is about, ready for plans and metrics.

    Attributes:
        graph: In float.
        evaluation: The evaluation batches; all have labels, or none.
        task: What the outputs mean.
        calibration: Of the graph, with its batches.
    """

    graph: Graph
    evaluation: Sequence[Batch]
    task: Task
    calibration: Calibration

    @classmethod
    def of(cls, parts: Any, calibration: Calibration | None = None) -> "Subject":
        """From what the `setup` of `study()` returns; calibrates, unless that was done.

        Raises:
            InvalidInput: it is something else, data that does not fit the graph, some batches with labels and some
                without, or fewer than two samples to evaluate on.
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
        return cls(graph, evaluation, task, dataclasses.replace(calibration, batches=batches))

    @cached_property
    def reference(self) -> Evaluation:
        """The float graph on the evaluation data; evaluated when first needed, which metrics never do."""
        return self.evaluate_float()

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

    def evaluate_float(self, *, with_loss: bool = True) -> Evaluation:
        """Run the float graph on the evaluation data; losses are left out where labels are not values of a regression.

        Raises:
            InvalidInput: it cannot be run on a batch, or the labels do not fit; the message says which, counted from 0.
        """
        try:
            return evaluate(self.graph, self.evaluation, self.task, "evaluate float", with_loss=with_loss)
        except InvalidInput as error:
            if with_loss and self.task.name == "regression" and self.task.own_loss is None:
                return self.evaluate_float(with_loss=False)
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


def same_subject(setup: Callable[[], Any], calibration: Calibration, expected: Mapping[str, str]) -> Subject:
    """What the setup returns; raises InvalidInput where its digests are not as expected."""
    subject = Subject.of(setup(), calibration)
    for name, value in subject.digests.items():
        if value != expected[name]:
            raise InvalidInput(
                f"setup: returns other {name} each time it is called; seed what it draws, and load weights from a file "
                "instead of training them, which gives others with another number of threads; or pass processes=1 "
                "(--processes 1), which calls it once"
            )
    return subject


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    """Of (value, weight)."""
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


@dataclass(frozen=True)
class Predicted:
    """What a metric predicts: its table, or the reason why there is none.

    Attributes:
        table: Predicted loss increase of every choice of every layer.
        reason: What it cannot do without, or how it failed.
        seconds: Wall time, scales and calibration apart.
        peak_mb: Growth of the process's peak resident memory, in 2^20 bytes; None where the system does not tell.
    """

    table: Sensitivity | None
    reason: str | None
    seconds: float
    peak_mb: float | None


def predict(subject: Subject, metric: str | Metric, *, target: str, choices: Sequence[str], seed: int) -> Predicted:
    """Run the metric once; where it fails, that is the reason why there is no table."""
    before, began = _peak_mb(forget=True), time.perf_counter()
    table, reason = None, None
    try:
        with users_code(f"{METRICS.find(metric)[0]} failed"):
            table = measure(
                subject.graph,
                subject.calibration,
                target=target,
                task=subject.task,
                metric=metric,
                choices=choices,
                seed=seed,
            )
    except MixbitError as error:
        reason = str(error)
    seconds, after = time.perf_counter() - began, _peak_mb()
    return Predicted(table, reason, seconds, None if before is None or after is None else after - before)


def _peak_mb(*, forget: bool = False) -> float | None:
    """Peak resident memory of this process, in 2^20 bytes; after forgetting the past one, what is resident now.

    Only on Linux. `getrusage` does not serve: a process that another one started begins with the peak of that one.
    """
    if forget:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
