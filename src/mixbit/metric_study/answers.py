"""The jobs of a study, each a metric or a plan, and what came of them; finished ones come from its folder."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from mixbit.core import (
    Budget,
    InfeasibleBudget,
    MixbitError,
    Plan,
    Sensitivity,
    digest,
    forget_peak,
    release_memory,
    resident_bytes,
    track,
    users_code,
)
from mixbit.graph import Case
from mixbit.metric_study.folder import Prediction, StudyFolder, Truth
from mixbit.metric_study.subject import Subject
from mixbit.metrics import METRICS, Metric
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.shared import Shared
from mixbit.searches.search import search


@dataclass(frozen=True)
class MetricJob:
    """A metric to run, with its name and the digest of its code."""

    name: str
    metric: str | Metric
    code: str


@dataclass
class Found:
    """What is known so far.

    Attributes:
        frame: The table that metrics fill.
        budgets: Text -> budget at which each metric chooses a plan.
        plans: Name -> plan: those drawn, and those that metrics choose once all have answered.
        predictions: Metric -> what it predicts, or why it fails.
        chosen: Metric -> budget -> name of the plan that the metric's table leads to, None for none.
        truths: Name of a plan -> what it truly costs.
    """

    frame: Sensitivity
    budgets: Mapping[str, Budget]
    plans: dict[str, Plan]
    predictions: dict[str, Prediction | str] = field(default_factory=dict)
    chosen: dict[str, dict[str, str | None]] = field(default_factory=dict)
    truths: dict[str, Truth] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Sensitivity]:
        """Metric -> its table, of those that have answered."""
        return {
            name: answer.table(name, self.frame)
            for name, answer in self.predictions.items()
            if not isinstance(answer, str)
        }

    def choose(self) -> None:
        """Add the plans to which the metrics' tables lead; one that is known already keeps its name."""
        names = {_short_name(plan): name for name, plan in self.plans.items()}
        for metric, table in self.tables.items():
            self.chosen[metric] = dict.fromkeys(self.budgets)
            for text, budget in self.budgets.items():
                with suppress(InfeasibleBudget):  # of a metric that does not offer every choice
                    plan = search(table, budget)
                    short = _short_name(plan)
                    self.chosen[metric][text] = names.setdefault(short, f"chosen-{short}")
                    self.plans.setdefault(names[short], plan)


def answered(
    shared: Shared,
    subject: Subject,
    folder: StudyFolder,
    named: Mapping[str, str | Metric],
    found: Found,
) -> None:
    """Run the metrics, evaluate the plans that were drawn and those that the metrics choose.

    Each is stored in the folder as it comes, and mixbit's other metrics that are finished there are taken too. The same
    processes do all: those that would wait for the last metric evaluate plans meanwhile.
    """
    finished = {name: name for name in folder.metrics() if name.partition(":")[0] in METRICS}
    metrics: dict[str, str | Metric] = {**named, **finished}
    codes = {name: metric_digest(metric) for name, metric in metrics.items()}
    for name, code in codes.items():
        if (prediction := folder.prediction(name, code, found.frame)) is not None:
            found.predictions[name] = prediction
    missing = [MetricJob(name, named[name], codes[name]) for name in named if name not in found.predictions]
    plans = _to_evaluate(found, folder)

    def jobs() -> Iterator[MetricJob | Plan | None]:
        yield from missing
        yield from plans
        while not named.keys() <= found.predictions.keys():
            yield None
        found.predictions = {name: found.predictions[name] for name in metrics if name in found.predictions}
        found.choose()
        yield from _to_evaluate(found, folder)

    most = len(missing) + len(plans) + len(named) * len(found.budgets)
    again = (lambda *_: subject) if shared.engine.is_this_process else partial(Subject, known=subject.found())
    work = partial(_begin, again=again, frame=found.frame)
    with closing(shared.answers(work, subject.case, subject.calibration, jobs())) as answers:
        for job, answer in track(answers, "run metrics and plans", total=most):
            if isinstance(answer, Truth):
                for name in (name for name, plan in found.plans.items() if plan.layers == answer.layers):
                    folder.save("plans", name, answer)
                    found.truths[name] = answer
            elif isinstance(job, MetricJob):
                if isinstance(answer, Prediction):
                    unknown = {"peak_mb": None} if shared.engine.is_this_process else {}
                    answer = answer.model_copy(update=unknown)  # noqa: PLW2901
                    folder.save("metrics", job.name, answer)
                found.predictions[job.name] = answer


def _to_evaluate(found: Found, folder: StudyFolder) -> list[Plan]:
    """The plans whose truth is neither known nor in the folder, each of a kind once."""
    missing: dict[str, Plan] = {}
    for name, plan in found.plans.items():
        if name not in found.truths:
            if (truth := folder.truth(name, plan)) is not None:
                found.truths[name] = truth
            else:
                missing.setdefault(_short_name(plan), plan)
    return list(missing.values())


def _begin(
    case: Case, calibration: Calibration, *, again: Callable[[Case, Calibration], Subject], frame: Sensitivity
) -> Callable[[MetricJob | Plan], Prediction | str | Truth]:
    """What answers jobs about the subject, which other processes make again."""
    return partial(_answer, again(case, calibration), frame=frame)


def _answer(subject: Subject, job: MetricJob | Plan, *, frame: Sensitivity) -> Prediction | str | Truth:
    """What the metric predicts, or why it fails; or what the plan truly costs."""
    return subject.truth(job) if isinstance(job, Plan) else _prediction(subject, job, frame)


def _prediction(subject: Subject, job: MetricJob, frame: Sensitivity) -> Prediction | str:
    before, began = _resident_mb(), time.perf_counter()
    try:
        with users_code(f"{METRICS.find(job.metric)[0]} failed"):
            table = measure(
                subject.case.graph,
                subject.calibration,
                target=frame.target,
                task=subject.case.task,
                metric=job.metric,
                choices=frame.choices,
                seed=subject.case.seed,
            )
    except MixbitError as error:
        return str(error)
    seconds, after = time.perf_counter() - began, _in_mb(resident_bytes(peak=True))
    return Prediction(
        code=job.code,
        seconds=seconds,
        peak_mb=None if before is None or after is None else after - before,
        num_samples=table.num_samples,
        loss=table.loss,
        standard_error=table.standard_error,
    )


def _resident_mb() -> float | None:
    """2^20 bytes that this process takes, less what is free; the peak of `resident_bytes` begins again with it."""
    release_memory()  # else what an earlier metric let go would not count again
    forget_peak()
    return _in_mb(resident_bytes())


def _in_mb(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**20


def metric_digest(metric: str | Metric) -> str:
    """Digest of the source: mixbit's for a metric given by name, else the function's."""
    return _own_source() if isinstance(metric, str) else digest(metric)


@cache
def _own_source() -> str:
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return digest("".join(path.read_text(encoding="utf-8") for path in files))


def _short_name(plan: Plan) -> str:
    """The first 12 hex digits of the SHA-256 of the plan's schemes."""
    return hashlib.sha256(json.dumps(plan.layers).encode()).hexdigest()[:12]
