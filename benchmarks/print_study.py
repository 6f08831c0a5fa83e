"""A study as a table."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mixbit.studies import Study


def print_study(found: Study) -> None:
    """Print a row for each metric, the best one first."""
    columns = ("metric", f"Spearman with {found.truth}", "Kendall", "Spearman with KL", "regret", "seconds", "peak MB")
    table = Table(*columns, title=", ".join(f"{name} {value:.3f}" for name, value in found.reliability.items()))
    for name, row in sorted(found.metrics.items(), key=lambda item: -(item[1].get("spearman") or -2)):
        table.add_row(
            name,
            _with_interval(row, "spearman"),
            _with_interval(row, "kendall"),
            _with_interval(row, "kl_spearman"),
            ", ".join(
                f"{budget}: {value:.4f}" for budget, value in (row.get("regret") or {}).items() if value is not None
            ),
            "" if row.get("seconds") is None else f"{row['seconds']:.1f}",
            "" if row.get("peak_mb") is None else f"{row['peak_mb']:.0f}",
        )
    Console(width=200).print(table)


def _with_interval(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return row.get("reason") or "none"
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"
