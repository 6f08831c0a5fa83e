"""Work shared out: the same jobs in this process, in others of this machine, or on a Ray cluster, to the same bits."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import chain
from typing import TypeVar

import torch

from mixbit.core.engine import Engine
from mixbit.core.io.processes import Processes, in_processes
from mixbit.core.io.ray_jobs import Crew, check_cluster, on_ray

Job = TypeVar("Job")
Answer = TypeVar("Answer")
_runtime_threads: ContextVar[int | None] = ContextVar("runtime_threads", default=None)


class Workers:
    """Processes that answer jobs, or this one.

    Functions and jobs travel to others as pickles, never in files; functions go by the names of their modules.
    """

    def __init__(self, others: Processes | Crew | None) -> None:
        self._others = others

    def begin(self, prepare: Callable[[], object]) -> None:
        """Let other processes call a function while this one goes on; what it raises is not told."""
        if self._others is not None:
            self._others.begin(partial(_in_one_thread, prepare))

    def answers(
        self, start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer as it finishes, in any order; closing the iterator gives up the rest.

        A job is taken from `jobs` when a process can begin it, after the answers so far were yielded: what the next job
        is may depend on them. None among the jobs says that there is none before the next answer. Where no job is
        without an answer and there is none, the iterator waits for nothing and ends.

        `start` is called once in every process and returns what answers a job there. A process that ends before its
        answer is replaced, and its job given to another.

        Raises:
            MixbitError: processes end before their answers again and again, or those of a cluster cannot be reached.
            InvalidInput: Ray is not installed, nothing answers at the address, or a node has other versions.
        """
        asked = iter(jobs)
        first = next(asked, None)
        if first is None:  # nothing is begun for nothing
            return
        jobs = chain((first,), asked)
        if self._others is not None:
            yield from self._others.answers(partial(_in_one_thread, start), jobs)
            return
        with one_thread():
            answer = start()
        for job in jobs:
            if job is None:
                return
            with one_thread():
                answered = answer(job)
            yield job, answered


@contextmanager
def workers(engine: Engine) -> Iterator[Workers]:
    """In the block, what answers jobs where the engine says; the processes are begun by the first, and then kept."""
    if engine.is_this_process:
        yield Workers(None)
        return
    with on_ray(engine) if engine.name == "ray" else in_processes(engine.processes) as others:
        yield Workers(others)


def run_jobs(
    engine: Engine, start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None]
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer, as `Workers.answers`; closing the iterator ends the work."""
    with workers(engine) as some:
        yield from some.answers(start, jobs)


def check_engine(engine: Engine) -> None:
    """Say before the work what keeps an engine from doing it, which takes seconds.

    Raises:
        InvalidInput: Ray is not installed, or nothing answers at the address.
    """
    if engine.name == "ray":
        check_cluster(engine)


def _in_one_thread(called: Callable[[], Answer]) -> Answer:
    torch.set_num_threads(1)
    return called()


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
