"""Work shared out: the same jobs in this process, in others of this machine, or on a Ray cluster, to the same bits."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from mixbit.core.engine import Engine
from mixbit.core.io.processes import in_processes
from mixbit.core.io.ray_jobs import on_ray

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def run_jobs(
    engine: Engine, start: Callable[[], Callable[[Job], Answer]], jobs: Sequence[Job]
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer as it finishes, in any order; closing the iterator ends the work.

    `start` is called once in every process and returns what answers a job there. Between processes it, jobs and answers
    travel as pickles, never in files; functions go by the names of their modules. A process that ends before its answer
    is replaced, and its job given to another.

    Raises:
        MixbitError: processes end before their answers again and again, or those of a cluster cannot be reached.
        InvalidInput: Ray is not installed, nothing answers at the address, or a node has other versions.
    """
    if not jobs:
        return
    if engine.name == "ray":
        yield from on_ray(partial(_in_one_thread, start), jobs, engine)
    elif engine.is_this_process:
        with one_thread():
            answer = start()
        for job in jobs:
            with one_thread():
                answered = answer(job)
            yield job, answered
    else:
        yield from in_processes(partial(_in_one_thread, start), jobs, engine.processes)


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
