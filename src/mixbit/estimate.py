"""What a metric is asked, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixbit.batches import Batch
from mixbit.calibrate import Calibration
from mixbit.graph import Graph
from mixbit.layers import Layer
from mixbit.scheme import Scheme
from mixbit.sensitivity import FloatArray
from mixbit.task import Task


@dataclass(frozen=True)
class Question:
    """What a metric needs to fill a table.

    Attributes:
        graph: The float graph.
        layers: L rows.
        schemes: C columns.
        calibration: Ranges and mean inputs on the same data.
        batches: Inputs, and labels where there are any.
        task: What the outputs mean.
        seed: Of every draw.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    schemes: tuple[Scheme, ...]
    calibration: Calibration
    batches: Sequence[Batch]
    task: Task
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A metric's answer: loss increase [L, C], its standard error [L, C], and the samples behind each entry."""

    loss: FloatArray
    standard_error: FloatArray
    num_samples: int


class RunningMean:
    """Mean and standard error over samples of an array of that shape, in float64 and memory of that shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def update(self, samples: Tensor) -> None:
        """Add samples [N, ...] (Chan's pairwise update of mean and sum of squared deviations)."""
        samples = samples.detach().cpu().double()
        count = self.count + len(samples)
        mean = samples.mean(0)
        shift = mean - self.mean
        self.squares += (samples - mean).square().sum(0) + shift.square() * (self.count * len(samples) / count)
        self.mean += shift * (len(samples) / count)
        self.count = count

    def result(self) -> tuple[FloatArray, FloatArray, int]:
        """Mean, its standard error (inf from a single sample), and the number of samples."""
        if self.count < 2:
            return self.mean.numpy(), np.full(tuple(self.mean.shape), np.inf), self.count
        variance = self.squares / (self.count - 1)
        return self.mean.numpy(), (variance / self.count).sqrt().numpy(), self.count
