"""The quantizer on an edge of a graph: quantize and dequantize, straight-through in backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixbit.core import Format, Spill
from mixbit.graph.graph import Graph
from mixbit.graph.stored import SMALL, attribute_of, leave
from mixbit.quantization import affine
from mixbit.quantization.sums import requantize


@torch.library.custom_op("mixbit::quantize_dequantize", mutates_args=())
def quantize_dequantize(  # noqa: PLR0917 torch.export finds the arguments of an operator by position
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, low: int, high: int, tensor: str, shifted: bool
) -> Tensor:
    """(clip(round(x / scale) + zero_point, low, high) - zero_point) * scale; axis -1 means one scale.

    With `shifted` it is round(x / scale + zero_point), see `affine.quantize`. One operator with the tensor's name, so
    that the writers of targets find each quantizer as one node.
    """
    return affine.rounded(x, scale, zero_point, None if axis < 0 else axis, low, high, shifted=shifted)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, axis, low, high, *_ = inputs
    ctx.axis, ctx.limits = None if axis < 0 else axis, (low, high)
    if ctx.needs_input_grad[1]:
        ctx.save_for_backward(x, scale, zero_point)
        return
    scale, zero_point = affine.along(scale, ctx.axis, x.shape), affine.along(zero_point, ctx.axis, x.shape)
    ctx.save_for_backward((x >= (low - zero_point - 0.5) * scale) & (x <= (high - zero_point + 0.5) * scale))


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[1]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None, None, None, None
    x, scale, zero_point = ctx.saved_tensors
    gradients = affine.straight_through(x, scale, zero_point, ctx.axis, ctx.limits, gradient)
    return *gradients, None, None, None, None, None, None


@torch.library.custom_op("mixbit::round_to_type", mutates_args=())
def round_to_type(x: Tensor, kind: str, tensor: str) -> Tensor:
    """The nearest numbers of a floating-point type, `float16` or `bfloat16`, in x's own; the largest where x is beyond.

    One operator, as above.
    """
    dtype = getattr(torch, kind)
    limits = torch.finfo(dtype)
    return x.clamp(limits.min, limits.max).to(dtype).to(x.dtype, copy=True)


class _LearnedScale(torch.autograd.Function):
    """A scale kept positive; in backward the share of its gradient that training sees."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, share: float) -> Tensor:
        ctx.share = share
        return _positive(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


def _positive(scale: Tensor) -> Tensor:
    return scale.clamp(min=torch.finfo(scale.dtype).tiny)


@torch.library.custom_op("mixbit::quantize_at_run_time", mutates_args=())
def quantize_at_run_time(x: Tensor, bits: int, rows: bool, group: int, tensor: str, zeros: bool = False) -> Tensor:
    """(clip(round(x / scale) + zero_point) - zero_point) * scale with the factors of `affine.run_time_factors`.

    One operator, as above. With `rows` each row has a scale, and with `zeros` a zero point too, or with `group` every
    so many values of a row.
    """
    granularity = "tensor" if not rows else "group" if group else "row"
    fmt = Format(bits, granularity, rows and not zeros, group or None, dynamic=True)
    parts = affine.in_groups(x, fmt) if rows else x
    scale, zero_point = affine.run_time_factors(parts, fmt)
    integers = (parts / scale).round_().add_(zero_point).clamp_(*fmt.integer_range)
    return integers.sub_(zero_point).mul_(scale).reshape(x.shape)


def _shaped_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


quantize_dequantize.register_fake(_shaped_like)
quantize_dequantize.register_autograd(_straight_through, setup_context=_save_for_backward)
round_to_type.register_fake(_shaped_like)
round_to_type.register_autograd(lambda ctx, gradient: (gradient, None, None))  # noqa: ARG005 straight through
quantize_at_run_time.register_fake(_shaped_like)
quantize_at_run_time.register_autograd(
    lambda ctx, gradient: (gradient, *[None] * 5)  # noqa: ARG005 straight through: nothing is clipped
)


@dataclass(frozen=True, eq=False)
class Sums:
    """What a layer returns in integers, before they are made those of its output.

    Attributes:
        read: The quantizer of what the layer reads.
        weight: That of its weight.
        axis: Dimension of the channels: 1, or -1 for the last.
        halves: How the runtime rounds, see `mixbit.quantization.sums.whole_numbers`.
        bounds: Between which they were clipped.
    """

    read: "Quantizer"
    weight: "Quantizer"
    axis: int
    halves: str
    bounds: tuple[float, float]

    @property
    def learns(self) -> bool:
        """Whether a scale of them is being trained."""
        return self.read.learns or self.weight.learns

    def operator(self, scale: Tensor, zero_point: Tensor, low: int, high: int) -> tuple[Any, tuple[Any, ...]]:
        """The operator of what the runtime does, and its arguments behind x."""
        step = self.read.scale.double() * self.weight.scale.double()
        return requantize, (step, self.axis, scale, zero_point, low, high, *self.bounds, self.halves)


class Quantizer(nn.Module):
    """Quantizes and dequantizes one tensor: a weight along `axis`, or an activation as a whole.

    Attributes:
        tensor: Name of the quantized tensor: the parameter's full name, or the graph node's.
        format: How the tensor is stored.
        axis: Output-channel axis of a weight, None for an activation.
        scale: Positive numbers: one, one per channel, or [channels, groups]; a buffer, or a parameter that is learned.
            Like the zero point it is not used where the range is taken at run time or numbers are floating-point.
        zero_point: Whole numbers, shaped like `scale`; zeros that are not stored where the format is symmetric.
        mask: True where a weight of a sparse format stays, shaped like it; None elsewhere.
        share: What a learned scale's gradient is multiplied by.
        shifted: Whether the zero point is added before rounding, as some targets do.
        sums: Of an activation that an operator in integers returns, where the target rounds these itself; else None.
        stored: Scale, zero point or mask -> how it is read, of a network larger than memory.
    """

    scale: Tensor
    zero_point: Tensor
    mask: Tensor | None

    def __init__(
        self, tensor: str, fmt: Format, axis: int | None, scale: Tensor, zero_point: Tensor, mask: Tensor | None = None
    ) -> None:
        super().__init__()
        self.tensor, self.format, self.axis, self.share, self.shifted = tensor, fmt, axis, 1.0, False
        self.sums: Sums | None = None
        self.stored: dict[str, Callable[[], Tensor]] = {}
        self.register_buffer("scale", scale, persistent=fmt.floating is None and not fmt.dynamic)
        self.register_buffer("zero_point", zero_point, persistent=not fmt.symmetric and not fmt.dynamic)
        self.register_buffer("mask", mask, persistent=False)

    def __getattr__(self, name: str) -> Any:
        return attribute_of(self, name, super().__getattr__)

    def leave_in(self, spill: Spill) -> None:
        """Leave what is large, as the scales of many groups are, in a file, and read it when it is needed."""
        for name, value in list(self.named_buffers()):
            if value.nbytes >= SMALL:
                leave(self, name, spill.held(value))

    def forward(self, x: Tensor) -> Tensor:
        """The nearest representable tensor; gradients pass where x is inside the range."""
        x = x if self.mask is None else x * self.mask
        scale = _LearnedScale.apply(self.scale, self.share) if self.learns else self.scale
        if self.sums is not None and not (self.learns or self.sums.learns):
            operator, arguments = self.sums.operator(scale, self.zero_point, *self.format.integer_range)
        else:
            operator, arguments = self.operator(scale, self.zero_point)
        return operator(x, *arguments)

    def operator(self, scale: Any, zero_point: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """The operator of what it does, and its arguments behind x, among them this scale and zero point if it asks."""
        fmt = self.format
        if fmt.floating is not None:
            return torch.ops.mixbit.round_to_type.default, (fmt.floating, self.tensor)
        if fmt.dynamic:
            rows = fmt.granularity != "tensor"
            arguments = fmt.bits, rows, fmt.group or 0, self.tensor, rows and not fmt.symmetric
            return torch.ops.mixbit.quantize_at_run_time.default, arguments
        axis = -1 if self.axis is None else self.axis
        arguments = scale, zero_point, axis, *fmt.integer_range, self.tensor, self.shifted
        return torch.ops.mixbit.quantize_dequantize.default, arguments

    def integers(self, x: Tensor) -> Tensor:
        """The integers themselves, int32."""
        x = x if self.mask is None else x * self.mask
        limits = self.format.integer_range
        integers = affine.quantize(x, self.scale, self.zero_point, self.axis, *limits, shifted=self.shifted)
        return integers.to(torch.int32)

    @property
    def learns(self) -> bool:
        """Whether the scale is a parameter, which training changes."""
        return isinstance(self.scale, nn.Parameter)

    def learn_scale(self, share: float = 1.0) -> nn.Parameter:
        """Make the scale a parameter, its gradient multiplied by the share; its name in the state stays."""
        scale = nn.Parameter(self.scale.detach().clone())
        del self.scale
        self.scale, self.share = scale, share
        return scale

    def settle_scale(self) -> None:
        """Make a learned scale a buffer again, positive even where training left it below 0."""
        if self.learns:
            scale = _positive(self.scale.detach())
            del self.scale
            self.register_buffer("scale", scale, persistent=self.format.floating is None)

    def extra_repr(self) -> str:
        """Name and bits, for print(module)."""
        return f"{self.tensor}, bits={self.format.bits}, axis={self.axis}"


def run_time_quantizer(tensor: str, fmt: Format, device: torch.device) -> Quantizer:
    """The quantizer of an activation whose range is taken at run time."""
    scale = torch.ones((), device=device)
    return Quantizer(tensor, fmt, None, scale, torch.zeros_like(scale))


def quantizers_of(graph: Graph) -> list[Quantizer]:
    """The graph's quantizers, those of weights first."""
    quantizers = [module for module in graph.module.modules() if isinstance(module, Quantizer)]
    return sorted(quantizers, key=lambda quantizer: quantizer.axis is None)


def weight_quantizers(graph: Graph) -> dict[str, Quantizer]:
    """Layer -> quantizer of its weight."""
    return {quantizer.tensor: quantizer for quantizer in quantizers_of(graph) if quantizer.axis is not None}


def activation_quantizers(graph: Graph) -> dict[str, Quantizer]:
    """Node -> quantizer of its tensor."""
    return {quantizer.tensor: quantizer for quantizer in quantizers_of(graph) if quantizer.axis is None}


def quantizer_path(tensor: str, *, of_weight: bool) -> str:
    """Full name of the quantizer's module in the graph; a parameter and a node may share a name."""
    return f"mixbit_quantizers.{'weights' if of_weight else 'activations'}.{tensor}"
