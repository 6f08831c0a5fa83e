"""Figures written as PNG; they need matplotlib."""

from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mixbit.core import FloatArray, InvalidInput, write_bytes

#: Width and height in inches: of a figure, and of one panel among several.
SIZE = (6.4, 4.4)
PANEL = (3.6, 3.0)


def check_matplotlib(picture: str) -> None:
    """Raise InvalidInput, which names the picture, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"{picture} needs matplotlib, which is not installed; pip install 'mixbit[plot]'")


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure, in inches, that no window shows."""
    from matplotlib.figure import Figure

    return Figure(size, layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Write the figure as PNG, whole or not at all."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())


def draw_panels(path: Path, rows: Mapping[str, tuple[FloatArray, Mapping[str, FloatArray]]], truth_label: str) -> None:
    """Draw scatter plots of the true cost over the predicted loss; predicted losses that are infinite are left out.

    Args:
        path: The PNG file.
        rows: Set of N plans -> their truth [N], and metric -> its predicted losses [N].
        truth_label: What the truth is.
    """
    columns = max(len(predictions) for _, predictions in rows.values())
    figure = new_figure((PANEL[0] * columns, PANEL[1] * len(rows)))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, (truth, predictions)) in zip(grid, rows.items(), strict=True):
        for axes, (metric, predicted) in zip(axes_row, predictions.items(), strict=True):
            shown = np.isfinite(predicted)
            axes.scatter(predicted[shown], truth[shown], s=8, alpha=0.6)
            if shown.any() and predicted[shown].min() > 0:
                axes.set_xscale("log")
            axes.tick_params(axis="x", which="both", labelsize="x-small", labelrotation=45)
            axes.set_title(metric, fontsize="medium")
            axes.set_xlabel(f"predicted loss, {name} plans")
        axes_row[0].set_ylabel(truth_label)
    save_figure(path, figure)
