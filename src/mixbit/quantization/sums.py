"""How runtimes make integers of sums of integers: exactly, whatever the order in which a simulation adds in float."""

from typing import Any

import torch
from torch import Tensor

from mixbit.quantization.affine import FEW_ELEMENTS

#: Ways to round a sum times a factor to a whole number, see `whole_numbers`.
HALVES = ("even", "up", "away")
#: Bits of a factor in fixed point, beside its sign.
_BITS = 31


def whole_numbers(sums: Tensor, factor: Tensor, halves: str) -> Tensor:
    """Sums times a factor, rounded to whole numbers; int64, shaped like the sums.

    `even`: the product in float32, rounded to the nearest, ties to the even one, as XNNPACK does. `up` and `away`: the
    factor is M x 2^(e - 31) with M of 31 bits, and the product is rounded twice, after 31 bits and after the other -e,
    halves up or away from zero, as the kernels of TensorFlow Lite do.

    Args:
        sums: int64.
        factor: float64, positive, broadcasts with the sums.
        halves: One of HALVES.
    """
    if halves == "even":
        return (sums.float() * factor.float()).round().long()
    mantissa, exponent = torch.frexp(factor)
    whole, exponent = (mantissa * 2**_BITS).round().long(), exponent.long()
    product = (sums << exponent.clamp(min=0)) * whole
    shift = (-exponent).clamp(min=0)
    if halves == "up":
        high = (product + 2 ** (_BITS - 1)) >> _BITS
        return (high + ((1 << shift) >> 1)) >> shift
    high = product.sign() * ((product.abs() + 2 ** (_BITS - 1)) >> _BITS)
    return high.sign() * ((high.abs() + ((1 << shift) >> 1)) >> shift)


@torch.library.custom_op("mixbit::requantize", mutates_args=())
def requantize(  # noqa: PLR0913, PLR0917 torch.export finds the arguments of an operator by position
    x: Tensor, step: Tensor, axis: int, scale: Tensor, zero_point: Tensor, low: int, high: int, least: float,
    most: float, halves: str,
) -> Tensor:  # fmt: skip
    """(clip(R(x / step) + zero_point, low, high) - zero_point) * scale with R of `whole_numbers`, factor step / scale.

    x holds sums in multiples of `step` (float64), up to the error of adding them in float; there is one, or one for
    each index of the axis, 1 or -1. What was clipped at `least` or `most` becomes the integer of that bound.
    """
    result = torch.empty_like(x)
    step = step if axis < 0 or step.numel() == 1 else step.reshape(-1, *[1] * (x.ndim - 2))
    factor = step.float() / scale if halves == "even" else step / scale.double()
    ends = [_end(bound, scale, zero_point, low, high) for bound in (least, most)]
    size = max(1, FEW_ELEMENTS * len(x) // max(1, x.numel()))
    for part, into in zip(x.split(size), result.split(size), strict=True):
        integers = whole_numbers((part.double() / step).round_().long(), factor, halves) + zero_point.long()
        integers = torch.where(part >= most, ends[1], torch.where(part <= least, ends[0], integers))
        into.copy_(integers.clamp_(*ends) - zero_point.long()).mul_(scale)
    return result


def _end(bound: float, scale: Tensor, zero_point: Tensor, low: int, high: int) -> int:
    """The integer of a bound."""
    return int((bound / scale).round().add(zero_point).clamp(low, high))


def _shaped_like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 torch calls it so
    x, _, _, scale, zero_point, low, high, *_ = inputs
    inside = (x >= (low - zero_point - 0.5) * scale) & (x <= (high - zero_point + 0.5) * scale)
    ctx.save_for_backward(inside)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, *[None] * 9


requantize.register_fake(_shaped_like)
requantize.register_autograd(_straight_through, setup_context=_save_for_backward)
