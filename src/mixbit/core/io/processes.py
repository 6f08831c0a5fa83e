"""Run jobs in worker processes; each builds the network itself, since networks are not pickled."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from mixbit.core.errors import MixbitError
from mixbit.core.io.files import scratch_folder
from mixbit.core.io.terminal import show

Job = TypeVar("Job")
Answer = TypeVar("Answer")


#: So many times in a row processes may end before any of them has answered.
MOST_LOSSES = 3


def in_processes(
    start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None], processes: int
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer as it finishes; closing the iterator ends the processes, at most one for each job.

    Jobs are asked for as `mixbit.core.io.jobs.run_jobs` says. `start` is called once in every process and returns what
    answers a job there; it, jobs and answers are pickled. The processes also end with this one. If it is killed they
    end at once, without the user's clean-up. Where one ends before its answer, all are replaced. Raises MixbitError
    where that happens MOST_LOSSES times in a row, and whatever an answer raises.
    """
    left, more, losses = dict[int, Job](), enumerate(jobs), 0
    with scratch_folder() as folder:
        # a large start in a pipe would block this process if the other one fails to begin
        file = folder / "start"
        file.write_bytes(pickle.dumps(start))
        while fill(left, more, processes):
            try:
                with closing(_in_a_pool(file, left, more, processes)) as answers:
                    for number, answer in answers:
                        losses = 0
                        yield left.pop(number), answer
            except BrokenProcessPool as error:
                losses += 1
                if losses == MOST_LOSSES:
                    raise MixbitError(
                        f"worker processes ended before their answers, {losses} times in a row: perhaps memory was "
                        "short (use fewer processes), or the script lacks `if __name__ == '__main__':`. Finished parts "
                        "are stored: the same call continues"
                    ) from error


def fill(left: dict[int, Job], more: Iterator[tuple[int, Job | None]], most: int) -> bool:
    """Ask for jobs, by their numbers, until so many are left, or there is none for now; whether any is left."""
    while len(left) < most:
        number, job = next(more, (0, None))
        if job is None:
            break
        left[number] = job
    return bool(left)


def _in_a_pool(
    start: Path, left: dict[int, Any], more: Iterator[tuple[int, Any]], processes: int
) -> Generator[tuple[int, Any], None, None]:
    """Yield the number of each job with its answer, from processes that end with the iterator.

    The caller takes what is answered from those that are left.
    """
    before = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        futures: dict[Future[Any], int] = {}
        try:
            while fill(left, more, processes):
                new = left.keys() - {*futures.values()}
                futures |= {pool.submit(_answer, start, left[number]): number for number in sorted(new)}
                if new:
                    pool.submit(os.getpid)  # until it is woken up once more, Python 3.11 watches no new process
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda each: each.exception() is not None):  # answers before errors
                    yield futures[future], future.result()
                    del futures[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if not all(future.done() for future in futures):
                for process in set(multiprocessing.active_children()) - {*before}:
                    process.terminate()


def _begin() -> None:
    """Leave Ctrl-C, a closed terminal and the drawing of progress to the process that started this one.

    Standard output is for results.
    """

    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    for number in (signal.SIGINT, signal.SIGHUP):  # which ends this process when it has cleaned up
        signal.signal(number, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()
    show("nothing")
    sys.stdout = sys.stderr


def _answer(start: Path, job: Any) -> Any:
    return _answerer(start)(job)


@cache
def _answerer(start: Path) -> Callable[[Any], Any]:
    return pickle.loads(start.read_bytes())()
