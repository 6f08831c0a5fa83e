"""The terminal: progress, signals that end a run, also while code of other languages runs, and time limits."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from operator import length_hint
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_log = logging.getLogger("mixbit")
#: How progress is shown: see `show`.
Shown = Literal["bars", "lines", "nothing"]
_shown = ContextVar[Shown]("shown", default="bars")
#: Without a terminal a line comes for each tenth of the work, but none sooner than so many seconds after another.
SECONDS_A_LINE = 5.0
#: Ctrl-C, what `kill` and a shutdown send, and what a terminal that is closed sends.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def track(items: Iterable[T], label: str | Callable[[], str], total: int | None = None) -> Generator[T, None, None]:
    """Yield the items while a bar on standard error shows the label, work done and time left.

    A label that changes is a function, asked after each item. Where standard error is not a terminal nothing is drawn,
    or lines are said, see `show`.
    """
    named = label if callable(label) else partial(str, label)
    total = total or length_hint(items) or None
    steps = _in_lines(items, named, total) if _shown.get() == "lines" and not _is_terminal() else items
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = _shown.get() == "nothing" or not _is_terminal()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task(clean(named()), total=total)
        for item in steps:
            yield item
            progress.update(task, advance=1, description=clean(named()))


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _in_lines(items: Iterable[T], named: Callable[[], str], total: int | None) -> Iterator[T]:
    """Yield the items; of what takes long, say a line for each tenth, with the time left."""
    began = said = time.monotonic()
    tenth = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said < SECONDS_A_LINE or (total and count >= total):
            continue
        if total is None:
            say(f"{named()}: {count:,} so far")
        elif count * 10 // total > tenth:
            tenth = count * 10 // total
            say(f"{named()}: {count / total:.0%}, {duration((now - began) * (total / count - 1))} left")
        else:
            continue
        said = now


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best.

    Example:
        >>> print(duration(0.05), duration(12.3), duration(200), duration(7800))
        0.1 s 12 s 3 min 2.2 h
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def phase(name: str) -> Iterator[Callable[[str], None]]:
    """Log, when the block ends well, the name of this step of a run, what it says of its result, and its seconds.

    Yields the function that takes what is to be said; without a call nothing is logged.
    """
    began, texts = time.perf_counter(), list[str]()
    yield texts.append
    for text in texts:
        _log.info("%s: %s (%s)", name, text, duration(time.perf_counter() - began))


def clean(text: str) -> str:
    r"""The text with what a terminal would obey, or cannot show, in escapes: names of layers and files may hold any.

    Example:
        >>> print(clean("conv\x1b[31m\udce9"))
        conv\x1b[31m\udce9
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def say(text: str) -> None:
    """Print a message on standard error, unless nothing is to be shown, see `show`."""
    if _shown.get() != "nothing":
        warn(text)


def warn(text: str) -> None:
    """Print a warning or an error on standard error, if there still is one."""
    with suppress(OSError):
        print(clean(text), file=sys.stderr)  # noqa: T201


class Said(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one message."""
        (warn if record.levelno >= logging.WARNING else say)(record.getMessage())


def show(what: Shown) -> None:
    """How progress is shown from now on.

    Args:
        what: "bars" on a terminal; "lines" too, where standard error is none; or "nothing", and no message but warnings
            and errors, as where another process shows the progress of this one.
    """
    _shown.set(what)


def end_like_interrupts() -> list[int]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, unless they are ignored, as under nohup.

    Python drops what is raised in a callback of the garbage collector; an interrupt that comes there is raised again.

    Returns the numbers of those that come, in order.
    """
    came: list[int] = []
    before = sys.unraisablehook

    def end(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def lost(what: "sys.UnraisableHookArgs") -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            # Raised once more, when the callback has returned; a signal also ends what sleeps.
            main = threading.main_thread().ident or 0
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            before(what)

    sys.unraisablehook = lost
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

    def lost(what: "sys.UnraisableHookArgs") -> None:
        if not issubclass(what.exc_type, _TimeIsUp):  # which comes again in a second
            before(what)

    previous, before = signal.signal(signal.SIGALRM, stop), sys.unraisablehook
    sys.unraisablehook = lost
    try:
        try:
            # And every second after, in case the block caught it, or Python dropped it in a callback.
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeIsUp:  # which may have come before the timer was stopped
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise error from None
    finally:
        sys.unraisablehook = before
        signal.signal(signal.SIGALRM, previous)
