"""Interrupts (Ctrl-C) while code of other languages runs, which a Python exception would abort; and time limits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: After the time is up, in case the block caught that.
SECONDS_BETWEEN = 1.0


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Raise KeyboardInterrupt for an interrupt within the block when the block has ended; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if seen:
            raise KeyboardInterrupt


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
    signal.setitimer(signal.ITIMER_REAL, seconds, SECONDS_BETWEEN)
    try:
        yield
    except _TimeIsUp:
        raise error from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
