"""The front of the page: the best plan at every size, to look through with a slider."""

from dataclasses import dataclass

import numpy as np

from mixbit.core import Plan, Scheme, Sensitivity
from mixbit.report.scales import Axis, linear, logarithmic
from mixbit.report.verdict import number_in
from mixbit.report.words import bits_of
from mixbit.results.result import Result
from mixbit.searches.front import Front, front_to_draw

#: Points of the front that the page holds.
POINTS = 240
#: Standard errors on either side of a 95 % interval.
DEVIATIONS = 1.96
#: Metrics whose losses are in nats, as measured divergences are; others have units of their own.
IN_NATS = ("fisher", "fit", "hawq", "measured")
#: A measured loss of so many times the predicted one is told.
FAR = 3.0
#: Marks nearer than this in percent of the chart, across and down, would cover one another's names.
APART = (16.0, 7.5)


@dataclass(frozen=True)
class Mark:
    """A measured point of the chart.

    Attributes:
        name: What is measured.
        x, y: Its place in percent, from the left and the top.
        label_y: That of its name, moved where names would cover one another.
        weight_bytes, divergence: What is drawn.
        is_deployed: Whether it is the deployed plan.
        is_left: Whether its name stands to the left.
    """

    name: str
    x: float
    y: float
    label_y: float
    weight_bytes: float
    divergence: float
    is_deployed: bool
    is_left: bool


@dataclass(frozen=True)
class Data:
    """What the page's script knows: N points by ascending bytes, L layers.

    Attributes:
        layers: Their names.
        schemes, weight_bits, input_bits: Of each choice; bits None in float32.
        first: [L] the choices of the first point.
        changes: [N] flat pairs of layer and choice that differ from the point before.
        deployed: [L] choices of the deployed plan; empty where the table lacks one.
        start: The point nearest to the deployed plan.
        x, y: [N] places on the chart, in percent.
        figures: Name -> [N]; `low` and `high` bound the predicted loss where its error is known.
    """

    layers: list[str]
    schemes: list[str]
    weight_bits: list[int | None]
    input_bits: list[int | None]
    first: list[int]
    changes: list[list[int]]
    deployed: list[int]
    start: int
    x: list[float]
    y: list[float]
    figures: dict[str, list[float]]


@dataclass(frozen=True)
class Explorer:
    """The chart, and what its slider goes through.

    Attributes:
        line, band: Predicted loss and its 95 % interval as SVG paths in a box of 100 by 100; no band where unknown.
        x_ticks, y_ticks: Place in percent -> value.
        planned: Place of the deployed plan's bytes, from the left.
        in_all: How many points the front has; None where more than can be listed.
        times: What the deployed plan loses by what was predicted, where that is FAR and more; else None.
    """

    line: str
    band: str
    x_ticks: dict[float, float]
    y_ticks: dict[float, float]
    marks: list[Mark]
    planned: float
    in_all: int | None
    times: float | None
    data: Data


def is_in_nats(table: Sensitivity) -> bool:
    """Whether predicted losses are in nats."""
    return table.metric.partition(":")[0] in IN_NATS


def explorer_of(result: Result, plan: Plan, table: Sensitivity) -> Explorer | None:
    """The front of bytes, with what was measured of the deployed plan and of uniform ones; None for a single plan."""
    points = front_to_draw(table, POINTS)
    if len(points) == 1:
        return None
    loss, used = points.figures["loss"], points.figures["weight_bytes"]
    measured = _measured(result, table) if is_in_nats(table) else []
    planned = result.deployed["weight_bytes"] + table.fixed_usage("weight_bytes")
    across = linear([*used.tolist(), planned, *(size for _, size, _, _ in measured)])
    up = logarithmic([*loss.tolist(), *(divergence for _, _, divergence, _ in measured)])
    x, y = [across.at(value) for value in used], [100 - up.at(value) for value in loss]
    return Explorer(
        line=_path(x, y),
        band=_band(points, x, up),
        x_ticks={across.at(value): value for value in across.ticks},
        y_ticks={100 - up.at(value): value for value in up.ticks},
        marks=_marks(measured, across, up),
        planned=across.at(planned),
        in_all=points.thinned_from,
        times=_times(plan, measured),
        data=_data(points, plan, table, x, y, planned),
    )


def _measured(result: Result, table: Sensitivity) -> list[tuple[str, float, float, bool]]:
    """Name, bytes, measured divergence of the uniform plans and the deployed one, and whether it is that one."""
    fixed, rows = table.fixed_usage("weight_bytes"), []
    for row in result.uniform:
        size, divergence = number_in(row, "predicted_bytes"), number_in(row, "divergence")
        if size is not None and divergence is not None:
            rows.append((str(row.get("scheme", "")), size + fixed, divergence, False))
    for network, name in ((result.deployed, "deployed"), (result.simulated, "deployed plan, simulated")):
        if "divergence" in network:
            rows.append((name, result.deployed["weight_bytes"] + fixed, network["divergence"], True))
            break
    return rows


def _times(plan: Plan, measured: list[tuple[str, float, float, bool]]) -> float | None:
    predicted, found = plan.predicted.get("loss", 0.0), [row[2] for row in measured if row[-1]]
    return found[0] / predicted if found and 0 < FAR * predicted <= found[0] else None


def _marks(measured: list[tuple[str, float, float, bool]], across: Axis, up: Axis) -> list[Mark]:
    """The points, names moved down where they would cover those of others."""
    marks: list[Mark] = []
    for name, size, divergence, is_deployed in sorted(measured, key=lambda row: -row[2]):
        x, y = across.at(size), 100 - up.at(divergence)
        near = [mark.label_y for mark in marks if abs(mark.x - x) < APART[0]]
        label_y = max([y, *(place + APART[1] for place in near)])
        marks.append(Mark(name, x, y, min(label_y, 100.0), size, divergence, is_deployed, is_left=x > 80))
    return marks


def _band(points: Front, x: list[float], up: Axis) -> str:
    if "standard_error" not in points.figures:
        return ""
    low, high = _interval(points)
    lower = [100 - up.at(value) for value in low]
    upper = [100 - up.at(value) for value in high]
    return _path(x, upper) + "L" + _path(x[::-1], lower[::-1])[1:] + "z"


def _interval(points: Front) -> tuple[list[float], list[float]]:
    away = DEVIATIONS * points.figures["standard_error"]
    return (points.figures["loss"] - away).tolist(), (points.figures["loss"] + away).tolist()


def _path(x: list[float], y: list[float]) -> str:
    return "M" + "L".join(f"{a:.5g} {b:.5g}" for a, b in zip(x, y, strict=True))


def _data(points: Front, plan: Plan, table: Sensitivity, x: list[float], y: list[float], planned: float) -> Data:
    changes: list[list[int]] = [[]]
    for before, after in zip(points.choices[:-1], points.choices[1:], strict=True):
        layers = np.flatnonzero(before != after)
        changes.append(np.stack([layers, after[layers]], axis=1).ravel().tolist())
    names = ("loss", "weight_bytes", "weight_ratio", "mean_bits", "latency_ms")
    figures = {name: [_short(value) for value in points.figures[name]] for name in names if name in points.figures}
    if "standard_error" in points.figures:
        low, high = _interval(points)
        figures |= {"low": [_short(value) for value in low], "high": [_short(value) for value in high]}
    known = set(plan.layers.values()) <= set(points.schemes)
    bits = [bits_of(Scheme.parse(scheme)) for scheme in points.schemes]
    return Data(
        layers=list(points.layers),
        schemes=list(points.schemes),
        weight_bits=[weight for weight, _ in bits],
        input_bits=[read for _, read in bits],
        first=points.choices[0].tolist(),
        changes=changes,
        deployed=table.columns(plan.layers).tolist() if known else [],
        start=int(np.abs(points.figures["weight_bytes"] - planned).argmin()),
        x=x,
        y=y,
        figures=figures,
    )


def _short(value: float) -> float:
    """Six digits that count, all of whole numbers."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")
