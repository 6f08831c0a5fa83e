"""What a rounding is given, and the roundings by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixbit.core import Inputs, Methods, Store, Task, digest
from mixbit.graph import Case, Graph, stored_weights_of
from mixbit.quantization.quantizer import quantizers_of


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
    """

    graph: Graph
    simulated: Graph
    batches: Sequence[Inputs]
    task: Task
    seed: int = 0
    folder: Path | None = None
    bias_correction: bool = True

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


Rounding = Callable[[RoundingInput], Graph]
ROUNDINGS: Methods[Rounding] = Methods("rounding", "mixbit.roundings")
