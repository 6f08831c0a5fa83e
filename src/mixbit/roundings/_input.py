"""What a rounding is given: the float network and its simulation, whose weights it turns into integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixbit.core.batches import Inputs
from mixbit.core.io.digest import digest
from mixbit.core.task import Task
from mixbit.graph.graph import Case, Graph
from mixbit.quantization.quantizer import quantizers_of


def question_digest(inputs: "RoundingInput", method: str, **options: object) -> str:
    """A hash of all that the result depends on: networks, plan, data, task, seed, and the method with its options."""
    return digest(
        inputs.graph.module,
        inputs.simulated.module,
        None if inputs.simulated.plan is None else inputs.simulated.plan.model_dump_json(),
        inputs.batches,
        [quantizer.mask for quantizer in quantizers_of(inputs.simulated)],  # no part of a module's state
        inputs.task,
        (inputs.seed, inputs.bias_correction, method, sorted(options.items())),
    )


@dataclass(frozen=True)
class RoundingInput:
    """What a rounding is given: a float network, and its simulation, whose weights are to become integers.

    A rounding returns the simulated graph with other weights: whole multiples of their scales already, so that its
    quantizers, which round to the nearest, change nothing, or as they were where the nearest integers serve best.
    Biases and scales of activations may differ too.

    Attributes:
        graph: The float graph.
        simulated: The same with all quantizers in place and weights in float; its biases are corrected for the
            nearest integers, where biases are.
        batches: Calibration inputs.
        task: What the outputs mean.
        seed: Of every draw.
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
