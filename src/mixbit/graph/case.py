"""Case: a float network together with data to run it on."""

from collections.abc import Sequence
from dataclasses import dataclass

from mixbit.core.batches import Batch
from mixbit.core.task import Task
from mixbit.graph.graph import Graph


@dataclass(frozen=True)
class Case:
    """A float network, data, and what the outputs mean.

    Attributes:
        graph: The float graph.
        batches: Inputs, and labels or None.
        task: What the outputs mean.
        seed: Of every draw.
    """

    graph: Graph
    batches: Sequence[Batch]
    task: Task
    seed: int = 0
