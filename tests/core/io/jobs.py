"""Work for other processes in tests, without torch, which takes seconds to load."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial

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


def lengthy(padding: bytes) -> Callable[[int], bytes]:
    """Answer with so many bytes of the number."""
    return partial(_repeated, len(padding))


def _repeated(length: int, number: int) -> bytes:
    return bytes([number]) * length


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


def once(place: str) -> Callable[[str], tuple[str, int]]:
    """Answer with the job; the first time a job is asked for, do first what it says."""

    def answer(job: str) -> tuple[str, int]:
        try:
            with open(f"{place}/{job}", "x", encoding="utf-8"):
                pass
        except FileExistsError:
            return job, os.getpid()
        if job == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "sleep":
            time.sleep(600)
        return job, os.getpid()

    return answer


def slowly(seconds: float) -> Callable[[float], float]:
    """Answer numbers with their squares after so many seconds."""

    def answer(number: float) -> float:
        time.sleep(seconds)
        return number**2

    return answer
