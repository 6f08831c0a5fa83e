"""What metrics of the labelled loss have in common: they need labels, and a loss is the mean of a batch."""

import torch
from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.estimate import Question


def check_labelled(question: Question, metric: str) -> None:
    """Raise InvalidInput, which names the metric, unless every batch has labels."""
    for number, (_, labels) in enumerate(question.batches):
        if labels is None:
            raise InvalidInput(
                f"metric {metric!r} needs labels, batch {number} has none: give batches that end with them, or take a "
                "metric that needs none, as fisher"
            )


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
