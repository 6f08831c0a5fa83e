"""Means over samples, and how far they may be off."""

import math

import numpy as np
import torch
from torch import Tensor

from mixbit.core import FloatArray, InvalidInput


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


#: How damping grows until the Cholesky factors exist, and what it grows from where it is 0.
GROWTH = 10.0
LEAST_DAMPING = 1e-6


class Moments:
    """Running moments of rows [G, N, columns], of G groups of channels that do not meet.

    Rows are taken relative to the mean of the first update, so that a large mean costs no digits.

    Attributes:
        count: Rows seen.
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows: Tensor) -> Tensor:
        """Take in some rows; returns the sum of their squares, relative to the first mean: [G, columns, columns]."""
        if self.count == 0:
            self._shift = rows.mean(1, keepdim=True)
            self._sum = torch.zeros_like(self._shift[:, 0], dtype=torch.float64)
            self._squares = self._sum.unsqueeze(2) * self._sum.unsqueeze(1)
        rows = rows - self._shift
        self.count += rows.shape[1]
        self._sum += rows.sum(1).double()
        squares = (rows.mT @ rows).double()
        self._squares += squares
        return squares

    @property
    def mean(self) -> Tensor:
        """[G, columns], float64."""
        return self._shift[:, 0].double() + self._sum / self.count

    @property
    def squares(self) -> Tensor:
        """[G, columns, columns] the sum of what updates returned."""
        return self._squares

    def hessian(self, layer: str, *, centred: bool) -> Tensor:
        """[G, columns, columns] sum over rows of x x', or of (x - mean)(x - mean)'; float64.

        Raises InvalidInput, which names the layer, where the rows are not finite.
        """
        if not self._squares.isfinite().all():
            raise InvalidInput(f"{layer}: its input is NaN or inf, or its squares are; leave out such samples")
        off = self._sum / self.count
        around_mean = self._squares - self.count * off.unsqueeze(2) * off.unsqueeze(1)
        if centred:
            return around_mean
        return around_mean + self.count * self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


#: Samples of a part at least, whose moments are compared with those of others, and parts that one update makes at most.
LEAST_SAMPLES, MOST_PARTS = 4, 4


class SampleMoments:
    """Moments of rows of few samples, as near to those of all data as differences between samples allow to be told.

    Rows are gathered to parts of LEAST_SAMPLES and more, since those of one sample depend on one another.
    """

    def __init__(self) -> None:
        self.moments = Moments()
        self._waiting: list[Tensor] = []
        self._samples = 0.0
        self._parts, self._norms = 0, torch.zeros(())

    def update(self, rows: Tensor, samples: float) -> None:
        """Take in rows [G, N, columns] of so many samples, those of a sample next to one another."""
        self._waiting.append(rows)
        self._samples += samples
        if self._samples >= LEAST_SAMPLES:
            self._take()

    @property
    def mean(self) -> Tensor:
        """[G, columns], float64."""
        self._take()
        return self.moments.mean

    def hessian(self, layer: str, *, centred: bool) -> Tensor:
        """[G, columns, columns] `Moments.hessian`, its part around the mean drawn to a unit matrix.

        That part H becomes (1 - r) H + r tr(H) / columns I, with r the `shrinkage`. Of few samples, the small
        directions of H are too small, and what is fitted to them does not hold on others.

        Raises InvalidInput, which names the layer, where the rows are not finite.
        """
        self._take()
        found = self.moments.hessian(layer, centred=True)
        drawn = found.lerp(_unit(found), self.shrinkage().reshape(-1, 1, 1))
        return drawn if centred else drawn + (self.moments.hessian(layer, centred=False) - found)

    def shrinkage(self) -> Tensor:
        """[G] the share r of the unit matrix with the least expected square error from the moments of all data.

        With S = H / N over N rows, r = E|S - E S|^2 / |S - tr(S) / columns I|^2 in squares of entries, at most 1. The
        error of S is told from its differences between parts. 0 with one part, of which nothing is known.

        Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal
        of Multivariate Analysis 88, 2004.
        """
        self._take()
        count, around_mean = self.moments.count, self.moments.hessian("rows", centred=True)
        if self._parts < 2:
            return torch.zeros_like(around_mean[:, 0, 0])
        error = self._norms - self.moments.squares.square().sum((1, 2)) / count
        error = error.clamp(min=0) / (self._parts - 1)
        distance = (around_mean - _unit(around_mean)).square().sum((1, 2)) / count
        return torch.where(distance > error, error / distance, (error > 0).to(error))

    def _take(self) -> None:
        if not self._waiting:
            return
        rows, samples, num = torch.cat(self._waiting, 1), self._samples, 1
        if len(self._waiting) == 1:  # a part's squares of columns must not cost more than its rows
            num = max(1, min(MOST_PARTS, int(samples) // LEAST_SAMPLES, rows.shape[1] // rows.shape[2]))
        of_part = round(rows.shape[1] * math.ceil(samples / num) / samples)
        for part in rows.split(of_part, 1):
            squares = self.moments.update(part)
            self._norms = self._norms + squares.square().sum((1, 2)) / part.shape[1]
            self._parts += 1
        self._waiting, self._samples = [], 0.0


def _unit(hessian: Tensor) -> Tensor:
    """[G, columns, columns] the multiple of the unit matrix with the same trace."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    return torch.diag_embed(diagonal.mean(1, keepdim=True).expand_as(diagonal))


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """[G, columns, columns] U, upper triangular, with U'U the inverse of the damped H; float64.

    H's diagonal grows by `damping` of its mean over columns that are not 0, then tenfold until H is positive definite.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2).double()
    dead = diagonal <= 0
    mean = torch.where(dead, 0, diagonal).sum(1) / (~dead).sum(1).clamp(min=1)
    mean = torch.where(mean > 0, mean, 1)
    share = torch.full_like(mean, damping)
    while True:
        damped = hessian.double().clone()
        damped.diagonal(dim1=1, dim2=2).add_(torch.where(dead, 1, share.unsqueeze(1)) * mean.unsqueeze(1))
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped  # of many columns, each of these matrices is large
        if not failed.any():
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return factor
        share = torch.where(failed > 0, (share * GROWTH).clamp(min=LEAST_DAMPING), share)
