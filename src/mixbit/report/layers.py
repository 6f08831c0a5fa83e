"""The layers of the page: what each takes, costs, and how the runtime executed it."""

from dataclasses import dataclass

import numpy as np

from mixbit.core import Scheme, Sensitivity
from mixbit.report.words import bits_of, nats, unit_of
from mixbit.results.result import FOLDED, LayerRow, Result, in_float

#: Bits up to which bars grow; float32 stands above.
MOST_BITS, FLOAT_HEIGHT = 8, 10


@dataclass(frozen=True)
class Cost:
    """Predicted loss of a scheme and its standard error, where there are some."""

    scheme: str
    loss: float
    error: float | None


@dataclass(frozen=True)
class LayerLine:
    """One layer.

    Attributes:
        number: From 1, in execution order.
        weight_bits, input_bits: None in float32.
        at_run_time: Whether the range of the input is taken at run time.
        cost: Of its scheme; None without a table.
        narrowest: Cost of the scheme with the fewest bytes that it is offered, by which layers compare.
        kind: How it was executed, in a word.
    """

    number: int
    name: str
    row: LayerRow
    weight_bits: int | None
    input_bits: int | None
    at_run_time: bool
    cost: Cost | None
    narrowest: Cost | None
    kind: str


@dataclass(frozen=True)
class Strip:
    """A row of bars, one a layer.

    Attributes:
        title: What is drawn.
        highest: What the highest bar stands for.
        path: The bars, as an SVG path in a box of one by 100 for each layer.
        whiskers: Errors of the bars, likewise; empty without any.
    """

    title: str
    highest: str
    path: str
    whiskers: str


def layers_of(result: Result, table: Sensitivity | None) -> list[LayerLine]:
    """All layers in execution order."""
    floats, lines = set(in_float(result.layers)), []
    for number, (name, row) in enumerate(result.layers.items()):
        scheme = Scheme.parse(row.scheme)
        weight_bits, input_bits = bits_of(scheme)
        costs = None if table is None else _costs(table, number)
        lines.append(
            LayerLine(
                number + 1,
                name,
                row,
                weight_bits,
                input_bits,
                at_run_time=scheme.input is not None and scheme.input.dynamic,
                cost=None if costs is None else costs.get(row.scheme),
                narrowest=None if costs is None else next(iter(costs.values())),
                kind="float" if name in floats else _kind(row),
            )
        )
    return lines


def unit_of_costs(lines: list[LayerLine]) -> float:
    """The factor in which the page gives predicted losses of layers."""
    return unit_of(max((line.cost.loss for line in lines if line.cost is not None), default=1.0))


def _kind(row: LayerRow) -> str:
    if row.executed == FOLDED:
        return "folded"
    if "int8" in row.executed:
        return "int8"
    return row.executed if row.executed == "not reported" else "look-up" if "Gather" in row.executed else "float"


def _costs(table: Sensitivity, layer: int) -> dict[str, Cost]:
    """Scheme -> cost, of those that the layer is offered, by bytes."""
    offered = np.flatnonzero(np.isfinite(table.loss[layer]))
    order = offered[np.argsort(table.usage["weight_bytes"][layer, offered], kind="stable")]
    errors = [float(error) if np.isfinite(error) else None for error in table.standard_error[layer, order]]
    costs = zip(order.tolist(), table.loss[layer, order].tolist(), errors, strict=True)
    return {table.choices[column]: Cost(table.choices[column], loss, error) for column, loss, error in costs}


def height_of(bits: int | None) -> float:
    """Percent of the box that a bar of so many bits takes."""
    return 100 * (FLOAT_HEIGHT if bits is None else min(bits, MOST_BITS)) / FLOAT_HEIGHT


def strips_of(lines: list[LayerLine]) -> list[Strip]:
    """Bits, bytes and costs along the network."""
    strips = [
        _strip_of_bits("bits of weights", [line.weight_bits for line in lines]),
        _strip_of_bits("bits of inputs", [line.input_bits for line in lines]),
    ]
    sizes = [line.row.weight_bytes for line in lines]
    strips.append(Strip("bytes", f"up to {max(sizes):,}", _bars([100 * size / max(1, *sizes) for size in sizes]), ""))
    costs = [line.cost for line in lines if line.cost is not None]
    if len(costs) == len(lines):
        strips.append(_strip_of_costs(costs))
    return strips


def _strip_of_bits(title: str, bits: list[int | None]) -> Strip:
    highest = "float" if None in bits else str(max(each for each in bits if each is not None))
    return Strip(title, f"up to {highest}", _bars([height_of(each) for each in bits]), "")


def _strip_of_costs(costs: list[Cost]) -> Strip:
    """Costs with two standard errors to either side."""
    ends = [(max(0.0, cost.loss - 2 * (cost.error or 0)), cost.loss + 2 * (cost.error or 0)) for cost in costs]
    top = max(high for _, high in ends)
    unit = 100 / top if top > 0 else 0.0
    whiskers = [
        f"M{place + 0.5:g} {100 - unit * high:.1f}V{100 - unit * low:.1f}"
        for place, (low, high) in enumerate(ends)
        if high > max(low, 0)
    ]
    bars = _bars([max(0.0, unit * cost.loss) for cost in costs])
    return Strip("predicted loss", f"up to {nats(top)}", bars, "".join(whiskers))


def _bars(heights: list[float]) -> str:
    return "".join(f"M{place + 0.1:g} 100v{-height:.3g}h.8v{height:.3g}z" for place, height in enumerate(heights))
