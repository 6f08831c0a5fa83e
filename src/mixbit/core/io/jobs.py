"""Work shared out: the same jobs in this process, in others of this machine, or on a Ray cluster, to the same bits."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import chain
from typing import TypeVar

import torch

from mixbit.core.engine import Engine
from mixbit.core.io.processes import in_processes
from mixbit.core.io.ray_jobs import check_cluster, on_ray

Job = TypeVar("Job")
Answer = TypeVar("Answer")
_runtime_threads: ContextVar[int | None] = ContextVar("runtime_threads", default=None)


def run_jobs(
    engine: Engine, start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None]
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer as it finishes, in any order; closing the iterator ends the work.

    A job is taken from `jobs` when a process can begin it, after the answers so far were yielded: what the next job is
    may depend on them. None among the jobs says that there is none before the next answer. Where no job is without an
    answer and there is none, the iterator waits for nothing and ends.

    `start` is called once in every process and returns what answers a job there. Between processes it, jobs and answers
    travel as pickles, never in files; functions go by the names of their modules. A process that ends before its answer
    is replaced, and its job given to another.

    Raises:
        MixbitError: processes end before their answers again and again, or those of a cluster cannot be reached.
        InvalidInput: Ray is not installed, nothing answers at the address, or a node has other versions.
    """
    asked = iter(jobs)
    first = next(asked, None)
    if first is None:  # nothing is begun for nothing
        return
    jobs = chain((first,), asked)
    if engine.name == "ray":
        yield from on_ray(partial(_in_one_thread, start), jobs, engine)
    elif engine.is_this_process:
        with one_thread():
            answer = start()
        for job in jobs:
            if job is None:
                return
            with one_thread():
                answered = answer(job)
            yield job, answered
    else:
        yield from in_processes(partial(_in_one_thread, start), jobs, engine.processes)


def check_engine(engine: Engine) -> None:
    """Say before the work what keeps an engine from doing it, which takes seconds.

    Raises:
        InvalidInput: Ray is not installed, or nothing answers at the address.
    """
    if engine.name == "ray":
        check_cluster(engine)


def _in_one_thread(start: Callable[[], Callable[[Job], Answer]]) -> Callable[[Job], Answer]:
    torch.set_num_threads(1)
    return start()


@contextmanager
def one_thread() -> Iterator[None]:
    """In the block, torch computes with one thread, as every job does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def runtimes_in_one_thread() -> Iterator[None]:
    """In the block, runtimes that load a file run it with one thread, as torch does in a job."""
    token = _runtime_threads.set(1)
    try:
        yield
    finally:
        _runtime_threads.reset(token)


def runtime_threads() -> int | None:
    """How many threads a runtime that loads a file takes; None for as many as it likes."""
    return _runtime_threads.get()
