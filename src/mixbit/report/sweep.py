"""The page of a sweep: a table of all cells, and for each model a picture of bytes against accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from mixbit.report.pages import rendered
from mixbit.report.report import REPORT_FILE
from mixbit.report.scales import linear, logarithmic
from mixbit.results.sweep import Sweep, SweepCell

#: The file.
PAGE_FILE = "sweep.html"
#: Colours of targets in style.css; further ones begin again.
COLOURS = 6


@dataclass(frozen=True)
class CellLine:
    """A cell of the table.

    Attributes:
        number: From 1, in the order of the sweep.
        link: Address of its report, from the page on; None where it has none.
        colour: Of its target.
    """

    number: int
    cell: SweepCell
    link: str | None
    colour: int


@dataclass(frozen=True)
class Picture:
    """The cells of one model, places in percent from the left and the top.

    Attributes:
        what: What goes up: the accuracy, or the divergence from the float network.
        marks: (x, y, line) of each cell that has both figures.
        in_float: Place of the float network's accuracy, from the top; None where it is not known.
        x_ticks, y_ticks: Place -> value.
        targets: Target -> its colour.
    """

    model: str
    what: str
    marks: list[tuple[float, float, CellLine]]
    in_float: float | None
    x_ticks: dict[float, float]
    y_ticks: dict[float, float]
    targets: dict[str, int]


def sweep_page_of(sweep: Sweep) -> str:
    """The page's text."""
    names = dict.fromkeys(cell.target for cell in sweep.cells)
    targets = {target: place % COLOURS for place, target in enumerate(names)}
    lines = [
        CellLine(number, cell, _link(cell), targets[cell.target]) for number, cell in enumerate(sweep.cells, start=1)
    ]
    pictures = [picture_of(name, [line for line in lines if line.cell.model == name]) for name in sweep.models]
    states = [cell.state for cell in sweep.cells]
    values = {
        "sweep": sweep,
        "lines": lines,
        "pictures": [picture for picture in pictures if picture is not None],
        "counts": {state: states.count(state) for state in ("done", "differs", "failed", "waiting")},
        "has_accuracy": any(cell.accuracy is not None for cell in sweep.cells),
    }
    return rendered("sweep.html.jinja", values)


def _link(cell: SweepCell) -> str | None:
    return f"{quote(cell.folder)}/{REPORT_FILE}" if cell.state in ("done", "differs") else None


def picture_of(model: str, lines: Sequence[CellLine]) -> Picture | None:
    """The picture of a model's cells; None where none has figures."""
    name = "accuracy" if any(line.cell.accuracy is not None for line in lines) else "divergence"
    points = [
        (line.cell.weight_bytes, getattr(line.cell, name), line)
        for line in lines
        if line.cell.weight_bytes is not None and getattr(line.cell, name) is not None
    ]
    if not points:
        return None
    in_float = next((line.cell.float_accuracy for _, _, line in points if name == "accuracy"), None)
    heights = [height for _, height, _ in points] + ([] if in_float is None else [in_float])
    across, up = linear([size for size, _, _ in points]), (linear if name == "accuracy" else logarithmic)(heights)
    return Picture(
        model=model,
        what=name,
        marks=[(across.at(size), 100 - up.at(height), line) for size, height, line in points],
        in_float=None if in_float is None else 100 - up.at(in_float),
        x_ticks={across.at(value): value for value in across.ticks},
        y_ticks={100 - up.at(value): value for value in up.ticks},
        targets={line.cell.target: line.colour for _, _, line in points},
    )
