"""The terminal: progress, signals that end a run, also while code of other languages runs, and time limits."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_DRAWS = ContextVar("draws", default=True)
#: Ctrl-C, what `kill` and a shutdown send, and what a terminal that is closed sends.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def track(items: Iterable[T], label: str | Callable[[], str], total: int | None = None) -> Generator[T, None, None]:
    """Yield the items while a bar on standard error shows the label, work done and time left.

    A label that changes is a function, asked after each item. Nothing is drawn where standard error is not a terminal.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (_DRAWS.get() and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        named = label if callable(label) else partial(str, label)

        def text() -> str:
            return clean(named())

        task = progress.add_task(text(), total=total or length_hint(items) or None)
        for item in items:
            yield item
            progress.update(task, advance=1, description=text())


def clean(text: str) -> str:
    r"""The text with what a terminal would obey, or cannot show, in escapes: names of layers and files may hold any.

    Example:
        >>> print(clean("conv\x1b[31m\udce9"))
        conv\x1b[31m\udce9
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def say(text: str) -> None:
    """Print a message on standard error, if there still is one."""
    with suppress(OSError):
        print(clean(text), file=sys.stderr)  # noqa: T201


class Said(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one message."""
        say(record.getMessage())


def draw_nothing() -> None:
    """Draw no progress from now on, since another process draws that of this one."""
    _DRAWS.set(False)


def end_like_interrupts() -> list[int]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, unless they are ignored, as under nohup.

    Returns the numbers of those that come, in order.
    """
    came: list[int] = []

    def end(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    return came


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Handle signals that raise an exception, as Ctrl-C does, when the block has ended; main thread only.

    Code of other languages would be aborted by a Python exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}

    def handle(handlers: Mapping[signal.Signals, Any]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # none comes between two of them
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)

    handle(dict.fromkeys(before, lambda number, _: came.append(number)))
    try:
        yield
    finally:
        handle(before)
        for number in came:
            signal.raise_signal(number)


class _TimeIsUp(BaseException):
    """A BaseException, since the block may catch every Exception."""


@contextmanager
def time_limit(seconds: float | None, error: Exception) -> Iterator[None]:
    """Raise the error where the block takes longer; in the main thread, and once code of other languages returns."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsUp

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and every second after, in case the block caught it
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp:  # which may have come before the timer was stopped
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise error from None
    finally:
        signal.signal(signal.SIGALRM, previous)
