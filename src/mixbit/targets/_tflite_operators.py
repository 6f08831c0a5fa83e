"""What each of torch's operators is in TensorFlow Lite: functions of each element, and sums along dimensions."""
# ruff: noqa: PLR0917 the arguments are those of torch's operators

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema

from mixbit.targets import _tflite_products, _tflite_shapes
from mixbit.targets._tflite_between import (
    FUSED,
    clipped_in_integers,
    in_integers,
    mean_in_integers,
    sum_in_integers,
)
from mixbit.targets._tflite_table import (
    OPERATORS,
    Result,
    axis_of,
    cast,
    elementwise,
    left_of,
    number,
    reshaped,
    writes,
)
from mixbit.targets._tflite_values import Value, logical
from mixbit.targets._tflite_writer import Writer

_aten = torch.ops.aten
#: Tables that fill themselves when they are imported.
PARTS = (_tflite_products, _tflite_shapes)
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_LAST = 2**31 - 1


# functions of one tensor, element by element


def _function(kind: str, w: Writer, out: Result, x: Value) -> Value:
    if kind in FUSED and out.ends is None and in_integers(out, x):
        return clipped_in_integers(w, out, x, kind)
    return elementwise(w, kind, out.dtype, cast(w, x, out.dtype))


for _name, _kind in {
    "sigmoid": "LOGISTIC", "tanh": "TANH", "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT", "abs": "ABS",
    "neg": "NEG", "ceil": "CEIL", "floor": "FLOOR", "round": "ROUND", "sign": "SIGN", "sin": "SIN", "cos": "COS",
    "square": "SQUARE", "relu": "RELU", "relu6": "RELU6", "logical_not": "LOGICAL_NOT",
}.items():  # fmt: skip
    OPERATORS[getattr(_aten, _name).default] = partial(_function, _kind)


@writes(_aten.reciprocal.default)
def _reciprocal(w: Writer, out: Result, x: Value) -> Value:
    return elementwise(w, "DIV", out.dtype, number(1, out.dtype), cast(w, x, out.dtype))


@writes(_aten.silu.default)
def _silu(w: Writer, out: Result, x: Value) -> Value:
    return elementwise(w, "MUL", out.dtype, x, elementwise(w, "LOGISTIC", out.dtype, x))


@writes(_aten.hardsigmoid.default)
def _hardsigmoid(w: Writer, out: Result, x: Value) -> Value:
    clipped = elementwise(w, "RELU6", out.dtype, elementwise(w, "ADD", out.dtype, x, 3.0))
    return elementwise(w, "MUL", out.dtype, clipped, 1 / 6)


@writes(_aten.hardswish.default)
def _hardswish(w: Writer, out: Result, x: Value) -> Value:
    if w.packs:
        return elementwise(w, "HARD_SWISH", out.dtype, x)
    return elementwise(w, "MUL", out.dtype, x, _hardsigmoid(w, out, x))  # Vela takes no HARD_SWISH of floats (5.2)


@writes(_aten.gelu.default)
def _gelu(w: Writer, out: Result, x: Value, approximate: str = "none") -> Value:
    return elementwise(w, "GELU", out.dtype, x, approximate=approximate == "tanh")


@writes(_aten.leaky_relu.default)
def _leaky_relu(w: Writer, out: Result, x: Value, slope: float = 0.01) -> Value:
    return elementwise(w, "LEAKY_RELU", out.dtype, x, alpha=float(slope))


@writes(_aten.elu.default)
def _elu(w: Writer, out: Result, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value | None:
    return elementwise(w, "ELU", out.dtype, x) if alpha == scale == input_scale == 1 else None


@writes(_aten.softplus.default)
def _softplus(w: Writer, out: Result, x: Value, beta: float = 1, *_threshold: float) -> Value:
    """max(x, 0) + log(1 + exp(-|x|)), which overflows nowhere; torch's threshold changes less than float32 holds."""
    scaled = x if beta == 1 else elementwise(w, "MUL", out.dtype, x, float(beta))
    power = elementwise(w, "EXP", out.dtype, elementwise(w, "NEG", out.dtype, elementwise(w, "ABS", out.dtype, scaled)))
    logarithm = elementwise(w, "LOG", out.dtype, elementwise(w, "ADD", out.dtype, power, 1.0))
    soft = elementwise(w, "ADD", out.dtype, elementwise(w, "RELU", out.dtype, scaled), logarithm)
    return soft if beta == 1 else elementwise(w, "MUL", out.dtype, soft, 1 / beta)


@writes(_aten.mish.default)
def _mish(w: Writer, out: Result, x: Value) -> Value:
    return elementwise(w, "MUL", out.dtype, x, elementwise(w, "TANH", out.dtype, _softplus(w, out, x)))


@writes(_aten.prelu.default)
def _prelu(w: Writer, out: Result, x: Value, slope: Value) -> Value:
    slope = reshaped_constant(slope, [-1] + [1] * (x.rank - 2)) if slope.shape != (1,) else slope
    negative = elementwise(w, "MUL", out.dtype, elementwise(w, "MINIMUM", out.dtype, x, 0.0), slope)
    return elementwise(w, "ADD", out.dtype, elementwise(w, "RELU", out.dtype, x), negative)


@writes(_aten.glu.default)
def _glu(w: Writer, out: Result, x: Value, dim: int = -1) -> Value | None:
    axis, half = axis_of(x, dim), out.shape[axis_of(x, dim)]
    if not isinstance(half, int):
        return None
    first, second = (_tflite_shapes.sliced(w, x, axis, start, half) for start in (0, half))
    return elementwise(w, "MUL", out.dtype, first, elementwise(w, "LOGISTIC", out.dtype, second))


@writes(_aten.clamp.default, _aten.clamp.Tensor)
def _clip(w: Writer, out: Result, x: Value, low: Any = None, high: Any = None) -> Value:
    x = cast(w, x, out.dtype)
    x = x if low is None else elementwise(w, "MAXIMUM", out.dtype, x, cast(w, low, out.dtype))
    return x if high is None else elementwise(w, "MINIMUM", out.dtype, x, cast(w, high, out.dtype))


OPERATORS[_aten.hardtanh.default] = lambda w, out, x, low=-1, high=1: _clip(w, out, x, low, high)
OPERATORS[_aten.clamp_min.default] = OPERATORS[_aten.clamp_min.Tensor] = _clip
OPERATORS[_aten.clamp_max.default] = OPERATORS[_aten.clamp_max.Tensor] = lambda w, out, x, high: _clip(
    w, out, x, None, high
)


@writes(
    _aten._to_copy.default, _aten.to.dtype, _aten.type_as.default, _aten.clone.default, _aten.contiguous.default,
    _aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default,
)  # fmt: skip
def _same(w: Writer, out: Result, x: Value, *_: Any) -> Value:
    return cast(w, x, out.dtype)


@writes(_aten.dropout.default)
def _dropout(_: Writer, _out: Result, x: Value, _share: float, train: bool) -> Value | None:
    return None if train else x


# functions of two tensors, element by element


def _sum(kind: str, w: Writer, out: Result, x: Any, y: Any, alpha: float = 1) -> Value | None:
    if out.dtype == torch.bool:
        return None
    if kind == "ADD" and alpha == 1 and in_integers(out, x, y):
        return sum_in_integers(w, out, x, y)
    y = cast(w, y, out.dtype)
    if alpha != 1:
        y = elementwise(w, "MUL", out.dtype, y, number(alpha, out.dtype))
    return elementwise(w, kind, out.dtype, cast(w, x, out.dtype), y)


for _add in (_aten.add.Tensor, _aten.add.Scalar):
    OPERATORS[_add] = partial(_sum, "ADD")
for _sub in (_aten.sub.Tensor, _aten.sub.Scalar):
    OPERATORS[_sub] = partial(_sum, "SUB")
for _sub in (_aten.rsub.Tensor, _aten.rsub.Scalar):
    OPERATORS[_sub] = lambda w, out, x, y, alpha=1: _sum("SUB", w, out, y, x, alpha)


def _binary(kind: str, w: Writer, out: Result, x: Any, y: Any) -> Value:
    kind = "LOGICAL_AND" if out.dtype == torch.bool and kind == "MUL" else kind
    return elementwise(w, kind, out.dtype, cast(w, x, out.dtype), cast(w, y, out.dtype))


for _kind, _targets in {
    "MUL": (_aten.mul.Tensor, _aten.mul.Scalar), "DIV": (_aten.div.Tensor, _aten.div.Scalar),
    "MAXIMUM": (_aten.maximum.default, _aten.max.other), "MINIMUM": (_aten.minimum.default, _aten.min.other),
    "POW": (_aten.pow.Tensor_Tensor, _aten.pow.Tensor_Scalar, _aten.pow.Scalar),
    "LOGICAL_AND": (_aten.logical_and.default,), "LOGICAL_OR": (_aten.logical_or.default,),
}.items():  # fmt: skip
    OPERATORS.update(dict.fromkeys(_targets, partial(_binary, _kind)))


def _of_truths(kind: str, w: Writer, out: Result, x: Any, y: Any) -> Value | None:
    return _binary(kind, w, out, x, y) if out.dtype == torch.bool else None


for _kind, _name in {"LOGICAL_AND": "and", "LOGICAL_OR": "or"}.items():
    for _packet in (getattr(_aten, f"bitwise_{_name}"), getattr(_aten, f"__{_name}__")):
        OPERATORS[_packet.Tensor] = OPERATORS[_packet.Scalar] = partial(_of_truths, _kind)
OPERATORS[_aten.bitwise_not.default] = lambda w, out, x: (
    _function("LOGICAL_NOT", w, out, x) if out.dtype == torch.bool else None
)


def _comparison(kind: str, w: Writer, out: Result, x: Any, y: Any) -> Value:
    pair = [value for value in (x, y) if isinstance(value, Value)]
    floats = [value.dtype for value in pair if value.dtype.is_floating_point]
    dtype = (floats or [value.dtype for value in pair])[0]
    if not floats and any(isinstance(value, float) for value in (x, y)):
        dtype = torch.float32
    return elementwise(w, kind, out.dtype, cast(w, x, dtype), cast(w, y, dtype))


for _name, _kind in {
    "eq": "EQUAL", "ne": "NOT_EQUAL", "lt": "LESS", "le": "LESS_EQUAL", "gt": "GREATER", "ge": "GREATER_EQUAL",
}.items():  # fmt: skip
    for _target in (getattr(_aten, _name).Tensor, getattr(_aten, _name).Scalar):
        OPERATORS[_target] = partial(_comparison, _kind)


@writes(_aten.where.self, _aten.where.ScalarOther, _aten.where.ScalarSelf, _aten.where.Scalar)
def _where(w: Writer, out: Result, condition: Value, x: Any, y: Any) -> Value:
    chosen = [cast(w, value, out.dtype) for value in (x, y)]
    return elementwise(w, "SELECT_V2", out.dtype, cast(w, condition, torch.bool), *chosen)


@writes(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _masked_fill(w: Writer, out: Result, x: Value, mask: Value, value: Any) -> Value:
    return _where(w, out, mask, value, x)


def reshaped_constant(x: Value, shape: Sequence[int]) -> Value:
    """A constant in another shape."""
    array = np.array(x.array).reshape(shape)
    return Value(tuple(array.shape), x.dtype, logical(array.ndim), array=array)


# sums and others along dimensions


def reduced(w: Writer, kind: str, x: Value, dims: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Value:
    """A reduction over these dimensions, or all; what stays keeps its order."""
    places, shape, order = left_of(x, dims, keepdim)
    return w.made(kind, [w.read(x), w.vector(places)], shape, dtype or x.dtype, order, keepDims=keepdim)


def _reduction(kind: str, w: Writer, out: Result, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
    if kind == "MEAN" and w.requantizes and in_integers(out, x):
        return mean_in_integers(w, out, x, dims, keepdim)
    return reduced(w, kind, cast(w, x, out.dtype), dims, keepdim)


for _kind, _targets in {
    "SUM": (_aten.sum.default, _aten.sum.dim_IntList), "MEAN": (_aten.mean.default, _aten.mean.dim),
    "REDUCE_PROD": (_aten.prod.default, _aten.prod.dim_int), "REDUCE_MAX": (_aten.amax.default, _aten.max.default),
    "REDUCE_MIN": (_aten.amin.default, _aten.min.default),
}.items():  # fmt: skip
    OPERATORS.update(dict.fromkeys(_targets, partial(_reduction, _kind)))


def _of_any(kind: str, w: Writer, _: Result, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
    found = reduced(w, kind, cast(w, cast(w, x, torch.bool), torch.int32), dims, keepdim)
    return cast(w, found, torch.bool)


for _kind, _packet in {"REDUCE_MAX": _aten.any, "REDUCE_MIN": _aten.all}.items():
    for _overload in (_packet.default, _packet.dim, _packet.dims):
        OPERATORS[_overload] = partial(_of_any, _kind)


@writes(_aten.linalg_vector_norm.default)
def _vector_norm(w: Writer, out: Result, x: Value, order: float = 2, dims: Any = None, keepdim: bool = False) -> Any:
    if order == 2:
        squares = reduced(w, "SUM", elementwise(w, "MUL", out.dtype, x, x), dims, keepdim)
        return elementwise(w, "SQRT", out.dtype, squares)
    kind = {1: "SUM", math.inf: "REDUCE_MAX"}.get(order)
    return None if kind is None else reduced(w, kind, elementwise(w, "ABS", out.dtype, x), dims, keepdim)


@writes(_aten.var.correction)
def _var(w: Writer, out: Result, x: Value, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Any:
    axes = [dims] if isinstance(dims, int) else list(dims or range(x.rank))
    counts = [x.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in counts):
        return None
    count, correction = math.prod(int(size) for size in counts), 1 if correction is None else correction
    away = elementwise(w, "SUB", out.dtype, x, reduced(w, "MEAN", x, axes, True))
    mean = reduced(w, "MEAN", elementwise(w, "MUL", out.dtype, away, away), axes, keepdim)
    return mean if not correction else elementwise(w, "MUL", out.dtype, mean, count / (count - correction))


@writes(_aten.std.correction)
def _std(w: Writer, out: Result, x: Value, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Any:
    variance = _var(w, out, x, dims, correction, keepdim)
    return None if variance is None else elementwise(w, "SQRT", out.dtype, variance)


OPERATORS[_aten.var.dim] = lambda w, out, x, dims, unbiased=True, keepdim=False: _var(
    w, out, x, dims, int(unbiased), keepdim
)
OPERATORS[_aten.std.dim] = lambda w, out, x, dims, unbiased=True, keepdim=False: _std(
    w, out, x, dims, int(unbiased), keepdim
)


def _place_of_best(kind: str, w: Writer, out: Result, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    """TensorFlow Lite's goes along a dimension, which goes away."""
    if dim is None:
        return None
    axis = axis_of(x, dim)
    shape = [size for place, size in enumerate(x.shape) if place != axis]
    kind_of_places = schema.TensorType.INT64
    found = w.made(kind, [w.read(x, logical(x.rank)), w.vector([axis])], shape, out.dtype, outputType=kind_of_places)
    return reshaped(w, found, out.shape) if keepdim else found


OPERATORS[_aten.argmax.default] = partial(_place_of_best, "ARG_MAX")
OPERATORS[_aten.argmin.default] = partial(_place_of_best, "ARG_MIN")


@writes(_aten.cumsum.default)
def _cumsum(w: Writer, out: Result, x: Value, dim: int) -> Value:
    x = cast(w, x, out.dtype)
    place = w.constant(np.array(x.order.index(axis_of(x, dim)), np.int32))
    return w.made("CUMSUM", [w.read(x), place], x.shape, out.dtype, x.order, exclusive=False, reverse=False)


def _softmax(kind: str, w: Writer, out: Result, x: Value, dim: int, *_: Any) -> Value:
    """TensorFlow Lite's is over the last dimension."""
    x, axis = cast(w, x, out.dtype), axis_of(x, dim)
    order = (*(other for other in x.order if other != axis), axis)
    options: dict[str, Any] = {"beta": 1.0} if kind == "SOFTMAX" else {}
    return w.made(kind, [w.read(x, order)], x.shape, out.dtype, order, **options)


for _kind, _targets in {
    "SOFTMAX": (_aten.softmax.int, _aten._softmax.default),
    "LOG_SOFTMAX": (_aten.log_softmax.int, _aten._log_softmax.default),
}.items():
    OPERATORS.update(dict.fromkeys(_targets, partial(_softmax, _kind)))


# norms


def _normed(
    w: Writer, out: Result, x: Value, axes: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """(x - mean) / sqrt(variance + eps), times the weight, plus the bias."""
    away = elementwise(w, "SUB", out.dtype, x, reduced(w, "MEAN", x, axes, True))
    variance = reduced(w, "MEAN", elementwise(w, "MUL", out.dtype, away, away), axes, True)
    scale = elementwise(w, "RSQRT", out.dtype, elementwise(w, "ADD", out.dtype, variance, float(eps)))
    return _scaled(w, out, elementwise(w, "MUL", out.dtype, away, scale), weight, bias)


def _scaled(w: Writer, out: Result, x: Value, weight: Value | None, bias: Value | None) -> Value:
    x = x if weight is None else elementwise(w, "MUL", out.dtype, x, weight)
    return x if bias is None else elementwise(w, "ADD", out.dtype, x, bias)


@writes(_aten.layer_norm.default)
def _layer_norm(
    w: Writer, out: Result, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5,
    *_: Any,
) -> Value:  # fmt: skip
    return _normed(w, out, x, range(-len(shape), 0), weight, bias, eps)


@writes(_aten.group_norm.default)
def _group_norm(
    w: Writer, out: Result, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value | None:  # fmt: skip
    channels, *rest = x.shape[1:]
    if not isinstance(channels, int):
        return None
    parts = reshaped(w, x, (x.shape[0], groups, channels // groups, *rest))
    whole = reshaped(w, _normed(w, out, parts, range(2, parts.rank), None, None, eps), x.shape)
    return _scaled(w, out, whole, *(_by_channel(each, x) for each in (weight, bias)))


def _by_channel(factors: Value | None, x: Value) -> Value | None:
    return None if factors is None else reshaped_constant(factors, [-1] + [1] * (x.rank - 2))


@writes(_aten.instance_norm.default)
def _instance_norm(
    w: Writer, out: Result, x: Value, weight: Any, bias: Any, _mean: Any, _variance: Any, own: bool, _momentum: float,
    eps: float, *_: Any,
) -> Value | None:  # fmt: skip
    return _normed(w, out, x, range(2, x.rank), _by_channel(weight, x), _by_channel(bias, x), eps) if own else None


@writes(_aten.batch_norm.default)
def _batch_norm(
    w: Writer, out: Result, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, _: float,
    eps: float, *_options: Any,
) -> Value | None:  # fmt: skip
    if training or mean is None or not (mean.is_constant and variance.is_constant):
        return None
    scale = 1 / np.sqrt(variance.array.astype(np.float64) + eps)
    scale = scale if weight is None else scale * weight.array
    shift = (0 if bias is None else bias.array) - mean.array * scale
    factors = (Value(mean.shape, out.dtype, (0,), array=each.astype(np.float32)) for each in (scale, shift))
    return _scaled(w, out, x, *(_by_channel(each, x) for each in factors))


@writes(_aten._native_batch_norm_legit_no_training.default)
def _batch_norm_only(
    w: Writer, out: Result, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, _: float, eps: float
) -> tuple[Any, ...] | None:  # fmt: skip
    made = _batch_norm(w, out.parts[0], x, weight, bias, mean, variance, False, 0.0, eps)
    return None if made is None else (made, None, None)


@writes(_aten.rms_norm.default)
def _rms_norm(
    w: Writer, out: Result, x: Value, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Value:  # fmt: skip
    eps = torch.finfo(out.dtype).eps if eps is None else eps
    mean = reduced(w, "MEAN", elementwise(w, "MUL", out.dtype, x, x), range(-len(shape), 0), True)
    scale = elementwise(w, "RSQRT", out.dtype, elementwise(w, "ADD", out.dtype, mean, float(eps)))
    return _scaled(w, out, elementwise(w, "MUL", out.dtype, x, scale), weight, None)
