"""How rows are printed."""

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.zoo.run import UNMENTIONED, Row


def line(row: Row) -> str:
    """One row in short."""
    if row.error:
        return f"{row.target}: ERROR {row.error}"
    verdict = "right" if row.right else "WRONG"
    says = "mixbit says it matches" if row.matches else f"mixbit says: {'; '.join(row.problems)}"
    return f"{row.target}: {verdict}, {_errors(row)}; {says}; {row.seconds:.0f} s"


def show(rows: list[Row], targets: list[str]) -> None:
    """A table for each target, and the counts."""
    for target in targets:
        of_target = [row for row in rows if row.target == target]
        Console(width=200).print(_table(of_target, target))
        for text in counts(of_target, target):
            print(text)


def counts(rows: list[Row], target: str) -> list[str]:
    """How many are right, and which are not."""
    done = [row for row in rows if not row.error]
    lists = {
        "not right": [row.name for row in rows if not row.right],
        "says matches wrongly": [row.name for row in rows if row.wrongly_matches],
        f"leaves > {UNMENTIONED:.0%} unmentioned": [row.name for row in rows if row.unmentioned],
    }
    texts = [f"{sum(row.right for row in rows)} of {len(rows)} right on {target}"]
    texts += [f"    {what}: {', '.join(names) or 'none'}" for what, names in lists.items()]
    if any(row.graph_bytes for row in done):
        fields = ("graph_bytes", "plain_graph_bytes", "weight_bytes")
        graph, plain, weights = (sum(getattr(row, field) for row in done) for field in fields)
        texts.append(
            f"    XML {graph:,} bytes ({graph / plain:.2f} of {plain:,}, as OpenVINO writes it), weights {weights:,}"
        )
    if done:
        files = np.median([row.file_bytes[0] / row.file_bytes[1] for row in done])
        times = np.median([row.latency_ms[0] / row.latency_ms[1] for row in done])
        texts.append(f"    median of float: file {files:.2f}, latency {times:.2f}")
    return texts


def _table(rows: list[Row], target: str) -> Table:
    columns = (
        "layers",
        "in float",
        "named",
        "file",
        "float file",
        "XML / weights",
        "ms",
        "float ms",
        "error by output: file, model",
    )
    table = Table("", *columns, "right", "mixbit says", "s", title=target)
    for row in rows:
        if row.error:
            table.add_row(row.name, *[""] * 8, row.error, "no", "", f"{row.seconds:.0f}")
            continue
        table.add_row(
            row.name,
            f"{row.layers}",
            f"{row.uncovered:.1%}",
            f"{row.mentioned:.1%}",
            f"{row.file_bytes[0]:,}",
            f"{row.file_bytes[1]:,}",
            f"{row.graph_bytes / row.weight_bytes:.2f}" if row.graph_bytes else "",
            *(f"{value:.2f}" for value in row.latency_ms),
            _errors(row),
            "yes" if row.right else "NO",
            "matches" if row.matches else "; ".join(row.problems),
            f"{row.seconds:.0f}",
        )
    return table


def _errors(row: Row) -> str:
    """By output: how far the file is from the simulation and from the model, the simulation from the model."""
    return ", ".join(
        f"{name} {row.from_simulation[name]:.1%} {row.from_model[name]:.1%} ({row.simulated[name]:.1%})"
        for name in row.from_model
    )
