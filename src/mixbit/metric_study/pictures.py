"""Figures written as PNG; they need matplotlib."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, write_bytes

#: Width and height of a figure, in inches.
SIZE = (6.4, 4.4)


def check_matplotlib(picture: str) -> None:
    """Raise InvalidInput, which names the picture, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"{picture} needs matplotlib, which is not installed; pip install 'mixbit[plot]'")


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of that size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(size, layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Write the figure as PNG, whole or not at all."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())
