"""Work for other processes in tests, without torch, which takes seconds to load."""

import atexit
import os
import signal
import time
from collections.abc import Callable

from mixbit.core.errors import InfeasibleBudget


def answering(started: str, padding: bytes = b"") -> Callable[[int], tuple[int, int]]:
    """Leave a line in a file; then answer numbers with their squares, and misbehave for others."""
    with open(started, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return square


def square(number: int) -> tuple[int, int]:
    if number == -1:
        raise InfeasibleBudget("no plan", binding=(2,))
    if number == -2:
        raise ZeroDivisionError("the user's own error")
    if number == -3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -4:
        time.sleep(600)
    if number == -5:
        time.sleep(1)
    return number**2, os.getpid()


def failing() -> Callable[[int], int]:
    raise ZeroDivisionError("at the start")


def refusing() -> Callable[[int], int]:
    """Refuse, and hear that it is to end when it is about to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    atexit.register(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
    atexit.register(time.sleep, 0.5)  # before that one
    raise InfeasibleBudget("not for me")


class NeverArrives:
    """What can be sent and cannot be received."""

    def __init__(self, padding: bytes) -> None:
        self.padding = padding

    def __reduce__(self):
        return _fail_to_arrive, (self.padding,)

    def __call__(self) -> Callable[[int], int]:
        raise AssertionError("it did arrive")


def _fail_to_arrive(padding: bytes) -> None:
    raise LookupError("cannot be made again")
