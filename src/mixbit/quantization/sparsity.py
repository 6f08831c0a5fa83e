"""Which weights are zero, pure maths: exactly as many as a pattern says, and the least important ones.

A row is what one output channel reads: its weights in the order of the kernel's positions, the input channels of each
position next to one another. `2:4` counts along rows, as hardware does.
"""

import math

import torch
from torch import Tensor

from mixbit.core import Sparsity


def num_zeros(numel: int, sparsity: Sparsity) -> int:
    """Zeros among that many weights: the share of them, rounded down; blocks that divide the rows have it exactly."""
    return numel * sparsity.zeros // (sparsity.block or 100)


def misfit(shape: tuple[int, ...], axis: int, sparsity: Sparsity) -> str | None:
    """What keeps a weight of that shape from that pattern, and the way out; None where nothing does."""
    row = math.prod(shape) // shape[axis]
    if sparsity.block is None or row % sparsity.block == 0:
        return None
    return (
        f"blocks of {sparsity.block} do not divide its rows of {row} weights; take the scheme without @{sparsity}, or "
        f"a share of the whole tensor, as @{round(100 * sparsity.share)}%"
    )


def choose_kept(importance: Tensor, axis: int, sparsity: Sparsity) -> Tensor:
    """Which weights stay: of every block, or of the whole tensor, all but the least important ones.

    Args:
        importance: Of each weight, in its shape. Of equal ones the first becomes zero first.
        axis: Output-channel axis of the weight; the first of the other axes is that of its input channels.
        sparsity: A pattern that fits, see `misfit`; it makes exactly `num_zeros` zeros.

    Returns:
        A mask of the weight's shape, False at the zeros.
    """
    by_rows = importance.movedim(axis, 0).movedim(1, -1)  # [channels, ..., input channels]
    parts = by_rows.reshape(-1, sparsity.block) if sparsity.block else importance.reshape(1, -1)
    zeros = torch.argsort(parts, dim=1, stable=True)[:, : num_zeros(parts.shape[1], sparsity)]
    mask = torch.ones_like(parts, dtype=torch.bool).scatter_(1, zeros, value=False)
    if not sparsity.block:
        return mask.reshape(importance.shape)
    return mask.reshape(by_rows.shape).movedim(-1, 1).movedim(0, axis).contiguous()


def magnitude(weight: Tensor) -> Tensor:
    """Importance |w|, the cheapest guess at what a weight is worth."""
    return weight.abs()


def fisher_weighted(weight: Tensor, mean_square_gradient: Tensor) -> Tensor:
    """Importance w^2 E_i[g_i^2], twice the KL divergence that zeroing this weight alone makes, to second order.

    With g_i the gradient of sample i's loss by the weight, E_i[g_i^2] is the diagonal of the Fisher information.
    Source: L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv:1801.05787.
    """
    return weight.square() * mean_square_gradient
