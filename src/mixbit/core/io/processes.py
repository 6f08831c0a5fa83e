"""Run jobs in worker processes; each builds the network itself, since networks are not pickled."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
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
    start: Callable[[], Callable[[Job], Answer]], jobs: Sequence[Job], processes: int
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer as it finishes; closing the iterator ends the processes, at most one for each job.

    `start` is called once in every process and returns what answers a job there; it, jobs and answers are pickled. The
    processes also end with this one. If it is killed they end at once, without the user's clean-up. Where one ends
    before its answer, all are replaced. Raises MixbitError where that happens MOST_LOSSES times in a row, and whatever
    an answer raises.
    """
    left, losses = dict(enumerate(jobs)), 0
    with scratch_folder() as folder:
        # a large start in a pipe would block this process if the other one fails to begin
        file = folder / "start"
        file.write_bytes(pickle.dumps(start))
        while left:
            try:
                with closing(_in_a_pool(file, left, processes)) as answers:
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


def _in_a_pool(start: Path, jobs: Mapping[int, Job], processes: int) -> Generator[tuple[int, Any], None, None]:
    """Yield the number of each job with its answer, from processes that end with the iterator."""
    before = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), context, _begin) as pool:
        futures: dict[Future[Any], int] = {}
        try:
            futures |= {pool.submit(_answer, start, job): number for number, job in jobs.items()}
            pool.submit(os.getpid)  # until it is woken up once more, Python 3.11 does not watch the latest process
            for future in as_completed([*futures]):
                yield futures[future], future.result()
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
