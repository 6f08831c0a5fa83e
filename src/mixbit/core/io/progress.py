"""track(): the only place that draws progress."""

import sys
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_DRAWS = ContextVar("draws", default=True)


def track(items: Iterable[T], label: str | Callable[[], str], total: int | None = None) -> Generator[T, None, None]:
    """Yield the items while a bar on standard error shows the label, work done and time left.

    A label that changes is a function, asked after each item. Nothing is drawn where standard error is not a terminal.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = not (_DRAWS.get() and sys.stderr.isatty())
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        if isinstance(label, str):
            yield from progress.track(items, total=total, description=label)
            return
        task = progress.add_task(label(), total=total)
        for item in items:
            yield item
            progress.update(task, advance=1, description=label())


def draw_nothing() -> None:
    """From now on, since another process draws the progress of this one."""
    _DRAWS.set(False)
