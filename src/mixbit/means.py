"""Means over samples, and how far they may be off."""

import numpy as np
import torch
from torch import Tensor

from mixbit.sensitivity import FloatArray


class RunningMean:
    """Mean and standard error over samples of an array of that shape, in float64 and memory of that shape.

    Attributes:
        count: Samples seen.
        mean: Of them.
        squares: Sum of their squared deviations from the mean.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def update(self, samples: Tensor) -> None:
        """Add samples [N, ...] (Chan's pairwise update of mean and sum of squared deviations)."""
        samples = samples.detach().double()
        count, mean = self.count + len(samples), samples.mean(0)
        squares, shift = (samples - mean).square().sum(0).cpu(), mean.cpu() - self.mean
        self.squares += squares + shift.square() * (self.count * len(samples) / count)
        self.mean += shift * (len(samples) / count)
        self.count = count

    def result(self) -> tuple[FloatArray, FloatArray, int]:
        """Mean, its standard error (inf from a single sample), and the number of samples."""
        if self.count < 2:
            return self.mean.numpy(), np.full(tuple(self.mean.shape), np.inf), self.count
        variance = self.squares / (self.count - 1)
        return self.mean.numpy(), (variance / self.count).sqrt().numpy(), self.count


def batch_means(rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over samples, and its standard error, of what is known as means of batches.

    With s_b the share of batch b in the samples, mean = sum s_b r_b and, for B batches, error^2 =
    B / (B - 1) sum s_b^2 (r_b - mean)^2; inf from a single batch.

    Args:
        rows: [B, ...] means of batches.
        sizes: [B] samples in each.
    """
    count = len(rows)
    shares = (sizes.double() / sizes.sum()).reshape(-1, *[1] * (rows.ndim - 1))
    mean = (shares * rows).sum(0)
    if count < 2:
        return mean, torch.full_like(mean, torch.inf)
    squares = (shares * (rows - mean)).square().sum(0)
    return mean, (squares * count / (count - 1)).sqrt()
