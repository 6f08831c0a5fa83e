"""study(): which metric ranks plans best on the user's own model."""

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

import mixbit
from mixbit.core import (
    Budget,
    InfeasibleBudget,
    InvalidInput,
    Plan,
    Sensitivity,
    check_writable_folder,
    find_target,
    track,
    write_text,
)
from mixbit.core.io.digest import digest, environment
from mixbit.core.io.user_code import reason_of, users_code
from mixbit.metric_study.agreement import PlanSet, agreement_figures, predicted_losses, regret, reliability_figures
from mixbit.metric_study.folder import SETTINGS, StudyFolder
from mixbit.metric_study.pictures import check_matplotlib, draw_panels
from mixbit.metric_study.plans import Choice, draw_choices
from mixbit.metric_study.processes import in_processes
from mixbit.metric_study.truth import Predicted, Subject, Truth, predict, same_subject
from mixbit.metrics import METRICS, Metric
from mixbit.metrics.measure import blank_table, choose_scales
from mixbit.quantization.calibrate import Calibration
from mixbit.searches._problem import TOLERANCE, taken
from mixbit.searches.search import search

Job = TypeVar("Job")
Answer = TypeVar("Answer")

#: Budgets at which regret is reported, as shares of the way from the least to the largest mean bits of the choices.
BUDGETS_AT = (0.25, 0.5, 0.75)
_LABELS = {"accuracy": "accuracy", "loss": "loss", "kl": "KL divergence, nats"}


@dataclass(frozen=True)
class Study:
    """The result of study(); the text of study.json.

    Attributes:
        truth: `accuracy`, `loss` or `kl`: what the metrics were judged by, see `Truth`.
        metrics: Metric -> its figures. `spearman` and `kendall` are rank correlations of the predicted loss with the
            truth, 1 for a perfect metric, with `_interval`s, None from fewer than 20 different plans; under `kl_` with
            the KL divergence, under `near_` on the plans near the budget. `regret`, by budget: how much better the
            best known plan within it is than the one that the metric leads to, as a share of right answers (0.01 is
            one in a hundred) or in nats, as the truth is. Budgets are mean bits a quarter, a half and three quarters
            of the way from the narrowest choice to the widest, and the near budget. `seconds` and `peak_mb` of the
            metric. `reason`, where it could not answer or rank.
        reliability: `reliability` of the truth, from its two halves; its root, the `ceiling`, about what a perfect
            prediction would correlate by; and the `ceiling_interval`. Under `near_` on the plans near the budget.
        plans: Every plan with what it truly costs: `set` is `random`, `near`, or `chosen` by a metric.
        settings: Data, choices and seed of the study.
        environment: Versions and machine.
    """

    truth: str
    metrics: dict[str, dict[str, Any]]
    reliability: dict[str, Any]
    plans: list[dict[str, Any]]
    settings: dict[str, Any]
    environment: dict[str, str]

    def to_json(self) -> str:
        """The file's text."""
        fields = asdict(self)
        fields |= fields.pop("reliability")
        return json.dumps({"version": 1} | fields, indent=2, allow_nan=False) + "\n"


def study(  # noqa: PLR0913
    setup: Callable[[], tuple[Any, ...]] | tuple[Any, ...],
    *,
    target: str,
    out: str | Path,
    choices: Sequence[str] | None = None,
    metrics: Sequence[str | Metric] | None = None,
    num_plans: int = 150,
    near_budget: Budget | None = None,
    seed: int = 0,
    processes: int = 2,
    force: bool = False,
) -> Study:
    """Rank random plans by every metric and by what they truly cost, and report how well the two agree.

    Every finished plan and metric is a file in the folder; called again with the same settings, a study resumes where
    it stopped, and a larger number of plans or more metrics add to what is there. A metric runs again once its code
    has changed (the user's own or mixbit's); finished ones of mixbit's are reported even where they are not asked for
    again, the user's own only with their code at hand.

    Args:
        setup: Returns (graph, calibration batches, evaluation batches), the same on every call, and last the task
            where it is not classification: a captured graph in float; batches to calibrate and to run the metrics on,
            with labels where a metric needs them; and batches to take the truth on, with labels where there are any.
            A function at the top level of a module, or `functools.partial` of one, since every process calls it; with
            processes=1 any function, or that tuple itself.
        target: Name of the target whose choices are studied.
        out: Folder for study.json, study.png and the finished parts.
        choices: Schemes that plans choose from; the target's default ones where None.
        metrics: Names or functions; all that there are where None. One that cannot answer, or fails, is reported with
            the reason.
        num_plans: How many random plans of each set.
        near_budget: A budget of one limit; where given, a second set of plans is drawn whose usage is near it.
        seed: Random seed. Plan i of a set is always the same, for any number of plans.
        processes: How many evaluate plans, sharing the cores. Each metric runs in a fresh process, with all cores;
            with processes=1 all happens in this one, and the memory of metrics is not separated.
        force: Whether to clear a study that is in the folder.

    Returns:
        All figures, as in study.json.

    Raises:
        InvalidInput: names, data, settings or the folder cannot be used, a metric has the name of one of mixbit's, or
            matplotlib is missing.
        MixbitError: a process failed.
    """
    named, out = _named(metrics), Path(out)
    find_target(target).schemes(choices)
    check_matplotlib("study.png")
    check_writable_folder(out, force=force or (out / SETTINGS).exists())
    _check_processes(processes, setup, named)
    subject = Subject.of(setup() if callable(setup) else setup)
    subject.evaluate_float()
    workers = _Workers(setup, subject, processes)
    frame = blank_table(subject.graph, target=target, choices=choices)
    schemes = frame.schemes
    choose_scales(subject.graph, subject.calibration, schemes)  # once for all metrics
    drawn = draw_choices(frame, num_plans, near_budget, seed)
    settings = {
        "model": frame.fingerprint,
        **subject.digests,
        "num_calibration": sum(inputs.batch_size for inputs, _ in subject.calibration.batches),
        "num_evaluation": sum(inputs.batch_size for inputs, _ in subject.evaluation),
        "task": subject.task.name,
        "target": target,
        "choices": list(frame.choices),
        "seed": seed,
        "near_budget": None if near_budget is None else str(near_budget),
    }
    folder = StudyFolder.open(out, settings, force=force)
    predicted = _predict_all(workers, folder, named, frame, seed)
    tables = {name: answer.table for name, answer in predicted.items() if answer.table is not None}
    budgets = _budgets(frame, near_budget)
    chosen = {name: {key: _searched(table, budgets[key]) for key in budgets} for name, table in tables.items()}
    plans = {f"{name}-{i}": _plan(frame, choice) for name, some in drawn.items() for i, choice in enumerate(some)}
    plans |= _others(plans, chosen)
    truths = _truths(workers, folder, plans)
    within = {
        key: [truths[name] for name, plan in plans.items() if _keeps(plan, budget, frame)]
        for key, budget in budgets.items()
    }
    costs = {_short_name(plan): truths[name] for name, plan in plans.items()}
    sets = {name: PlanSet(some, [truths[f"{name}-{i}"] for i in range(len(some))]) for name, some in drawn.items()}
    figures: dict[str, dict[str, Any]] = {name: {"reason": answer.reason} for name, answer in predicted.items()}
    for name, table in tables.items():
        regrets = {key: regret(plan and costs[_short_name(plan)], within[key]) for key, plan in chosen[name].items()}
        cost = {"seconds": predicted[name].seconds, "peak_mb": predicted[name].peak_mb}
        figures[name] = agreement_figures(table, sets, seed) | cost | {"regret": regrets}
    result = Study(
        truth=truths["random-0"].judged_by,
        metrics=figures,
        reliability=reliability_figures(sets, seed),
        plans=[{"set": name.partition("-")[0]} | truths[name].model_dump() for name in plans],
        settings=settings,
        environment=environment(),
    )
    write_text(out / "study.json", result.to_json())
    _draw(out / "study.png", tables, sets, result.truth)
    return result


def _named(metrics: Sequence[str | Metric] | None) -> dict[str, str | Metric]:
    """Name -> metric, each name once and known; text where it is one of mixbit's."""
    named: dict[str, str | Metric] = {}
    for metric in METRICS if metrics is None else metrics:
        name, method = METRICS.find(metric)
        if name in named:
            raise InvalidInput(f"metrics: two are called {name}; give each once, under a name of its own")
        known = isinstance(metric, str) or METRICS.get(name) is method
        if not known and name.partition(":")[0] in METRICS:
            raise InvalidInput(
                f"metrics: {name} is the name of one of mixbit's; give your own another; options as in hawq:vectors=20"
            )
        named[name] = name if known else metric
    if not named:
        raise InvalidInput(f"metrics: none given; known: {', '.join(METRICS)}")
    return named


def _check_processes(processes: int, setup: Any, metrics: Any) -> None:
    if processes < 1:
        raise InvalidInput(f"processes={processes}: give 1 or more")
    if processes == 1:
        return
    if not callable(setup):
        raise InvalidInput(f"setup: a {type(setup).__name__}; give a function that returns it, or processes=1")

    def unsendable(error: BaseException) -> InvalidInput:
        return InvalidInput(
            f"setup and metrics go to other processes, and one of them cannot ({reason_of(error)}); give functions of "
            "the top level of a module that make what they need, or functools.partial of them with plain values, or "
            "processes=1"
        )

    with users_code(unsendable):
        pickle.loads(pickle.dumps((setup, metrics)))


@dataclass(frozen=True)
class _Workers:
    """Whoever answers jobs about the subject: this process, or others, which make it again.

    Attributes:
        setup: As for `study`.
        subject: What it returned here.
        processes: How many evaluate plans.
    """

    setup: Any
    subject: Subject
    processes: int

    def answers(
        self, answer: Callable[[Subject, Job], Answer], jobs: Sequence[Job], processes: int
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer, from so many processes, or this one where all happens in one."""
        if self.processes == 1:
            yield from ((job, answer(self.subject, job)) for job in jobs)
            return
        threads = max(1, (os.cpu_count() or 1) // processes)
        calibration = dataclasses.replace(self.subject.calibration, batches=())  # which each process makes itself
        start = partial(_ready, self.setup, calibration, self.subject.digests, threads, answer)
        with closing(in_processes(start, jobs, processes)) as answers:
            yield from answers


def _ready(
    setup: Callable[[], Any],
    calibration: Calibration,
    expected: Mapping[str, str],
    threads: int,
    answer: Callable[[Subject, Job], Answer],
) -> Callable[[Job], Answer]:
    """In a process of its own: make the subject again, and return what answers its jobs."""
    torch.set_num_threads(threads)
    return partial(answer, same_subject(setup, calibration, expected))


def metric_digest(metric: str | Metric) -> str:
    """Of one of mixbit's by name, a digest of mixbit's source; of the user's own, of its own."""
    return _own_source() if isinstance(metric, str) else digest(metric)


@cache
def _own_source() -> str:
    package = Path(mixbit.__file__).parent
    return digest("".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))))


def _predict_all(
    workers: _Workers, folder: StudyFolder, named: Mapping[str, str | Metric], frame: Sensitivity, seed: int
) -> dict[str, Predicted]:
    """What every metric predicts, from the folder where it is there; and mixbit's others that are there."""
    ask = partial(predict, target=frame.target, choices=frame.choices, seed=seed)
    predicted = {}
    for name, metric in track(list(named.items()), "run metrics"):
        code = metric_digest(metric)
        answer = folder.predicted(name, code, frame)
        if answer is None:
            ((_, answer),) = workers.answers(ask, [metric], 1)
            if workers.processes == 1:
                answer = dataclasses.replace(answer, peak_mb=None)
            folder.save_predicted(name, code, answer)
        predicted[name] = answer
    for name in folder.metrics():
        if name not in predicted and name.partition(":")[0] in METRICS:
            answer = folder.predicted(name, metric_digest(name), frame)
            predicted |= {} if answer is None else {name: answer}
    return predicted


def _truths(workers: _Workers, folder: StudyFolder, plans: Mapping[str, Plan]) -> dict[str, Truth]:
    """What the plans truly cost, by their names in the folder; from there where they are finished."""
    truths = {name: truth for name, plan in plans.items() if (truth := folder.truth(name, plan)) is not None}
    alike: dict[str, list[str]] = {}
    for name, plan in plans.items():
        if name not in truths:
            alike.setdefault(_short_name(plan), []).append(name)
    jobs = [plans[names[0]] for names in alike.values()]
    with closing(workers.answers(Subject.truth, jobs, workers.processes)) as answers:
        for plan, truth in track(answers, "evaluate plans", total=len(jobs)):
            for name in alike[_short_name(plan)]:
                folder.save_truth(name, truth)
                truths[name] = truth
    return truths


def _plan(frame: Sensitivity, choice: Choice) -> Plan:
    layers = {name: frame.choices[column] for name, column in zip(frame.layers, choice, strict=True)}
    return Plan(target=frame.target, fingerprint=frame.fingerprint, layers=layers, made_by="drawn")


def _short_name(plan: Plan) -> str:
    """Of the plan's schemes: the first 12 hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(plan.layers).encode()).hexdigest()[:12]


def _budgets(frame: Sensitivity, near: Budget | None) -> dict[str, Budget]:
    """Budgets at which regret is reported, by their text."""
    widths = [scheme.weight_bits for scheme in frame.schemes]
    budgets = [Budget(mean_bits=min(widths) + share * (max(widths) - min(widths))) for share in BUDGETS_AT]
    return {str(budget): budget for budget in (*budgets, near) if budget is not None}


def _keeps(plan: Plan, budget: Budget, frame: Sensitivity) -> bool:
    """Whether the plan is within the budget."""
    columns = frame.columns(plan.layers)
    return all(taken(limit.usage, columns).sum() <= limit.bound * (1 + TOLERANCE) for limit in frame.limits(budget))


def _searched(table: Sensitivity, budget: Budget) -> Plan | None:
    """The plan that this table leads to."""
    try:
        return search(table, budget)
    except InfeasibleBudget:  # of a metric that does not offer every choice
        return None


def _others(plans: Mapping[str, Plan], chosen: Mapping[str, Mapping[str, Plan | None]]) -> dict[str, Plan]:
    """As `chosen-...`, the plans that metrics chose and that are not among these; equal ones once."""
    known = {_short_name(plan) for plan in plans.values()}
    others = {_short_name(plan): plan for best in chosen.values() for plan in best.values() if plan is not None}
    return {f"chosen-{name}": plan for name, plan in others.items() if name not in known}


def _draw(path: Path, tables: Mapping[str, Sensitivity], sets: Mapping[str, PlanSet], judged_by: str) -> None:
    sign = -1 if judged_by == "accuracy" else 1
    rows = {
        name: (sign * plans.costs, {k: predicted_losses(t, plans.choices) for k, t in tables.items()})
        for name, plans in sets.items()
    }
    if tables:
        draw_panels(path, rows, _LABELS[judged_by])
