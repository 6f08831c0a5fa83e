"""study.png: what every metric predicts against the truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixbit.errors import InvalidInput
from mixbit.files import write_bytes

Floats = NDArray[np.float64]

#: Inches of one panel.
PANEL = (3.6, 3.0)


@dataclass(frozen=True)
class Panel:
    """One scatter plot: the predicted loss [N] and the truth [N] of the plans of one set, under a title."""

    title: str
    predicted: Floats
    truth: Floats


def check_matplotlib() -> None:
    """Raise InvalidInput where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InvalidInput("study.png needs matplotlib, which is not installed; pip install 'mixbit[plot]'")


def draw_panels(path: Path, rows: Mapping[str, list[Panel]], truth_label: str) -> None:
    """Draw the panels, one row for each set of plans; predicted losses that are infinite are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(panels) for panels in rows.values())
    figure = Figure((PANEL[0] * columns, PANEL[1] * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, panels) in zip(grid, rows.items(), strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            shown = np.isfinite(panel.predicted)
            axes.scatter(panel.predicted[shown], panel.truth[shown], s=8, alpha=0.6)
            if shown.any() and panel.predicted[shown].min() > 0:
                axes.set_xscale("log")
            axes.tick_params(axis="x", which="both", labelsize="x-small", labelrotation=45)
            axes.set_title(panel.title, fontsize="medium")
            axes.set_xlabel(f"predicted loss, {name} plans")
        axes_row[0].set_ylabel(truth_label)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())
