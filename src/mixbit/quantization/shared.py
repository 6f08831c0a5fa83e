"""Work on one network shared out among processes: each makes it and its data again, the same as the caller's."""

import dataclasses
import pickle
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mixbit.core import (
    Answer,
    Engine,
    InvalidInput,
    Job,
    Task,
    digest,
    pickled,
    reason_of,
    run_jobs,
    split_all,
    users_code,
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

    Raises:
        InvalidInput: The setup cannot go to other processes.
    """

    setup: Callable[[], tuple[Any, ...]]
    engine: Engine

    def __post_init__(self) -> None:
        if not self.engine.is_this_process:
            check_travels("setup", self.setup)

    def answers(
        self, work: Work[Job, Answer], case: Case, calibration: Calibration, jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer, as `run_jobs` does; with this network and data, which the setup returns too.

        The calibration travels, without its batches; weights and data do not. The setup returns (graph, calibration
        batches), then the case's data to evaluate on where it has some, and last the task.
        """
        if self.engine.is_this_process:
            start = partial(work, case, calibration)
        else:
            sent = check_travels("what answers jobs", (work, dataclasses.replace(calibration, batches=())))
            start = partial(_begin, self.setup, sent, digests(case), case.seed)
        yield from run_jobs(self.engine, start, jobs)


def _begin(setup: Callable[[], tuple[Any, ...]], sent: bytes, known: dict[str, str], seed: int) -> Callable[[Any], Any]:
    """In a worker process: make the network and the data again, and return what answers jobs.

    What was sent is read last, since it may hold functions of files that the setup loads.
    """
    with users_code("setup fails"):
        graph, *data = (part for part in setup() if part is not None)
    task = Task.of(data.pop() if isinstance(data[-1], Task | str) else None)
    batches, *evaluation = (split_all(each, len(graph.example.args)) for each in data)
    case = Case(graph, batches, task, seed, *evaluation)
    check_same(digests(case), known)
    work, calibration = pickle.loads(sent)
    case = dataclasses.replace(case, task=fitted(task, graph, batches))
    return work(case, dataclasses.replace(calibration, batches=batches))


def digests(case: Case) -> dict[str, str]:
    """What shows that two processes have the same: digests of the graph's code, its tensors, the task and the data."""
    module = case.graph.module
    return {
        "code": digest(module.code),
        "weights": digest(module.state_dict()),
        "task": digest(case.task.unfitted),
        "data": digest(case.batches),
        "evaluation data": digest(case.evaluation),
    }


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
