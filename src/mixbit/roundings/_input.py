"""What a rounding is given, and the roundings by name; how its work goes to other processes."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mixbit.core import (
    Answer,
    Batches,
    Inputs,
    InvalidInput,
    Job,
    Methods,
    Plan,
    Store,
    Task,
    digest,
    facts_of,
    find_target,
)
from mixbit.graph import Case, Graph, stored_weights_of
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.offers import for_target
from mixbit.quantization.quantizer import quantizers_of
from mixbit.quantization.shared import Shared
from mixbit.quantization.simulate import simulate

#: Fact of roundings whose blocks are jobs where their option `inputs` is `float`.
SIDE_BY_SIDE = "side by side"


@dataclass(frozen=True)
class Elsewhere:
    """Processes that make a rounding's input again: where they run, and the network with the data that they make."""

    shared: Shared
    case: Case
    calibration: Calibration


@dataclass(frozen=True)
class RoundingInput:
    """What a rounding is given: a float network, and its simulation, whose weights are to become integers.

    A rounding returns the simulated graph with other weights: whole multiples of their scales, which its quantizers do
    not change; or they stay where the nearest integers serve best. Biases and scales of activations may differ too.

    Attributes:
        graph: The float graph.
        simulated: The same with all quantizers and weights in float; biases are corrected for the nearest integers.
        batches: Calibration inputs, about FEW_SAMPLES samples of them where there are more; all activations of these
            may be held.
        task: What the outputs mean.
        seed: Random seed.
        folder: Where finished parts are stored, so that an interrupted run resumes; None stores nothing.
        bias_correction: Whether biases take off the mean error of their operator's output.
        elsewhere: Processes that share the work of methods that are SIDE_BY_SIDE; None for this one, with all threads.
    """

    graph: Graph
    simulated: Graph
    batches: Sequence[Inputs]
    task: Task
    seed: int = 0
    folder: Path | None = None
    bias_correction: bool = True
    elsewhere: Elsewhere | None = None

    @property
    def case(self) -> Case:
        """The float network and the data."""
        return Case(self.graph, [(inputs, None) for inputs in self.batches], self.task, self.seed)

    @property
    def store(self) -> Store:
        """Of finished parts."""
        return Store(self.folder)

    def question(self, method: str, **options: object) -> str:
        """A hash of all that a method's result depends on: networks, plan, data, task, seed, method and options.

        Empty where nothing is stored. Weights in files are known by these.
        """
        if self.folder is None:
            return ""
        return digest(
            stored_weights_of(self.graph.module),
            self.graph.module,
            self.simulated.module,
            None if self.simulated.plan is None else self.simulated.plan.model_dump_json(),
            self.batches,
            [quantizer.mask for quantizer in quantizers_of(self.simulated)],  # no part of a module's state
            self.task.unfitted,
            (self.seed, self.bias_correction, method, sorted(options.items())),
        )

    def answers(
        self, work: Callable[["RoundingInput"], Callable[[Job], Answer]], jobs: Sequence[Job]
    ) -> Generator[tuple[Job, Answer], None, None]:
        """Yield each job with its answer, in any order; where others share the work, `work` makes what answers there.

        It is a function at the top level of a module, or a partial of one. It gets this input, without the folder.
        """
        if self.elsewhere is None or self.simulated.plan is None:
            answer = work(self)
            for job in jobs:
                yield job, answer(job)
        else:
            made, place = partial(_made_again, work, self.simulated.plan, self.bias_correction), self.elsewhere
            yield from place.shared.answers(made, place.case, place.calibration, jobs)


def _made_again(
    work: Callable[[RoundingInput], Callable[[Job], Answer]],
    plan: Plan,
    bias_correction: bool,
    case: Case,
    calibration: Calibration,
) -> Callable[[Job], Answer]:
    """What answers jobs in a process, from the input that it makes again."""
    graph = for_target(case.graph, find_target(plan.target))
    simulated = simulate(graph, plan, calibration, bias_correction=bias_correction)
    return work(RoundingInput(graph, simulated, few(calibration), case.task, case.seed, None, bias_correction))


def few(calibration: Calibration) -> list[Inputs]:
    """The inputs that roundings take of a calibration's data."""
    return [inputs for inputs, _ in Batches.of(calibration.batches).few()]


Rounding = Callable[[RoundingInput], Graph]
ROUNDINGS: Methods[Rounding] = Methods("rounding", "mixbit.roundings")


def is_shared_out(rounding: str | Rounding) -> bool:
    """Whether the rounding's work can go to several processes."""
    _, function = ROUNDINGS.find(rounding)
    return SIDE_BY_SIDE in facts_of(function) and getattr(function, "keywords", {}).get("inputs") == "float"


def check_shared_out(rounding: str | Rounding) -> None:
    """Raise InvalidInput unless the rounding's work can go to several processes."""
    if is_shared_out(rounding):
        return
    name, function = ROUNDINGS.find(rounding)
    able = " or ".join(f"{each}:inputs=float" for each in ROUNDINGS if SIDE_BY_SIDE in facts_of(ROUNDINGS[each]))
    reason = (
        "each of its blocks waits for those before it" if SIDE_BY_SIDE in facts_of(function) else "it learns no blocks"
    )
    raise InvalidInput(
        f"rounding {name}: is not shared out, since {reason}; take {able}, or leave shared out (--processes, --engine)"
    )
