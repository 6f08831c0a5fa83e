"""Run jobs on a Ray cluster: actors that are replaced when they or their nodes go, and jobs that are given again."""

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from mixbit.core.engine import Engine
from mixbit.core.errors import InvalidInput, MixbitError
from mixbit.core.io.processes import fill
from mixbit.core.io.ray_worker import versions
from mixbit.core.io.terminal import say
from mixbit.core.io.user_code import reason_of, users_code

Job = TypeVar("Job")
Answer = TypeVar("Answer")

#: So many workers may be lost with one job, or in a row before any of them has begun.
MOST_LOSSES = 5
#: A job that takes so many times the usual seconds is given to a worker that has nothing to do as well.
SLOW = 3.0
#: Seconds that an address has to answer, and after which it is told that no worker has begun.
SECONDS_TO_ANSWER, SECONDS_TO_TELL = 15, 20


def on_ray(
    start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None], engine: Engine
) -> Generator[tuple[Job, Answer], None, None]:
    """Yield each job with its answer as it finishes; closing the iterator ends the workers.

    `start` travels to each node once. See `mixbit.core.io.jobs.run_jobs`.
    """
    ray = _ray()
    with _connected(ray, engine):
        crew = _Crew(ray, start, jobs, engine.processes)
        try:
            yield from crew.answers()
        finally:
            crew.end()


def check_cluster(engine: Engine) -> None:
    """Raise InvalidInput where Ray is not installed, or nothing answers at the address."""
    ray, address = _ray(), _address_of(engine)
    if address is not None and not ray.is_initialized():
        _check_answers(address)


def _address_of(engine: Engine) -> str | None:
    return engine.address or os.environ.get("RAY_ADDRESS")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent
    try:
        return import_module("ray")
    except ImportError as error:
        raise InvalidInput("--engine ray needs Ray: pip install 'mixbit[ray]'") from error


@contextmanager
def _connected(ray: Any, engine: Engine) -> Iterator[None]:
    """In the block there is a cluster; one that the caller has connected to is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    address = _address_of(engine)
    # `local` starts one of its own, also where another runs on this machine
    options: dict[str, Any] = {"address": "local", "num_cpus": engine.processes, "include_dashboard": False}
    if address is not None:
        _check_answers(address)
        options = {"address": address}
    handler = signal.getsignal(signal.SIGTERM)
    failure = (
        "Ray: no cluster starts on this machine" if address is None else f"--ray-address {address}: cannot join it"
    )
    way_out = (
        "look at the logs in /tmp/ray/session_latest; `ray start --head` starts a cluster that --ray-address auto joins"
    )
    kind = MixbitError if address is None else InvalidInput
    with users_code(lambda error: kind(f"{failure} ({reason_of(error)}); {way_out}")):
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process without cleaning up
    try:
        yield
    finally:
        ray.shutdown()


@cache  # once for an address that answers: it takes seconds
def _check_answers(address: str) -> None:
    """Raise InvalidInput where nothing answers at an address, for which Ray would wait for minutes."""
    wrong = f"--ray-address {address}: no Ray cluster answers there within {SECONDS_TO_ANSWER} s"
    way_out = "look at `ray status` on the head node"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise InvalidInput(f"--ray-address {address}: give auto, HOST:PORT, or ray://HOST:PORT")
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER / 3).close()
        except (OSError, OverflowError) as error:
            raise InvalidInput(f"{wrong} ({error}); {way_out}") from error
        if address.startswith("ray://"):
            return
        way_out = "though something listens; the port of the head node is 6379 unless told"
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        healthy = subprocess.run(command, check=False, capture_output=True, timeout=SECONDS_TO_ANSWER).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise InvalidInput(f"{wrong}, {way_out}")


def _worker_class() -> type:
    """The class of the workers; made here so that it travels by value: a node may lack mixbit, or have another."""

    class Worker:
        """Answers jobs in a process of a node."""

        def enter(self, wanted: Mapping[str, str], paths: Sequence[str]) -> tuple[str, str | None]:
            """The node's address, and what keeps it from computing the caller's numbers."""
            import os  # noqa: PLC0415
            import sys  # noqa: PLC0415
            from importlib import import_module  # noqa: PLC0415

            node = import_module("ray").util.get_node_ip_address()
            # Ray puts the current folder of the caller first, whose modules nobody asked for.
            sys.path[:] = dict.fromkeys([*paths, *(path for path in sys.path if path != os.path.abspath("."))])
            try:
                self.here = import_module("mixbit.core.io.ray_worker")
            except ImportError as error:
                return node, f"cannot import mixbit ({error})"
            for name, value in self.here.versions().items():
                if wanted[name] != value:
                    return node, f"has {name} {value}, and the caller {wanted[name]}"
            return node, None

        def begin(self, start: bytes) -> None:
            """Make what answers jobs."""
            self.answer_of = self.here.begin(start)

        def answer(self, job: Any) -> Any:
            """The answer of a job."""
            return self.answer_of(job)

    return Worker


@dataclass
class _Worker:
    """A worker, and what it does.

    Attributes:
        job: Number of the job that it does; None while it begins.
        since: When it began that, by the clock that only goes forward.
        node: Address of its node; empty until it has entered.
    """

    actor: Any
    job: int | None = None
    since: float = field(default_factory=time.monotonic)
    node: str = ""


class _Crew:
    """The workers of some jobs, and who does what."""

    def __init__(self, ray: Any, start: Any, jobs: Iterable[Any], count: int) -> None:
        self.ray, self.more, self.count = ray, enumerate(jobs), count
        self.jobs: dict[int, Any] = {}  # those that were asked for
        self.new_actor = ray.remote(_worker_class()).options(num_cpus=1, scheduling_strategy="SPREAD").remote
        try:
            self.start = ray.put(ray.cloudpickle.dumps(start))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError, OSError) as error:
            raise MixbitError(f"Ray: its object store takes no more ({error}); give it more memory or disk") from error
        self.waiting = deque[int]()
        self.left: dict[int, Any] = {}  # those without an answer
        self.busy: dict[Any, _Worker] = {}  # by the reference to what it is to return
        self.idle: list[_Worker] = []
        self.seconds: list[float] = []
        self.losses: Counter[int | None] = Counter()  # by job; None for those that were lost before they began
        self.told = False

    def answers(self) -> Generator[tuple[Any, Any], None, None]:
        """Yield each job with its answer."""
        errors = self.ray.exceptions
        while fill(self.left, self.more, self.count):
            self._take()
            self._share_out()
            ready, _ = self.ray.wait([*self.busy], num_returns=1, timeout=1.0)
            for reference in ready:
                worker = self.busy.pop(reference)
                try:
                    returned = self.ray.get(reference)
                except errors.RayTaskError as error:
                    self.idle.append(worker)  # to be ended with the others
                    raise self._of_worker(worker, error.cause) from error
                except errors.RayError as error:
                    self._lost(worker, error)
                    continue
                number = worker.job
                if number is None:
                    self._begun(worker, returned)
                    continue
                self.idle.append(worker)
                if number in self.left:  # else the same job was done sooner by another
                    self.seconds.append(time.monotonic() - worker.since)
                    del self.left[number]
                    yield self.jobs[number], returned

    def end(self) -> None:
        """End the workers, also amid their work."""
        for worker in (*self.idle, *self.busy.values()):
            self.ray.kill(worker.actor)

    def _take(self) -> None:
        """Let jobs wait that are new."""
        new = [number for number in self.left if number not in self.jobs]
        self.waiting.extend(new)
        self.jobs |= {number: self.left[number] for number in new}

    def _share_out(self) -> None:
        """Start workers for those that are lacking, and give every idle one a job."""
        for _ in range(min(self.count, len(self.left)) - len(self.busy) - len(self.idle)):
            worker = _Worker(self.new_actor())
            paths = [path for path in map(os.path.abspath, sys.path) if path]
            self.busy[worker.actor.enter.remote(versions(), paths)] = worker
        while self.idle and (number := self._next()) is not None:
            worker = self.idle.pop()
            worker.job, worker.since = number, time.monotonic()
            self.busy[worker.actor.answer.remote(self.jobs[number])] = worker
        waited = min((time.monotonic() - worker.since for worker in self.busy.values()), default=0)
        if not self.told and waited > SECONDS_TO_TELL and all(worker.job is None for worker in self.busy.values()):
            self.told = True
            say(f"Ray: no worker has begun yet; {len(self.busy)} wait for a CPU each, or make the network and the data")

    def _next(self) -> int | None:
        """The next job, or one that takes so long that another worker is to try it as well; None for none."""
        if self.waiting:
            return self.waiting.popleft()
        if not self.seconds:
            return None
        limit, now = SLOW * statistics.median(self.seconds), time.monotonic()
        copies = Counter(worker.job for worker in self.busy.values())
        slow = [w for w in self.busy.values() if w.job in self.left and copies[w.job] == 1 and now - w.since > limit]
        return min(slow, key=lambda worker: worker.since).job if slow else None

    def _begun(self, worker: _Worker, returned: tuple[str, str | None] | None) -> None:
        """Let a worker that has entered begin, and one that has begun wait for a job."""
        if returned is None:
            self.losses[None] = 0
            self.idle.append(worker)
            return
        worker.node, problem = returned
        if problem is not None:
            self.idle.append(worker)
            raise InvalidInput(f"node {worker.node} {problem}: numbers would differ; install the same on all nodes")
        self.busy[worker.actor.begin.remote(self.start)] = worker

    def _of_worker(self, worker: _Worker, cause: Exception) -> Exception:
        """What was raised: an answer's own error as it is; that of a beginning with the node, where alone it fails."""
        if worker.job is not None:
            return cause
        kind = InvalidInput if isinstance(cause, InvalidInput) else MixbitError
        what = str(cause) if isinstance(cause, MixbitError) else f"{type(cause).__name__}: {cause}"
        return kind(f"node {worker.node}: {what}")

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """Give the job of a worker that ended to another; raises MixbitError where that happens again and again."""
        number = worker.job
        self.losses[number] += 1
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = "before it could begin" if number is None else f"with the job {self.jobs[number]!r:.80}"
        if self.losses[number] == MOST_LOSSES:
            raise MixbitError(
                f"node {worker.node}: {MOST_LOSSES} workers ended {what}, the last one: {reason.strip()}. Finished "
                "parts are stored: the same call continues"
            ) from error
        if number in self.left and all(other.job != number for other in self.busy.values()):
            self.waiting.appendleft(number)
