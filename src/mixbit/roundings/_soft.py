"""Rounding that is learned, pure maths: between the integer below and the one above, softly at first (AdaRound)."""

import torch
from torch import Tensor

from mixbit.quantization.affine import along

#: The sigmoid is stretched to [GAMMA, ZETA] and cut off at 0 and 1, so that its ends are reached.
ZETA, GAMMA = 1.1, -0.1


def rise(v: Tensor) -> Tensor:
    """h(v) = clip(sigmoid(v) (ZETA - GAMMA) + GAMMA, 0, 1): how far a weight goes towards the integer above."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def start(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The v at which the soft weight is the weight itself: h(v) = w / s - floor(w / s)."""
    position = weight / along(scale, axis, weight.shape)
    share = (position - position.floor()).clamp(0.01, 0.99)
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def soft_weight(
    weight: Tensor, v: Tensor, factors: tuple[Tensor, Tensor], axis: int, limits: tuple[int, int]
) -> Tensor:
    """The weight w as s (clip(floor(w / s) + h(v) + z, low, high) - z), for factors (s, z) of its format."""
    scale, zero_point = (along(one, axis, weight.shape) for one in factors)
    return ((weight / scale).floor() + rise(v) + zero_point).clamp(*limits).sub(zero_point).mul(scale)


def hard_weight(
    weight: Tensor, v: Tensor, factors: tuple[Tensor, Tensor], axis: int, limits: tuple[int, int]
) -> Tensor:
    """The soft weight with h(v) rounded to 0 or 1: a whole multiple of the scale."""
    scale, zero_point = (along(one, axis, weight.shape) for one in factors)
    integers = ((weight / scale).floor() + (v >= 0).to(weight) + zero_point).clamp(*limits)
    return integers.sub(zero_point).mul(scale)


def penalty(v: Tensor, beta: float) -> Tensor:
    """Mean of 1 - |2 h(v) - 1|^beta: 0 where every weight has decided, 1 where none has."""
    return (1 - (2 * rise(v) - 1).abs().pow(beta)).mean()


def beta_at(progress: float, warm_up: float, first: float, last: float) -> float | None:
    """The penalty's exponent at a share of all iterations: none while warming up, then linearly from first to last."""
    if progress < warm_up:
        return None
    return first + (last - first) * (progress - warm_up) / (1 - warm_up)
