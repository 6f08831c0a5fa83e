"""Work for other processes in tests, without torch, which takes seconds to load."""

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
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -3:
        time.sleep(600)
    return number**2, os.getpid()


def failing() -> Callable[[int], int]:
    raise ZeroDivisionError("at the start")


class NeverArrives:
    """What can be sent and cannot be received."""

    def __reduce__(self):
        return _fail_to_arrive, ()

    def __call__(self) -> Callable[[int], int]:
        raise AssertionError("it did arrive")


def _fail_to_arrive() -> None:
    raise LookupError("cannot be made again")
