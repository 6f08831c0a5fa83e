"""Work shared out among processes: what cannot be sent between them, each makes for itself."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from mixbit.core import MixbitError, children_uninterrupted, draw_nothing

Job = TypeVar("Job")
Answer = TypeVar("Answer")

#: How long a process may take to end by itself.
SECONDS_TO_END = 5


def in_processes(
    start: Callable[[], Callable[[Job], Answer]], jobs: Sequence[Job], processes: int
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer, in the order in which they finish; close the iterator to end the processes.

    The processes end when this one does, however it ends.

    Args:
        start: Called once in every fresh process, returns what answers a job there; it, jobs and answers are pickled.
        jobs: What to answer.
        processes: How many, at most one a job.

    Raises:
        MixbitError: as an answer raised it; or a process failed otherwise, or was killed.
    """
    waiting = deque(jobs)
    with _started(start, min(processes, len(waiting))) as idle:
        busy: list[tuple[_Worker, Job]] = []
        while waiting or busy:
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                worker.send(job)
                busy.append((worker, job))
            ready = set(wait([worker.connection for worker, _ in busy]))
            done = [one for one in busy if one[0].connection in ready]
            busy = [one for one in busy if one[0].connection not in ready]
            for worker, job in done:
                yield job, worker.receive()
                idle.append(worker)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection

    def send(self, job: Any) -> None:
        try:
            self.connection.send(job)
        except OSError:
            self.receive()  # raises what it told before it ended, or how it ended

    def receive(self) -> Any:
        try:
            answer, error = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if error is not None:
            raise error
        return answer

    def _ended(self) -> MixbitError:
        self.process.join()
        code = self.process.exitcode
        if code is not None and code < 0:
            why = f"was killed by signal {-code}, perhaps for want of memory; use fewer processes"
        else:
            why = f"ended with exit code {code}; a script that uses processes needs `if __name__ == '__main__':`"
        return MixbitError(f"a worker process {why}. What is finished is kept: the same call continues")


@contextmanager
def _started(start: Callable[[], Callable[[Any], Any]], count: int) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # which the first start would do otherwise, and let interrupts through again
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            with children_uninterrupted():
                process.start()
                workers.append(_Worker(process, ours))
            theirs.close()  # so that the end of the process is the end of the pipe
        for worker in workers:
            worker.send(start)  # not as an argument: start() would wait for ever for a process that ends before
        yield list(workers)
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.connection.close()  # those that wait for a job end by themselves
        for worker in workers:
            worker.process.join(SECONDS_TO_END)
            worker.process.kill()  # where it is deep in a computation
            worker.process.join()


def _serve(connection: Connection) -> None:
    draw_nothing()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # with what it has to clean up
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout = sys.stderr  # standard output is for the results of whoever started this process
    try:
        answer = connection.recv()()
        while True:
            job = connection.recv()
            connection.send((answer(job), None))
    except (EOFError, ConnectionError):  # whoever asked is gone
        return
    except MixbitError as error:
        connection.send((None, error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        connection.send((None, MixbitError(f"a worker process failed: {text}")))
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending; an exception amid that would be printed


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_END)
        os._exit(1)  # where it is deep in a computation
