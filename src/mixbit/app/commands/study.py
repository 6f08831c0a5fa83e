"""`mixbit study`."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixbit.app.commands import options
from mixbit.app.commands.options import print_rows, say

if TYPE_CHECKING:
    from mixbit.metric_study.study import Study


def load_subject(model: str, data: tuple[str, str], task: str, loss: str | None, device: str) -> tuple[Any, ...]:
    """What a study is about: the captured MODEL, DATA to calibrate and to evaluate on, and the task with its loss."""
    from mixbit.core import load_data, load_model, split_batches
    from mixbit.graph.capture import capture

    module = load_model(model).to(device)
    calibration, evaluated = (split_batches(module, load_data(spec)) for spec in data)
    return capture(module, calibration[0][0]), calibration, evaluated, options.task_of(task, loss)


def study(
    model: options.Model,
    data: options.Data,
    evaluate: Annotated[str, typer.Option("--eval", help="DATA to evaluate plans on, with labels where there are any")],
    target: options.TargetName,
    out: Annotated[Path, typer.Option(help="folder for the results; the same call resumes there")],
    plans: Annotated[int, typer.Option(min=3, help="number of random plans in each set")] = 150,
    metrics: Annotated[str | None, typer.Option(help="as in fisher,hawq; all by default")] = None,
    near_budget: Annotated[str | None, typer.Option(help="name=value; a second set of plans within 5 % of it")] = None,
    processes: Annotated[int, typer.Option(min=1, help="processes that evaluate plans and share the cores")] = 2,
    choices: options.Choices = None,
    task: options.TaskName = "classification",
    loss: options.LossSpec = None,
    device: options.Device = "cpu",
    seed: options.Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="delete the study in --out and start over")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Report which metric ranks plans best on this model, by the true cost of random plans."""
    from functools import partial

    from mixbit.core import Budget
    from mixbit.metric_study.study import study as study_

    with redirect_stdout(sys.stderr):
        result = study_(
            partial(load_subject, model, (data, evaluate), task, loss, str(options.device_of(device))),
            target=target,
            out=out,
            choices=options.split(choices),
            metrics=options.split(metrics),
            num_plans=plans,
            near_budget=None if near_budget is None else Budget.parse([near_budget]),
            seed=seed,
            processes=processes,
            force=force,
        )
    if as_json:
        print(result.to_json(), end="")
    else:
        print_study(result)
        say(f"written to {out}")


def print_study(result: "Study") -> None:
    """Print a study's table, the best metric first, what limits it, and which metrics have no figures and why."""

    def with_interval(row: dict[str, Any], name: str) -> str:
        if row[f"{name}_interval"] is None:
            return _or_dash(row[name], ".3f")
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.2f} to {high:.2f})"

    answered = {metric: row for metric, row in result.metrics.items() if "seconds" in row}
    sets = [prefix for prefix in ("", "near_") if f"{prefix}ceiling" in result.reliability]
    names = [f"{prefix}{name}" for prefix in sets for name in ("spearman", "kendall", "kl_spearman")]
    if result.truth == "kl":
        names = [name for name in names if "kl_" not in name]
    budgets = list(dict.fromkeys(budget for row in answered.values() for budget in row["regret"]))
    rows = []
    for metric, row in sorted(answered.items(), key=lambda item: 2 if (rank := item[1]["spearman"]) is None else -rank):
        regret = [_or_dash(row["regret"][budget], ".4f") for budget in budgets]
        spent = _or_dash(row["seconds"], ".1f"), _or_dash(row["peak_mb"], ".0f")
        rows.append((metric, *[with_interval(row, name) for name in names], *regret, *spent))
    columns = ("metric", *names, *[f"regret at {budget}" for budget in budgets], "seconds", "peak MB")
    print_rows(f"rank correlation with {result.truth}, and 95 % intervals from 20 different plans on", columns, rows)
    for prefix in sets:
        which = "plans near the budget" if prefix else "random plans"
        reliability = result.reliability[f"{prefix}reliability"]
        if reliability > 0:
            ceiling = with_interval(result.reliability, f"{prefix}ceiling")
            what = f"has reliability {reliability:.3f}; a perfect metric would correlate by about {ceiling}"
        else:
            what = "does not agree between halves of the data; evaluate on more data, or more plans"
        say(f"{which}: {result.truth} {what}")
    reasons = {metric: row["reason"] for metric, row in result.metrics.items() if "reason" in row}
    unlabelled = [metric for metric in reasons if metric not in answered and "needs labels" in reasons[metric]]
    if unlabelled:
        say(f"{', '.join(unlabelled)}: need labels in the calibration data; give batches that end with them")
    for metric, reason in reasons.items():
        if metric not in unlabelled:
            say(f"{metric}: {reason}")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
