"""What plans truly cost on labelled data, and what metrics predict, with their time and memory."""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import InvalidInput, MixbitError, Plan, Sensitivity, track
from mixbit.core.batches import Batch, split_batch
from mixbit.core.io.user_code import users_code
from mixbit.core.task import Task
from mixbit.graph.evaluate import returned_by
from mixbit.graph.graph import Graph
from mixbit.metrics import METRICS, Estimate, Metric, MetricInput
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.roundings.quantize import quantize


@dataclass(frozen=True)
class Subject:
    """The network that a study is about, and its data.

    Attributes:
        graph: A captured graph in float.
        calibration: Batches to calibrate and to run the metrics on, with labels where a metric needs them; any
            iterable, kept as a list.
        evaluation: Batches to take the truth on, with labels where there are any; likewise.
        task: What the outputs mean.

    Raises:
        InvalidInput: data that is no iterable of batches.
    """

    graph: Graph
    calibration: Iterable[Any]
    evaluation: Iterable[Any]
    task: Task = field(default_factory=Task.classification)

    def __post_init__(self) -> None:
        for name in ("calibration", "evaluation"):
            batches = getattr(self, name)
            if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
                found = type(batches).__name__
                raise InvalidInput(f"{name} data: a {found}, not an iterable of batches; put a single one in a list")
            object.__setattr__(self, name, list(batches))

    def pairs(self, name: str) -> list[Batch]:
        """Inputs and labels of `calibration` or `evaluation`; an error says which batch, counted from 0."""
        found = []
        for number, batch in enumerate(getattr(self, name)):
            try:
                found.append(split_batch(batch, len(self.graph.example.args)))
            except InvalidInput as error:
                raise InvalidInput(f"{name} batch {number}: {error}") from error
        return found


@dataclass(frozen=True)
class Truth:
    """What one plan costs on the evaluation data.

    Attributes:
        accuracy: Share of right top answers; None without labels, or where the task has no top answer.
        kl: Mean Kullback-Leibler divergence from the float network, in nats.
        loss: Mean labelled loss, in nats (or the unit of the user's own); None without labels, and for a regression
            whose labels are not values of its outputs, as class numbers beside embeddings: it is judged by kl anyway.
        judged_by: Which of the three the plan is judged by: with labels the loss where it is the user's own, or of a
            language model, as is usual there, else accuracy; without labels kl.
        halves: That figure on two halves of the data: samples of even and odd number, for a loss batches.
    """

    accuracy: float | None
    kl: float
    loss: float | None
    judged_by: str
    halves: tuple[float, float]

    @property
    def cost(self) -> float:
        """What the plan is judged by, the higher the worse: -accuracy, loss or kl."""
        value = getattr(self, self.judged_by)
        return -value if self.judged_by == "accuracy" else value


@dataclass(frozen=True)
class Prepared:
    """A subject, ready for plans and metrics.

    Attributes:
        graph: The float graph.
        calibration: Of the graph, on the calibration batches.
        batches: The calibration batches.
        evaluation: The evaluation batches; all have labels, or none.
        task: What the outputs mean.
    """

    graph: Graph
    calibration: Calibration
    batches: Sequence[Batch]
    evaluation: Sequence[Batch]
    task: Task

    @classmethod
    def of(cls, subject: Subject, calibration: Calibration | None = None) -> "Prepared":
        """Calibrate, unless that was done.

        Raises:
            InvalidInput: data that does not fit the graph, some batches with labels and some without, or fewer than
                two samples to evaluate on.
        """
        graph, task = subject.graph, subject.task
        batches, evaluation = subject.pairs("calibration"), subject.pairs("evaluation")
        if len({labels is None for _, labels in evaluation}) > 1:
            raise InvalidInput("evaluation data: some batches have labels and some have none; give all or none")
        if sum(inputs.batch_size for inputs, _ in evaluation) < 2:
            raise InvalidInput("evaluation data: a study needs two samples or more, better a thousand")
        if calibration is None:
            calibration = calibrate(graph, batches)
        return cls(graph, dataclasses.replace(calibration, batches=batches), batches, evaluation, task)

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Of the float graph, for each evaluation batch; metrics never ask."""
        with torch.no_grad():
            returned = (returned_by(self.graph, inputs) for inputs, _ in track(self.evaluation, "evaluate float"))
            return [self.task.outputs(one).cpu() for one in returned]

    @torch.no_grad()
    def check_evaluation(self) -> None:
        """Run the float graph on the evaluation data.

        Raises:
            InvalidInput: it cannot be run on a batch, or the labels do not fit; the message says which, counted from 0.
        """
        for number, (inputs, labels) in enumerate(track(self.evaluation, "check evaluation data")):
            try:
                returned = returned_by(self.graph, inputs)
                outputs = self.task.outputs(returned)
                if labels is not None:
                    self.task.check_labels(labels, outputs)
                    self._loss(returned, labels)
            except MixbitError as error:
                raise InvalidInput(f"evaluation batch {number}: {error}") from error

    def _loss(self, returned: Any, labels: Tensor) -> float:
        """The labelled loss of a batch; NaN for labels that are not values of a regression's outputs."""
        try:
            return float(self.task.loss(returned, labels))
        except InvalidInput:
            if self.task.has_accuracy or self.task.own_loss is not None:
                raise
            return math.nan

    @torch.no_grad()
    def truth(self, plan: Plan) -> Truth:
        """Simulate the plan on the evaluation data; the labelled loss is the batches' mean, weighted by samples."""
        simulated = quantize(self.graph, plan, self.calibration)
        divergence, losses = [], []
        answers = np.zeros((2, 2))  # half x (right, labelled)
        seen = 0
        for (inputs, labels), reference in zip(self.evaluation, self.outputs, strict=True):
            returned = returned_by(simulated, inputs)
            output = self.task.outputs(returned).double().cpu()
            divergence.append(self.task.divergence(reference.double(), output))
            if labels is not None:
                losses.append((self._loss(returned, labels), len(output)))
                if self.task.has_accuracy:
                    for half in range(2):
                        rows = slice((half + seen) % 2, None, 2)
                        answers[half] += self.task.right_answers(output[rows], labels[rows])
            seen += len(output)
        kl = torch.cat(divergence)
        loss = _weighted_mean(losses)
        judged_by, halves = "kl", (float(kl[0::2].mean()), float(kl[1::2].mean()))
        if (self.task.name == "language" or self.task.own_loss is not None) and math.isfinite(loss):
            judged_by = "loss"
            if len(losses) > 1:  # else the halves of the divergence stand for those of the loss
                halves = (_weighted_mean(losses[0::2]), _weighted_mean(losses[1::2]))
        elif (answers[:, 1] > 0).all():
            judged_by, halves = "accuracy", tuple((answers[:, 0] / answers[:, 1]).tolist())
        return Truth(
            accuracy=float(answers[:, 0].sum() / answers[:, 1].sum()) if (answers[:, 1] > 0).all() else None,
            kl=float(kl.mean()),
            loss=loss if math.isfinite(loss) else None,
            judged_by=judged_by,
            halves=halves,
        )


def _weighted_mean(values: Sequence[tuple[float, int]]) -> float:
    """Of (value, weight); NaN of none."""
    weights = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / weights if weights else math.nan


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


def predict(
    prepared: Prepared, metric: str | Metric, *, target: str, choices: Sequence[str] | None, seed: int
) -> Predicted:
    """Run the metric once; where it fails, that is the reason why there is no table."""
    name, _ = METRICS.find(metric)
    before, began = _peak_mb(forget=True), time.perf_counter()
    try:
        with users_code(f"{name} failed"):
            table = measure(
                prepared.graph,
                prepared.calibration,
                target=target,
                task=prepared.task,
                metric=metric if isinstance(metric, str) else _checked(metric),
                choices=choices,
                seed=seed,
            )
    except MixbitError as error:
        return Predicted(None, str(error), time.perf_counter() - began, None)
    seconds, after = time.perf_counter() - began, _peak_mb()
    return Predicted(table, None, seconds, None if before is None or after is None else after - before)


def _checked(metric: Metric) -> Metric:
    """The user's own metric, which may answer anything."""

    def answer(inputs: MetricInput) -> Estimate:
        found = metric(inputs)
        if not isinstance(found, Estimate):
            raise InvalidInput(f"returns a {type(found).__name__}; a metric returns a mixbit.metrics.Estimate")
        return found

    answer.__name__ = METRICS.find(metric)[0]
    return answer


def _peak_mb(*, forget: bool = False) -> float | None:
    """Peak resident memory of this process, in 2^20 bytes; after forgetting the past one, what is resident now.

    Linux alone tells. `getrusage` would not: a process that another one started begins with the peak of that one.
    """
    if forget:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
