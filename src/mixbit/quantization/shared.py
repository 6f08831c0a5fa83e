"""Work on one network shared out among processes: each makes it and its data again, the same as the caller's."""

import dataclasses
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any
from uuid import uuid4

from mixbit.core import (
    Answer,
    Engine,
    InvalidInput,
    Job,
    Task,
    Workers,
    digest,
    pickled,
    reason_of,
    split_all,
    users_code,
    workers,
)
from mixbit.graph import Case, fitted
from mixbit.quantization.calibrate import Calibration

#: From the network and its data in a process, what answers jobs there.
Work = Callable[[Case, Calibration], Callable[[Job], Answer]]


@dataclass(frozen=True)
class Shared:
    """How processes make a network and its data again, and where they run.

    Attributes:
        setup: Returns what this process works on, the same on every call, and last the task where it is not
            classification: (graph, calibration batches) for `measure`; (model, calibration batches, batches to report
            on or None) for `auto_quantize`. A function at the top level of a module, or `functools.partial` of one.
        engine: Where, and how many.
        workers: Those of `begun`; where None, each call of `answers` has its own.
        key: What a process knows the setup by, which it calls once.

    Raises:
        InvalidInput: The setup cannot go to other processes.
    """

    setup: Callable[[], tuple[Any, ...]]
    engine: Engine
    workers: Workers | None = None
    key: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if not self.engine.is_this_process:
            check_travels("setup", self.setup)

    @contextmanager
    def begun(self) -> Iterator["Shared"]:
        """In the block, one set of processes for all work; each makes the network and the data, as the caller does."""
        with workers(self.engine) as some:
            some.begin(partial(_made, _Setup(self.key, self.setup)))
            yield dataclasses.replace(self, workers=some)

    def answers(
        self, work: Work[Job, Answer], case: Case, calibration: Calibration, jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer, as `Workers.answers` does; the setup returns this network and data too.

        The calibration travels, without its batches; weights and data do not. The setup returns (graph, calibration
        batches), then the case's data to evaluate on where it has some, and last the task.
        """
        if self.engine.is_this_process:
            start = partial(work, case, calibration)
        else:
            sent = check_travels("what answers jobs", (work, dataclasses.replace(calibration, batches=())))
            start = partial(_begin, _Setup(self.key, self.setup), sent, digests(case), case.seed)
        with workers(self.engine) if self.workers is None else nullcontext(self.workers) as some:
            yield from some.answers(start, jobs)


@contextmanager
def begun(shared: Shared | None) -> Iterator[Shared | None]:
    """As `Shared.begun`, where work is shared out."""
    with nullcontext() if shared is None else shared.begun() as some:
        yield some


@dataclass(frozen=True)
class _Setup:
    """A setup as it goes to other processes; those of a script too, which Ray sends with their code."""

    key: str
    call: Callable[[], tuple[Any, ...]] = field(compare=False)


def _begin(setup: _Setup, sent: bytes, known: dict[str, str], seed: int) -> Callable[[Any], Any]:
    """In a worker process: make the network and the data again, and return what answers jobs.

    What was sent is read last, since it may hold functions of files that the setup loads.
    """
    case, found = _made(setup)
    check_same(found, known)
    evaluation = case.evaluation if "evaluation data" in known else ()
    work, calibration = pickle.loads(sent)
    calibration = dataclasses.replace(calibration, batches=case.batches)
    return work(dataclasses.replace(case, seed=seed, evaluation=evaluation), calibration)


@lru_cache(maxsize=1)
def _made(setup: _Setup) -> tuple[Case, dict[str, str]]:
    """What the setup returns, once for all work in a process, and its digests."""
    with users_code("setup fails"):
        graph, *data = (part for part in setup.call() if part is not None)
    task = Task.of(data.pop() if isinstance(data[-1], Task | str) else None)
    batches, *evaluation = (split_all(each, len(graph.example.args)) for each in data)
    case = Case(graph, batches, task, 0, *evaluation)
    found = digests(case)
    return dataclasses.replace(case, task=fitted(task, graph, batches)), found


def digests(case: Case) -> dict[str, str]:
    """What shows that two processes have the same: digests of the graph's code, its tensors, the task and the data."""
    module = case.graph.module
    found = {
        "code": digest(module.code),
        "weights": digest(module.state_dict()),
        "task": digest(case.task.unfitted),
        "data": digest(case.batches),
    }
    return found | ({"evaluation data": digest(case.evaluation)} if len(case.evaluation) else {})


def check_same(found: dict[str, str], known: dict[str, str]) -> None:
    """Raise InvalidInput, which names what differs, unless a worker made what its caller has."""
    for name, value in known.items():
        if found[name] != value:
            raise InvalidInput(
                f"setup: returns other {name} than at the caller (digest {found[name][:8]}, there {value[:8]}); seed "
                "what it draws, load weights from a file instead of training them, give every node the same files, or "
                "take --processes 1 (engine=Engine())"
            )


def check_travels(name: str, value: Any) -> bytes:
    """The value as it goes to other processes; raises InvalidInput where it cannot."""
    way_out = (
        "give functions at a module's top level, or functools.partial of them with plain values, or engine=Engine()"
    )
    with users_code(
        lambda error: InvalidInput(f"{name}: cannot go to other processes ({reason_of(error)}); {way_out}")
    ):
        sent = pickled(value)
        pickle.loads(sent)
    return sent
