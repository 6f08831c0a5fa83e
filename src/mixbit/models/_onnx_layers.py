"""What ONNX's convolutions, products, normalisations and recurrent layers are in torch.

Each function has the name and the attributes of its operator; an input that is left out is None.
"""
# ruff: noqa: ARG001, N802, N803, PLR0913 names and arguments are ONNX's, and so is what they mean

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixbit.models._onnx_elementwise import Value
from mixbit.models._onnx_numbers import tensor

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def Conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    dims = weight.ndim - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    around = paddings(x, list(weight.shape[2:]), strides, dilations, auto_pad, pads)
    x, padding = padded(x, around, 0.0)
    return _CONVOLUTIONS[dims](x, weight, bias, strides, padding, dilations, group)


def paddings(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], auto_pad: str, pads: list[int] | None
) -> list[tuple[Any, Any]]:
    """(before, behind) of each dimension behind the channels."""
    dims = len(kernel)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        pads = pads or [0] * 2 * dims
        return list(zip(pads[:dims], pads[dims:], strict=True))
    around = []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size
        total = (width - 1) * dilation if stride == 1 else torch.sym_max(total, 0)
        less = total // 2
        around.append((less, total - less) if auto_pad == "SAME_UPPER" else (total - less, less))
    return around


def padded(x: Tensor, around: list[tuple[Any, Any]], fill: float) -> tuple[Tensor, list[Any]]:
    """The tensor, padded where both ends differ, and the padding that is left for the operator."""
    if all(before is behind or before == behind for before, behind in around):
        return x, [before for before, _ in around]
    return functional.pad(x, [size for pair in reversed(around) for size in pair], value=fill), [0] * len(around)


def ConvTranspose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    dims = weight.ndim - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    further = output_padding or [0] * dims
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1 + more
        for size, stride, width, dilation, more in zip(
            x.shape[2:], strides, weight.shape[2:], dilations, further, strict=True
        )
    ]
    around = _cut(x, full, strides, auto_pad, output_shape, pads)
    if all(before == behind and before >= 0 for before, behind in around):
        padding = [before for before, _ in around]
        return _TRANSPOSED[dims](x, weight, bias, strides, padding, further, group, dilations)
    y = _TRANSPOSED[dims](x, weight, bias, strides, [0] * dims, further, group, dilations)
    return functional.pad(y, [-size for pair in reversed(around) for size in pair])


def _cut(
    x: Tensor, full: list[Any], strides: list[int], auto_pad: str, output_shape: list[int] | None,
    pads: list[int] | None,
) -> list[tuple[Any, Any]]:  # fmt: skip
    """How much of the whole output is cut off at both ends of each dimension."""
    dims, is_same = len(full), auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if output_shape is None and not is_same:
        pads = pads or [0] * 2 * dims
        return list(zip(pads[:dims], pads[dims:], strict=True))
    wanted = output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    around = []
    for size, want in zip(full, wanted[-dims:], strict=True):
        total = size - want
        if is_same:
            total = torch.sym_max(total, 0)
        around.append(
            (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)
        )
    return around


def Gemm(
    a: Tensor,
    b: Tensor,
    c: Value = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    y = torch.matmul(a.t() if transA else a, b.t() if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is None:
        return y
    return y + (tensor(c, y) if beta == 1 else tensor(c, y) * beta)


def Linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight' + bias: what Gemm and MatMul are by a constant matrix."""
    return functional.linear(x, weight, bias)


def MatMul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(tensor(a), tensor(b))


def Einsum(*parts: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *parts)


def BatchNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    if training_mode or not spatial:
        raise ValueError("it normalises by the batch, or each place for itself; export in eval mode, by channels")
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def InstanceNormalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def LayerNormalization(
    x: Tensor,
    scale: Value,
    bias: Value = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = list(x.shape[axis:])
    scale, bias = (None if part is None else tensor(part, x).expand(shape) for part in (scale, bias))
    return functional.layer_norm(x, shape, scale, bias, epsilon)


def RMSNormalization(x: Tensor, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    shape = list(x.shape[axis:])
    return functional.rms_norm(x, shape, tensor(scale, x).expand(shape), epsilon)


def GroupNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int, stash_type: int = 1
) -> Tensor:
    channels = x.shape[1]
    if scale.shape[0] != channels:  # before opset 21 each group has one
        scale, bias = (part.repeat_interleave(channels // num_groups) for part in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True).clamp_min(1e-12)


def MeanVarianceNormalization(x: Tensor, *, axes: list[int] | None = None) -> Tensor:
    axes = axes or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def LRN(x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Tensor:
    return functional.local_response_norm(x, size, alpha, beta, bias)


def Attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> Tensor:
    if softcap:
        raise ValueError(f"softcap {softcap} is not followed; export attention without it, or as products")
    flat = q.ndim == 3
    if flat:
        heads: list[Any] = [q_num_heads, kv_num_heads, kv_num_heads]
        q, k, v = (
            part.unflatten(-1, (count, -1)).transpose(1, 2) for part, count in zip((q, k, v), heads, strict=True)
        )
    y = scaled_attention(q, k, v, mask, is_causal=bool(is_causal), scale=scale)
    return y.transpose(1, 2).flatten(2) if flat else y


def scaled_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale q k' + mask) v; heads of k and v may serve several of q."""
    groups = q.shape[1] // k.shape[1] if q.ndim == 4 and isinstance(q.shape[1], int) else 1
    if groups != 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)


def LSTM(
    x: Tensor, hidden: Value, cell: Value, *weights: Tensor, both_ways: bool, with_biases: bool, layout: int
) -> Any:
    """Y [T, D, N, H], Y_h and Y_c [D, N, H]; or with `layout` [N, T, D, H] and [N, D, H]."""
    state = [_state(part, x, weights, both_ways, layout) for part in (hidden, cell)]
    y, *last = torch.lstm(x, state, weights, with_biases, 1, 0.0, False, both_ways, bool(layout))
    return _laid(y, last, both_ways, layout)


def GRU(x: Tensor, hidden: Value, *weights: Tensor, both_ways: bool, with_biases: bool, layout: int) -> Any:
    """As LSTM, without a cell."""
    state = _state(hidden, x, weights, both_ways, layout)
    y, *last = torch.gru(x, state, weights, with_biases, 1, 0.0, False, both_ways, bool(layout))
    return _laid(y, last, both_ways, layout)


def RNN(x: Tensor, hidden: Value, *weights: Tensor, both_ways: bool, with_biases: bool, layout: int, kind: str) -> Any:
    """As GRU, with one gate; kind is `tanh` or `relu`."""
    state = _state(hidden, x, weights, both_ways, layout)
    run = torch.rnn_relu if kind == "relu" else torch.rnn_tanh
    y, *last = run(x, state, weights, with_biases, 1, 0.0, False, both_ways, bool(layout))
    return _laid(y, last, both_ways, layout)


def _state(given: Value, x: Tensor, weights: tuple[Tensor, ...], both_ways: bool, layout: int) -> Tensor:
    """[D, N, H] the state before the first step: zeros where none is given, and one for all samples repeated."""
    directions, count, width = 2 if both_ways else 1, x.shape[0 if layout else 1], weights[1].shape[1]
    if given is None:
        return x.new_zeros(directions, count, width)
    given = tensor(given, x, x.dtype)
    given = given.transpose(0, 1) if layout else given
    is_one = isinstance(given.shape[1], int) and given.shape[1] == 1
    return given.expand(directions, count, width) if is_one else given


def _laid(y: Tensor, last: list[Tensor], both_ways: bool, layout: int) -> tuple[Tensor, ...]:
    y = y.unflatten(-1, (2, -1)) if both_ways else y.unsqueeze(2)  # [T, N, D, H]
    return (y, *(part.transpose(0, 1) for part in last)) if layout else (y.transpose(1, 2), *last)
