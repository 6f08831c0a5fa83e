"""The quantizer on an edge of a graph: quantize and dequantize, straight-through in backward."""

from typing import Any

import torch
from torch import Tensor, nn

from mixbit import affine
from mixbit.scheme import Format


@torch.library.custom_op("mixbit::quantize_dequantize", mutates_args=())
def quantize_dequantize(  # noqa: PLR0917 torch.export finds the arguments of an operator by position
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int, tensor: str
) -> Tensor:
    """(clip(round(x / scale) + zero_point, low, high) - zero_point) * scale; axis -1 means one scale.

    One operator, which also carries the tensor's name, so that the writers of targets find each quantizer in an
    exported graph as one node.
    """
    where = None if axis < 0 else axis
    return affine.dequantize(affine.quantize(x, scale, zero_point, where, low, high), scale, zero_point, where)


@quantize_dequantize.register_fake
def _(  # noqa: PLR0917 as above
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int, tensor: str
) -> Tensor:
    return torch.empty_like(x)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, axis, low, high, _ = inputs
    where = None if axis < 0 else axis
    scale, zero_point = affine.along(scale, where, x.ndim), affine.along(zero_point, where, x.ndim)
    inside = (x >= (low - zero_point - 0.5) * scale) & (x <= (high - zero_point + 0.5) * scale)
    ctx.save_for_backward(inside)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, None, None, None, None, None, None


quantize_dequantize.register_autograd(_straight_through, setup_context=_save_for_backward)


class Quantizer(nn.Module):
    """Quantizes and dequantizes one tensor: a weight along `axis`, or an activation as a whole.

    Attributes:
        tensor: Name of the quantized tensor: the parameter's full name, or the graph node's.
        format: How the tensor is stored.
        axis: Output-channel axis, None for one scale.
        scale: One positive number, or one per channel.
        zero_point: Whole numbers, shaped like `scale`; zeros that are not stored where the format is symmetric.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, tensor: str, fmt: Format, axis: int | None, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.tensor = tensor
        self.format = fmt
        self.axis = axis
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point, persistent=not fmt.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest representable tensor; gradients pass where x is inside the range."""
        axis = -1 if self.axis is None else self.axis
        return quantize_dequantize(x, self.scale, self.zero_point, axis, *self.format.integer_range, self.tensor)

    def integers(self, x: Tensor) -> Tensor:
        """The integers themselves, int32."""
        low, high = self.format.integer_range
        return affine.quantize(x, self.scale, self.zero_point, self.axis, low, high).to(torch.int32)

    def extra_repr(self) -> str:
        """Name and bits, for print(module)."""
        return f"{self.tensor}, bits={self.format.bits}, axis={self.axis}"
