"""study(): which metric ranks plans best on the user's own model."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, Plan, Sensitivity, check_writable_folder, find_target, write_text
from mixbit.core.io.environment import environment
from mixbit.core.io.user_code import reason_of, users_code
from mixbit.metric_study.agreement import (
    PlanSet,
    agreement_figures,
    predicted_losses,
    regret,
    reliability_figures,
    true_costs,
)
from mixbit.metric_study.folder import SETTINGS, StudyFolder
from mixbit.metric_study.pictures import Panel, check_matplotlib, draw_panels
from mixbit.metric_study.plans import RandomPlans, draw_choices
from mixbit.metric_study.run import StudyRun, searched, short_name
from mixbit.metric_study.truth import Predicted, Subject, Truth
from mixbit.metrics import METRICS, Metric

_LABELS = {"accuracy": "accuracy", "loss": "loss", "kl": "KL divergence, nats"}


@dataclass(frozen=True)
class Study:
    """What study() found; the text of study.json.

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
        settings: What the study was asked.
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
        found = asdict(self)
        found |= found.pop("reliability")
        return json.dumps({"version": 1} | found, indent=2, allow_nan=False) + "\n"


def study(
    setup: Callable[[], Subject],
    *,
    target: str,
    out: str | Path,
    choices: Sequence[str] | None = None,
    metrics: Sequence[str | Metric] | None = None,
    plans: RandomPlans | None = None,
    processes: int = 2,
    force: bool = False,
) -> Study:
    """Rank random plans by every metric and by what they truly cost, and tell how well the two agree.

    Every finished plan and metric is a file in the folder; called again with the same settings, a study goes on where
    it stopped, and a larger number of plans or more metrics add to what is there. A metric runs again once its code
    has changed (the user's own or mixbit's); finished ones of mixbit's are reported even where they are not asked for
    again, the user's own only with their code at hand.

    Args:
        setup: Returns the network and its data, the same with every call. A function at the top level of a module, or
            `functools.partial` of one, since every process calls it; with processes=1 any function.
        target: Name of the target whose choices are studied.
        out: Folder for study.json, study.png and the finished parts.
        choices: Schemes that plans choose from; the target's default ones where None.
        metrics: Names or functions; all that there are where None. One that cannot answer, or fails, is reported with
            the reason.
        plans: Which random plans.
        processes: How many evaluate plans, sharing the cores. Each metric runs in a fresh process, with all cores;
            with processes=1 all happens in this one, and the memory of metrics is not told apart.
        force: Whether to clear a study that is in the folder.

    Returns:
        All figures, as in study.json.

    Raises:
        InvalidInput: names, data, settings or the folder cannot be used, a metric has the name of one of mixbit's, or
            matplotlib is missing.
        MixbitError: a process failed.
    """
    plans, named = plans or RandomPlans(), _named(metrics)
    find_target(target).schemes(choices)
    check_matplotlib("study.png")
    check_writable_folder(Path(out), force=force or (Path(out) / SETTINGS).exists())
    _check_processes(processes, setup, named)
    run = StudyRun(setup, target, choices, plans.seed, processes)
    drawn = draw_choices(run.blank, plans)
    settings = run.settings(plans)
    folder = StudyFolder.open(Path(out), settings, force=force)
    predicted = run.predict_all(folder, named)
    tables = {name: one.table for name, one in predicted.items() if one.table is not None}
    budgets = run.budgets(plans.near)
    chosen = {name: {key: searched(table, budgets[key]) for key in budgets} for name, table in tables.items()}
    every = _with_chosen(run.random_plans(drawn), chosen)
    truths = run.truths(folder, every)
    sets = {name: PlanSet(some, [truths[f"{name}-{i}"] for i in range(len(some))]) for name, some in drawn.items()}
    regrets = _regrets(chosen, every, truths, lambda plan, key: run.keeps(plan, budgets[key]))
    found = Study(
        truth=truths["random-0"].judged_by,
        metrics={name: _figures(one, sets, plans.seed) | regrets.get(name, {}) for name, one in predicted.items()},
        reliability=reliability_figures(sets, plans.seed),
        plans=[_plan_row(name, plan, truths[name]) for name, plan in every.items()],
        settings=settings,
        environment=environment(),
    )
    write_text(folder.path / "study.json", found.to_json())
    _draw(folder.path / "study.png", tables, sets, found)
    return found


def _with_chosen(plans: dict[str, Plan], chosen: Mapping[str, Mapping[str, Plan | None]]) -> dict[str, Plan]:
    """The plans and, as `chosen-...`, those that metrics chose and that are not among them: equal ones once."""
    known = {short_name(plan) for plan in plans.values()}
    more = {short_name(plan): plan for found in chosen.values() for plan in found.values() if plan is not None}
    return plans | {f"chosen-{name}": plan for name, plan in more.items() if name not in known}


def _regrets(
    chosen: Mapping[str, Mapping[str, Plan | None]],
    plans: Mapping[str, Plan],
    truths: Mapping[str, Truth],
    keeps: Callable[[Plan, str], bool],
) -> dict[str, dict[str, Any]]:
    """Metric -> its figure `regret`."""
    known = {short_name(plan): truths[name] for name, plan in plans.items()}
    budgets = list(dict.fromkeys(key for found in chosen.values() for key in found))
    within = {key: [truths[name] for name, plan in plans.items() if keeps(plan, key)] for key in budgets}
    return {
        metric: {"regret": {key: regret(plan and known[short_name(plan)], within[key]) for key, plan in found.items()}}
        for metric, found in chosen.items()
    }


def _plan_row(name: str, plan: Plan, truth: Truth) -> dict[str, Any]:
    return {"set": name.partition("-")[0], "layers": plan.layers} | asdict(truth)


def _figures(predicted: Predicted, sets: Mapping[str, PlanSet], seed: int) -> dict[str, Any]:
    if predicted.table is None:
        return {"reason": predicted.reason}
    cost = {"seconds": predicted.seconds, "peak_mb": predicted.peak_mb}
    return agreement_figures(predicted.table, sets, seed) | cost


def _draw(path: Path, tables: Mapping[str, Sensitivity], sets: Mapping[str, PlanSet], found: Study) -> None:
    rows = {}
    for name, plans in sets.items():
        truth = true_costs(plans.truths) * (-1 if found.truth == "accuracy" else 1)
        rows[name] = [Panel(metric, predicted_losses(table, plans.choices), truth) for metric, table in tables.items()]
    if tables:
        draw_panels(path, rows, _LABELS[found.truth])


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


def _check_processes(processes: int, *sent: Any) -> None:
    if processes < 1:
        raise InvalidInput(f"processes={processes}: give 1 or more")
    if processes == 1:
        return

    def explained(error: BaseException) -> InvalidInput:
        return InvalidInput(
            f"setup and metrics go to other processes, and one of them cannot ({reason_of(error)}); give functions of "
            "the top level of a module that make what they need, or functools.partial of them with plain values, or "
            "processes=1"
        )

    with users_code(explained):
        pickle.loads(pickle.dumps(sent))
