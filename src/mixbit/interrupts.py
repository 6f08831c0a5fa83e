"""Interrupts (Ctrl-C) while code of other languages runs, which a Python exception would abort."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def children_uninterrupted() -> Iterator[None]:
    """Processes started within the block never see Ctrl-C, from their start; whoever started them ends them."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
