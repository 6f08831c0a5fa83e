"""Means over samples, and how far they may be off."""

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


#: Parts that rows of one update are cut into, one behind the other, to see how much moments differ from part to part.
PARTS = 4


class Moments:
    """Running moments of rows [G, N, columns], of G groups of channels that do not meet.

    Rows are taken relative to the mean of the first update, so that a large mean costs no digits.

    Attributes:
        count: Rows seen.
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows: Tensor) -> None:
        """Take in some rows, those of a sample next to one another."""
        if self.count == 0:
            self._shift = rows.mean(1, keepdim=True)
            self._sum = torch.zeros_like(self._shift[:, 0], dtype=torch.float64)
            self._squares = self._sum.unsqueeze(2) * self._sum.unsqueeze(1)
            self._parts, self._norms = 0, torch.zeros_like(self._sum[:, 0])
        rows = rows - self._shift
        self.count += rows.shape[1]
        self._sum += rows.sum(1).double()
        for part in rows.chunk(PARTS, 1):
            squares = (part.mT @ part).double()
            self._squares += squares
            self._norms += squares.square().sum((1, 2)) / part.shape[1]
            self._parts += 1

    @property
    def mean(self) -> Tensor:
        """[G, columns], float64."""
        return self._shift[:, 0].double() + self._sum / self.count

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

    def shrunk_hessian(self, layer: str, *, centred: bool) -> Tensor:
        """`hessian` H drawn to a unit matrix: (1 - r) H + r tr(H) / columns I, with r the `shrinkage`.

        Of few samples, the small directions of H are too small, and what is fitted to them does not hold on others.
        """
        hessian = self.hessian(layer, centred=centred)
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        unit = torch.diag_embed(diagonal.mean(1, keepdim=True).expand_as(diagonal))
        return hessian.lerp(unit, self.shrinkage().reshape(-1, 1, 1))

    def shrinkage(self) -> Tensor:
        """[G] the share r of the unit matrix with the least expected square error from the moments of all data.

        With S = H / N over N rows, r = E|S - E S|^2 / |S - tr(S) / columns I|^2 in squares of entries, at most 1. The
        error of S is told from its differences between parts: rows of one sample depend on one another. 0 with one
        part, of which nothing is known.

        Source: O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal
        of Multivariate Analysis 88, 2004.
        """
        if self._parts < 2:
            return torch.zeros_like(self._norms)
        whole = self._squares.square().sum((1, 2)) / self.count
        trace = self._squares.diagonal(dim1=1, dim2=2).sum(1)
        error = (self._norms - whole).clamp(min=0) / (self._parts - 1)
        distance = (whole - trace.square() / (self.count * self._squares.shape[2])).clamp(min=0)
        return torch.where(distance > error, error / distance, (error > 0).to(error))


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
        damped = hessian.double() + torch.diag_embed(torch.where(dead, 1, share.unsqueeze(1)) * mean.unsqueeze(1))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return factor
        share = torch.where(failed > 0, (share * GROWTH).clamp(min=LEAST_DAMPING), share)
