"""study.png: what every metric predicts against the truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixbit.picture import new_figure, save_figure

Floats = NDArray[np.float64]

#: Inches of one panel.
PANEL = (3.6, 3.0)


@dataclass(frozen=True)
class Panel:
    """One scatter plot: the predicted loss [N] and the truth [N] of the plans of one set, under a title."""

    title: str
    predicted: Floats
    truth: Floats


def draw_panels(path: Path, rows: Mapping[str, list[Panel]], truth_label: str) -> None:
    """Draw the panels, one row for each set of plans; predicted losses that are infinite are left out."""
    columns = max(len(panels) for panels in rows.values())
    figure = new_figure((PANEL[0] * columns, PANEL[1] * len(rows)))
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
    save_figure(path, figure)
