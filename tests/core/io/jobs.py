"""Work for other processes in tests, without torch, which takes seconds to load."""

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

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


def prepared(started: str, seconds: float = 0) -> None:
    """Leave a line in a file, as `answering` does, and wait so long."""
    answering(started)
    time.sleep(seconds)


def dying(died: str) -> None:
    """End the process the first time."""
    if not Path(died).exists():
        Path(died).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def check_kept(workers, folder: Path) -> None:
    """Two workers prepare themselves, answer, give up a job, and answer other jobs; no other process ever begins."""
    workers.begin(partial(prepared, str(folder / "started")))
    assert dict(workers.answers(partial(answering, str(folder / "first")), range(20))).keys() == {*range(20)}
    with closing(workers.answers(partial(slowly, 0.5), [1, 2, 3])) as answers:
        next(answers)
    second = dict(workers.answers(partial(answering, str(folder / "second")), range(20)))
    assert {job: answer for job, (answer, _) in second.items()} == {job: job**2 for job in range(20)}
    begun = {name: (folder / name).read_text().split() for name in ("started", "first", "second")}
    assert len({process for some in begun.values() for process in some}) <= 2
    for name in ("first", "second"):
        assert len(begun[name]) == len({*begun[name]}), "what answers is made once in every process"


def faulting() -> Callable[[int], int]:
    """Answer with how many pages the system clears for so many times 64 MiB, one after the other."""
    return _faults


def _faults(times: int) -> int:
    b"1" * 2**26  # it may find no memory that is free
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"1" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
