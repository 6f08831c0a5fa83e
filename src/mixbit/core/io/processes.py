"""Run jobs in worker processes; each builds the network itself, since networks are not pickled."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from mixbit.core.errors import MixbitError
from mixbit.core.io.files import scratch_folder
from mixbit.core.io.memory import keep_freed_memory
from mixbit.core.io.terminal import show

Job = TypeVar("Job")
Answer = TypeVar("Answer")


#: So many times in a row processes may end before any of them has answered.
MOST_LOSSES = 3


@contextmanager
def in_processes(most: int) -> Iterator["Processes"]:
    """In the block, so many worker processes at most: begun when there is work, and ended with the block.

    They also end with this process. If it is killed they end at once, without the user's clean-up.
    """
    with scratch_folder() as folder:
        processes = Processes(folder, most)
        try:
            yield processes
        finally:
            processes.end()


class Processes:
    """Worker processes of this machine, as `mixbit.core.io.jobs.Workers` describes them.

    What every process is to call travels in a file: a large one in a pipe would block this process if another fails to
    begin.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.numbers = folder, most, count()
        self.pool = _Pool(most)

    def begin(self, prepare: Callable[[], object]) -> None:
        """Begin all, and let each prepare itself."""
        file = self._sent(prepare)
        for _ in range(self.most):
            self.pool.submit(_prepare, file)

    def answers(
        self, start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer as it finishes; where a process ends before its answer, all are replaced.

        Raises MixbitError where that happens MOST_LOSSES times in a row, and whatever an answer raises.
        """
        left, more, losses = dict[int, Job](), enumerate(jobs), 0
        file = self._sent(start)
        while fill(left, more, self.most):
            try:
                for number, answer in self._answered(file, left, more):
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
                self.pool.end()
                self.pool = _Pool(self.most)

    def end(self) -> None:
        """End the processes, also amid their work."""
        self.pool.end()

    def _sent(self, called: Callable[[], object]) -> Path:
        file = self.folder / f"start-{next(self.numbers)}"
        file.write_bytes(pickle.dumps(called))
        return file

    def _answered(
        self, start: Path, left: dict[int, Any], more: Iterator[tuple[int, Any]]
    ) -> Generator[tuple[int, Any], None, None]:
        """Yield the number of each job with its answer, which the caller then takes from those that are left."""
        futures: dict[Future[Any], int] = {}
        try:
            while fill(left, more, self.most):
                new = left.keys() - {*futures.values()}
                futures |= {self.pool.submit(_answer, start, left[number]): number for number in sorted(new)}
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda each: each.exception() is not None):  # answers before errors
                    yield futures[future], future.result()
                    del futures[future]
        finally:
            for future in futures:  # what runs already is waited for by what comes next
                future.cancel()


class _Pool:
    """Processes that end together."""

    def __init__(self, most: int) -> None:
        self.executor = ProcessPoolExecutor(most, multiprocessing.get_context("spawn"), _begin)
        self.processes = set[BaseProcess]()
        self.futures = set[Future[Any]]()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Let a process call the function; one more is begun where none has nothing to do."""
        before = multiprocessing.active_children()
        future = self.executor.submit(function, *arguments)
        self.executor.submit(os.getpid)  # until it is woken up once more, Python 3.11 watches no new process
        self.processes |= {*multiprocessing.active_children()} - {*before}
        self.futures = {future, *(each for each in self.futures if not each.done())}
        return future

    def end(self) -> None:
        """End the processes; at once where one of them works."""
        if not all(future.done() for future in self.futures):
            for process in self.processes:
                process.terminate()
        self.executor.shutdown(cancel_futures=True)  # waits: its thread may not outlive its pipes


def fill(left: dict[int, Job], more: Iterator[tuple[int, Job | None]], most: int) -> bool:
    """Ask for jobs, by their numbers, until so many are left, or there is none for now; whether any is left."""
    while len(left) < most:
        number, job = next(more, (0, None))
        if job is None:
            break
        left[number] = job
    return bool(left)


def _begin() -> None:
    """Leave Ctrl-C, a closed terminal and the drawing of progress to the process that started this one.

    Standard output is for results, and memory for the next job.
    """

    def end_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os._exit(1)

    for number in (signal.SIGINT, signal.SIGHUP):  # which ends this process when it has cleaned up
        signal.signal(number, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()
    show("nothing")
    keep_freed_memory()
    sys.stdout = sys.stderr


def _prepare(file: Path) -> None:
    pickle.loads(file.read_bytes())()


def _answer(start: Path, job: Any) -> Any:
    return _answerer(start)(job)


@lru_cache(maxsize=1)
def _answerer(start: Path) -> Callable[[Any], Any]:
    return pickle.loads(start.read_bytes())()
