"""study(): which metric ranks plans best on the user's own model."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from mixbit.core import (
    MEASURED,
    Batches,
    Budget,
    Engine,
    InvalidInput,
    Sensitivity,
    check_engine,
    check_writable_folder,
    checked,
    environment,
    find_target,
    has_matplotlib,
    reserved,
    users_code,
    write_text,
)
from mixbit.metric_study.answers import Found, answered
from mixbit.metric_study.folder import SETTINGS, StudyFolder, Truth, check_folder
from mixbit.metric_study.plans import PlanSet, agreement_figures, draw_choices, draw_panels, reliability_figures
from mixbit.metric_study.subject import Subject
from mixbit.metrics import METRICS, Metric
from mixbit.metrics.measure import blank_table, choose_all_scales
from mixbit.quantization.shared import Shared, check_travels
from mixbit.searches import Problem

_log = logging.getLogger("mixbit")


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


#: A figure of a metric: a number, an interval, a reason, or numbers by budget; null where there is none.
MetricFigure = float | tuple[float, float] | str | dict[str, float | None] | None


class PlanRow(Truth):
    """A plan and what it truly costs; `set` is `random`, `near`, or `chosen` by a metric."""

    set: Literal["random", "near", "chosen"]


class StudyFile(BaseModel):
    """The file study.json, see `Study`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    version: Literal[1]
    truth: str
    metrics: dict[str, dict[str, MetricFigure]]
    reliability: float
    ceiling: float | None
    ceiling_interval: tuple[float, float] | None
    near_reliability: float | None = None
    near_ceiling: float | None = None
    near_ceiling_interval: tuple[float, float] | None = None
    plans: list[PlanRow]
    settings: dict[str, JsonValue]
    environment: dict[str, str]


@checked
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
    engine: Engine = Engine(processes=2),  # noqa: B008 it is frozen
    force: bool = False,
) -> Study:
    """Rank random plans by every metric and by what they truly cost, and report how well the two agree.

    Every finished plan and metric is a file in the folder; called again with the same settings, a study resumes where
    it stopped, and a larger number of plans or more metrics add to what is there. A metric runs again once its code
    has changed (the user's own or mixbit's). Finished metrics of mixbit's are always reported.

    Args:
        setup: Returns (graph, calibration batches, evaluation batches), the same on every call, and last the task
            where it is not classification: a captured graph in float; batches to calibrate and to run the metrics on,
            with labels where a metric needs them; and batches to take the truth on, with labels where there are any.
            A function at the top level of a module, or `functools.partial` of one, since every process calls it; in
            this process alone, engine=Engine(), any function, or that tuple itself.
        target: Name of the target whose choices are studied.
        out: Folder for study.json, study.png and the finished parts.
        choices: Schemes that plans choose from; the target's default ones where None.
        metrics: Names or functions; all that there are where None. Where one fails, the reason is reported.
        num_plans: How many random plans of each set.
        near_budget: A budget of one limit; where given, a second set of plans is drawn whose usage is near it.
        seed: Random seed. Plan i of a set is always the same, for any number of plans.
        engine: Where metrics run and plans are evaluated, in one thread each: the results are the same bits wherever
            that is. In this process alone the memory of metrics is not told.
        force: Whether to clear a study that is in the folder.

    Raises:
        InvalidInput: names, data, settings or the folder cannot be used, or a metric has the name of one of mixbit's.
        MixbitError: a process failed.
    """
    named, out = _named(metrics), Path(out)
    find_target(target).schemes(choices)
    pictured = has_matplotlib()
    if not pictured:
        _log.warning("study.png is left out: it needs matplotlib; pip install 'mixbit[plot]'")
    check_folder(out)
    check_writable_folder(out, force=force or (out / SETTINGS).exists())
    _check_travels(engine, setup, named)
    check_engine(engine)
    if near_budget is not None and (near_budget.max_drop is not None or {*MEASURED} & near_budget.limits.keys()):
        raise InvalidInput(f"near budget {near_budget}: a study does not measure that of plans; limit mean_bits, say")
    made_by = Shared(setup if callable(setup) else lambda: setup, engine)
    with reserved(out), made_by.begun() as shared:
        with users_code("setup fails"):
            parts = made_by.setup()
        subject = Subject.of(parts, seed)
        _ = subject.reference  # evaluation data that cannot be used is refused before any metric runs
        case, calibration = subject.case, subject.calibration.for_target(find_target(target))
        frame = blank_table(case.graph, target=target, choices=choices)
        choose_all_scales(case.graph, calibration, frame.schemes)  # once for all metrics
        drawn = draw_choices(frame, num_plans, near_budget, seed)
        settings = {
            "model": frame.fingerprint,
            **subject.digests,
            "num_calibration": sum(Batches.of(case.batches).sizes),
            "num_evaluation": sum(inputs.batch_size for inputs, _ in case.evaluation),
            "task": str(case.task),
            "target": target,
            "choices": list(frame.choices),
            "seed": seed,
            "near_budget": None if near_budget is None else str(near_budget),
        }
        folder = StudyFolder(out, settings, force=force)
        budgets = _budgets(frame, near_budget)
        plans = {
            f"{name}-{i}": frame.plan(choice, "drawn") for name, some in drawn.items() for i, choice in enumerate(some)
        }
        found = Found(frame, budgets, plans)
        answered(shared, subject, folder, named, found)
        truths, tables = found.truths, found.tables
        regrets = _regrets(frame, budgets, found)
        sets = {name: PlanSet(some, [truths[f"{name}-{i}"] for i in range(len(some))]) for name, some in drawn.items()}
        figures: dict[str, dict[str, Any]] = {}
        for name, answer in found.predictions.items():
            if isinstance(answer, str):
                figures[name] = {"reason": answer}
                continue
            cost = {"seconds": answer.seconds, "peak_mb": answer.peak_mb, "regret": regrets[name]}
            figures[name] = agreement_figures(tables[name], sets, seed) | cost
        result = Study(
            truth=truths["random-0"].judged_by,
            metrics=figures,
            reliability=reliability_figures(sets, seed),
            plans=[{"set": name.partition("-")[0]} | truths[name].model_dump() for name in found.plans],
            settings=settings,
            environment=environment(),
        )
        write_text(out / "study.json", result.to_json())
        if tables and pictured:
            draw_panels(out / "study.png", tables, sets, result.truth)
        return result


def _regrets(frame: Sensitivity, budgets: Mapping[str, Budget], found: Found) -> dict[str, dict[str, float | None]]:
    """Metric -> budget -> how much more its plan costs than the best known one within it, None where it has none."""
    least: dict[str, float] = {}
    for text, budget in budgets.items():
        problem = Problem.of(frame, budget)
        within = [
            found.truths[name].cost for name, plan in found.plans.items() if problem.keeps(frame.columns(plan.layers))
        ]
        least[text] = min(within, default=math.inf)
    return {
        metric: {text: None if name is None else found.truths[name].cost - least[text] for text, name in some.items()}
        for metric, some in found.chosen.items()
    }


def _named(metrics: Sequence[str | Metric] | None) -> dict[str, str | Metric]:
    """Name -> metric, each name once and known; text where it is one of mixbit's."""
    named: dict[str, str | Metric] = {}
    for metric in METRICS if metrics is None else metrics:
        name, method = METRICS.find(metric)
        if name in named:
            raise InvalidInput(f"metrics: two are called {name}; give each once, under another name")
        known = isinstance(metric, str) or METRICS.get(name) is method
        if not known and name.partition(":")[0] in METRICS:
            way_out = "give your own another; options as in hawq:vectors=20"
            raise InvalidInput(f"metrics: {name} is the name of one of mixbit's; {way_out}")
        named[name] = name if known else metric
    if not named:
        raise InvalidInput(f"metrics: none given; known: {', '.join(METRICS)}")
    return named


def _check_travels(engine: Engine, setup: Any, metrics: Any) -> None:
    if engine.is_this_process:
        return
    if not callable(setup):
        raise InvalidInput(f"setup: a {type(setup).__name__}; give a function that returns it, or engine=Engine()")
    check_travels("setup and metrics", (setup, metrics))


def _budgets(frame: Sensitivity, near: Budget | None) -> dict[str, Budget]:
    """Budgets at which regret is reported, by their text: from the least to the largest mean bits, and the near one."""
    widths = [scheme.weight_bits for scheme in frame.schemes]
    means = [min(widths) + share * (max(widths) - min(widths)) for share in (0.25, 0.5, 0.75)]
    covered, fixed = float(frame.numel.sum()) / frame.num_weights, frame.fixed_usage("mean_bits")
    budgets = [Budget(mean_bits=mean * covered + fixed) for mean in means]
    return {str(budget): budget for budget in (*budgets, near) if budget is not None}
