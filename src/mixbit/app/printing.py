"""What the command line prints: figures and tables on standard output, messages on standard error."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mixbit.core import Plan, Sensitivity
    from mixbit.metric_study.study import Study
    from mixbit.pipeline.folder import Result


#: Columns of a table that goes to a file or another program.
WIDE = 200
#: Smaller shares are rounding.
GAP = 1e-4


def print_result(result: "Result") -> None:
    """Print the figures of a run, its plan, and how it was chosen."""
    from mixbit.pipeline.folder import in_float

    rows = [("float", *_cells(result.float_))]
    rows += [("before fine-tuning, simulated", *_cells(result.untrained))] if result.untrained else []
    rows.append(("simulated", *_cells(result.simulated)))
    rows += [(f"uniform {row['scheme']}, simulated", *_cells(row)) for row in result.uniform]
    rows.append(("deployed", *_cells(result.deployed)))
    print_rows(result.target, ("network", "accuracy", "weight bytes", "file bytes", "ms", "agreement"), rows)
    print_rows(
        "plan", ("layer", "scheme", "executed"), [(n, row.scheme, row.executed) for n, row in result.layers.items()]
    )
    if result.pruned is not None:
        say(f"{result.pruned}; --flavour qat --train DATA fine-tunes what is left")
    say(result.chosen)
    say_what_runs_in_float(in_float(result.layers), len(result.layers))


def print_prices(plan: "Plan") -> None:
    """Say what each limit costs, and how far the plan may be from the best."""
    gap = plan.predicted.get("optimality_gap", 0.0)
    if gap > GAP:
        say(f"another plan within the budget may have {gap:.1%} less predicted loss; the search ilp finds it")
    for name, price in plan.prices.items():
        line = f"{name}={plan.budget[name]:g} (used {price.used:.6g}): "
        if price.gain <= 0:
            say(f"{line}looser by 5 %, it would change nothing")
            continue
        widens = "; ".join(f"{layer} {change}" for layer, change in list(price.widens.items())[:3])
        say(
            f"{line}{price.looser:.6g} would lower the predicted loss by {price.gain:.3g}"
            f"{f', first to widen: {widens}' if widens else ''} (shadow price {price.price:.3g} a unit)"
        )


def say_what_runs_in_float(names: list[str], count: int) -> None:
    """Name the layers, of so many, that a runtime did not run in integers."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    if names:
        say(f"{len(names)} of {count} layers did not run in int8: {', '.join(names[:5])}{more}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def cell(name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    size = cell("weight_bytes", ",.0f") or cell("predicted_bytes", ",.0f")
    return (
        cell("accuracy", ".2%"),
        size,
        cell("file_bytes", ",.0f"),
        cell("latency_ms", ".3f"),
        cell("agreement", ".2%"),
    )


def print_sensitivities(table: "Sensitivity") -> None:
    """Print the table with its standard errors."""
    rows = []
    for layer, losses, errors in zip(table.layers, table.loss, table.standard_error, strict=True):
        rows.append((layer, *[f"{loss:.2e} ±{error:.0e}" for loss, error in zip(losses, errors, strict=True)]))
    print_rows(f"predicted loss increase by {table.metric}", ("layer", *table.choices), rows)


def print_study(found: "Study") -> None:
    """Print a study's table, the best metric first, what limits it, and which metrics have no figures and why."""

    def with_interval(row: dict[str, Any], name: str) -> str:
        if row[f"{name}_interval"] is None:
            return _or_dash(row[name], ".3f")
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.3f} ({low:.2f} to {high:.2f})"

    answered = {metric: row for metric, row in found.metrics.items() if "seconds" in row}
    sets = [prefix for prefix in ("", "near_") if f"{prefix}ceiling" in found.reliability]
    names = [f"{prefix}{name}" for prefix in sets for name in ("spearman", "kendall", "kl_spearman")]
    if found.truth == "kl":
        names = [name for name in names if "kl_" not in name]
    budgets = list(dict.fromkeys(budget for row in answered.values() for budget in row["regret"]))
    rows = []
    for metric, row in sorted(answered.items(), key=lambda one: -_or_last(one[1]["spearman"])):
        regret = [_or_dash(row["regret"][budget], ".4f") for budget in budgets]
        spent = _or_dash(row["seconds"], ".1f"), _or_dash(row["peak_mb"], ".0f")
        rows.append((metric, *[with_interval(row, name) for name in names], *regret, *spent))
    columns = ("metric", *names, *[f"regret at {budget}" for budget in budgets], "seconds", "peak MB")
    print_rows(f"rank correlation with {found.truth}, and 95 % intervals from 20 different plans on", columns, rows)
    for prefix in sets:
        which = "plans near the budget" if prefix else "random plans"
        reliability = found.reliability[f"{prefix}reliability"]
        if reliability > 0:
            ceiling = with_interval(found.reliability, f"{prefix}ceiling")
            what = f"has reliability {reliability:.3f}; a perfect metric would correlate by about {ceiling}"
        else:
            what = "does not agree between halves of the data; evaluate on more data, or more plans"
        say(f"{which}: {found.truth} {what}")
    reasons = {metric: row["reason"] for metric, row in found.metrics.items() if "reason" in row}
    unlabelled = [metric for metric in reasons if metric not in answered and "needs labels" in reasons[metric]]
    if unlabelled:
        say(f"{', '.join(unlabelled)}: need labels in the calibration data; give batches that end with them")
    for metric, reason in reasons.items():
        if metric not in unlabelled:
            say(f"{metric}: {reason}")


def _or_last(correlation: float | None) -> float:
    return -2 if correlation is None else correlation


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_rows(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """Print a message on standard error."""
    print(text, file=sys.stderr)
