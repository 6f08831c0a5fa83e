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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import count
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
#: What to do where nothing answers.
LOOK = "look at `ray status` on the head node"


@contextmanager
def on_ray(engine: Engine) -> Iterator["Crew"]:
    """In the block, workers of a cluster, which is joined when there is work; they end with the block."""
    with ExitStack() as ending:
        yield Crew(engine, ending)


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
    if address != "auto":
        _check_listens(address, wrong)
    if address.startswith("ray://"):
        return
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        healthy = subprocess.run(command, check=False, capture_output=True, timeout=SECONDS_TO_ANSWER).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy and address == "auto":
        raise InvalidInput(f"{wrong}; {LOOK}")
    if not healthy:
        raise InvalidInput(f"{wrong}, though something listens; the port of the head node is 6379 unless told")


def _check_listens(address: str, wrong: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput(f"--ray-address {address}: give auto, HOST:PORT, or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER / 3).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"{wrong} ({error}); {LOOK}") from error


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
                here = import_module("mixbit.core.io.ray_worker")
            except ImportError as error:
                return node, f"cannot import mixbit ({error})"
            for name, value in here.versions().items():
                if wanted[name] != value:
                    return node, f"has {name} {value}, and the caller {wanted[name]}"
            self.here = here
            return node, None

        def prepare(self, called: bytes) -> None:
            """Call it, unless this node may not do the work; what it raises is told by `begin`, which meets it too."""
            if hasattr(self, "here"):
                self.here.prepare(called)

        def begin(self, start: bytes) -> None:
            """Make what answers jobs."""
            self.answer_of = self.here.called(start)

        def answer(self, job: Any) -> Any:
            """The answer of a job."""
            return self.answer_of(job)

    return Worker


@dataclass(eq=False)
class _Work:
    """Some jobs, and how far they are.

    Attributes:
        start: Reference to what makes what answers them.
        left: Those without an answer, by their numbers.
        waiting: Those of them that nobody does.
        done: Numbers with an answer, or with the error that it raised.
        seconds: What the answered ones took.
    """

    start: Any
    left: dict[int, Any] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    done: deque[tuple[int, Any, Exception | None]] = field(default_factory=deque)
    seconds: list[float] = field(default_factory=list)


@dataclass(eq=False)
class _Worker:
    """A worker, and what it does.

    Attributes:
        job: Number of the job that it does, or did last; None while it begins.
        since: When it began that, by the clock that only goes forward.
        node: Address of its node; empty until it has entered.
        work: Whose jobs it can do; None until it has begun with any.
    """

    actor: Any
    job: int | None = None
    since: float = field(default_factory=time.monotonic)
    node: str = ""
    work: _Work | None = None


class Crew:
    """The workers of a cluster, as `mixbit.core.io.jobs.Workers` describes them, and who does what.

    A worker that is lost is replaced, and its job given to another; a job that takes long is given to two.
    """

    def __init__(self, engine: Engine, ending: ExitStack) -> None:
        self.engine, self.ending, self.numbers = engine, ending, count()
        self.ray: Any = None
        self.busy: dict[Any, _Worker] = {}  # by the reference to what it is to return
        self.idle: list[_Worker] = []
        self.losses: Counter[int | None] = Counter()  # by job; None for those that were lost before they began
        self.told = False

    def begin(self, prepare: Callable[[], object]) -> None:
        """Begin all workers, and let each prepare itself."""
        called = self._put(prepare)
        for _ in range(self.engine.processes):
            self._add().actor.prepare.remote(called)

    def answers(
        self, start: Callable[[], Callable[[Job], Answer]], jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer as it finishes; `start` travels to each node once."""
        asked: dict[int, Any] = {}
        work, more = _Work(self._put(start)), zip(self.numbers, jobs, strict=False)
        for worker in (each for each in self.busy.values() if each.job is None):
            worker.since = time.monotonic()  # nobody has waited for it so far
        while fill(work.left, more, self.engine.processes):
            work.waiting.extend(number for number in work.left if number not in asked)
            asked |= work.left
            self._share_out(work)
            ready, _ = self.ray.wait([*self.busy], num_returns=1, timeout=1.0)
            for reference in ready:
                self._take(self.busy.pop(reference), reference)
            while work.done:
                number, answer, error = work.done.popleft()
                if error is not None:
                    raise error
                yield asked[number], answer

    def end(self) -> None:
        """End the workers, also amid their work."""
        for worker in (*self.idle, *self.busy.values()):
            self.ray.kill(worker.actor)

    def _put(self, called: Callable[[], object]) -> Any:
        """A reference to the pickled function, which nodes can take; joins the cluster before the first."""
        if self.ray is None:
            ray = _ray()
            self.ending.enter_context(_connected(ray, self.engine))
            self.ending.callback(self.end)
            self.new_actor = ray.remote(_worker_class()).options(num_cpus=1, scheduling_strategy="SPREAD").remote
            self.ray = ray
        full = self.ray.exceptions.ObjectStoreFullError, self.ray.exceptions.OutOfDiskError, OSError
        try:
            return self.ray.put(self.ray.cloudpickle.dumps(called))
        except full as error:
            raise MixbitError(f"Ray: its object store takes no more ({error}); give it more memory or disk") from error

    def _add(self) -> _Worker:
        worker = _Worker(self.new_actor())
        paths = [path for path in map(os.path.abspath, sys.path) if path]
        self.busy[worker.actor.enter.remote(versions(), paths)] = worker
        return worker

    def _share_out(self, work: _Work) -> None:
        """Start workers for those that are lacking, and give every idle one a job."""
        for _ in range(min(self.engine.processes, len(work.left)) - len(self.busy) - len(self.idle)):
            self._add()
        for worker in [worker for worker in self.idle if worker.work is not work]:
            self._let_begin(worker, work)
        while self.idle and (number := self._next(work)) is not None:
            worker = self.idle.pop()
            worker.job, worker.since = number, time.monotonic()
            self.busy[worker.actor.answer.remote(work.left[number])] = worker
        waited = min((time.monotonic() - worker.since for worker in self.busy.values()), default=0)
        if not self.told and waited > SECONDS_TO_TELL and all(worker.job is None for worker in self.busy.values()):
            self.told = True
            say(f"Ray: no worker has begun yet; {len(self.busy)} wait for a CPU each, or make the network and the data")

    def _next(self, work: _Work) -> int | None:
        """The next job, or one that takes so long that another worker is to try it as well; None for none."""
        if work.waiting:
            return work.waiting.popleft()
        if not work.seconds:
            return None
        limit, now = SLOW * statistics.median(work.seconds), time.monotonic()
        copies = Counter(worker.job for worker in self.busy.values())
        slow = [w for w in self.busy.values() if w.job in work.left and copies[w.job] == 1 and now - w.since > limit]
        return min(slow, key=lambda worker: worker.since).job if slow else None

    def _take(self, worker: _Worker, reference: Any) -> None:
        """Take what a worker returned; it may begin, or do its next job."""
        errors, error = self.ray.exceptions, None
        returned: Any = None
        try:
            returned = self.ray.get(reference)
        except errors.RayTaskError as raised:
            error = raised
        except errors.RayError as raised:
            self._lost(worker, raised)
            return
        self.idle.append(worker)
        number, work = worker.job, worker.work
        if number is None and error is not None:
            raise _of_beginning(worker, error.cause) from error
        if work is None:
            worker.node, problem = returned
            if problem is not None:
                raise InvalidInput(f"node {worker.node} {problem}: numbers would differ; install the same on all nodes")
        elif number is None:
            self.losses[None] = 0
        elif work.left.pop(number, None) is not None:  # else the same job was done sooner by another
            work.seconds.append(time.monotonic() - worker.since)
            work.done.append((number, returned, None if error is None else error.cause))

    def _let_begin(self, worker: _Worker, work: _Work) -> None:
        self.idle.remove(worker)
        worker.job, worker.since, worker.work = None, time.monotonic(), work
        self.busy[worker.actor.begin.remote(work.start)] = worker

    def _lost(self, worker: _Worker, error: Exception) -> None:
        """Give the job of a worker that ended to another; raises MixbitError where that happens again and again."""
        number, work = worker.job, worker.work
        self.losses[number] += 1
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        job = None if work is None or number is None else work.left.get(number)
        what = "before it could begin" if number is None else f"with the job {job!r:.80}"
        if self.losses[number] == MOST_LOSSES:
            raise MixbitError(
                f"node {worker.node}: {MOST_LOSSES} workers ended {what}, the last one: {reason.strip()}. Finished "
                "parts are stored: the same call continues"
            ) from error
        left_alone = all(other.job != number for other in self.busy.values())
        if job is not None and number is not None and work is not None and left_alone:
            work.waiting.appendleft(number)


def _of_beginning(worker: _Worker, cause: Exception) -> Exception:
    """What was raised before a job, with the node, where alone it may fail."""
    kind = InvalidInput if isinstance(cause, InvalidInput) else MixbitError
    what = str(cause) if isinstance(cause, MixbitError) else f"{type(cause).__name__}: {cause}"
    return kind(f"node {worker.node}: {what}")
