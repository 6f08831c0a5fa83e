"""Pictures, among them front.png; needs matplotlib."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from mixbit.errors import InvalidInput
from mixbit.files import write_bytes
from mixbit.search import Front

#: Inches.
SIZE = (6.4, 4.4)


def check_matplotlib(picture: str) -> None:
    """Raise InvalidInput, which names the picture, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"{picture} needs matplotlib, which is not installed; pip install 'mixbit[plot]'")


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure, in inches, that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(path: Path, figure: Any) -> None:
    """Write the figure as PNG, whole or not at all."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())


def draw_front(path: Path, front: Front) -> None:
    """Draw the predicted loss of every plan over its use of the resource, and mark those with one scheme for all."""
    figure = new_figure(SIZE)
    axes = figure.subplots()
    used, loss = front.figures[front.resource], front.figures["loss"]
    axes.step(used, loss, where="post", linewidth=1)
    for index in range(len(front)):
        schemes = {front.schemes[column] for column in front.choices[index]}
        if len(schemes) == 1:
            axes.annotate(f"uniform {schemes.pop()}", (used[index], loss[index]), fontsize="small")
            axes.plot(used[index], loss[index], "o", markersize=4)
    if loss.min() > 0:
        axes.set_yscale("log")
    axes.set_xlabel(front.resource)
    axes.set_ylabel(f"predicted loss, {front.made_by.partition(' ')[0]}")
    axes.set_title(f"{len(front)} plans that no other plan beats", fontsize="medium")
    save_figure(path, figure)
