"""What ONNX's operators on single numbers are in torch: arithmetic, comparisons, activation functions, types.

Each function has the name and the attributes of its operator; an input that is left out is None.
"""
# ruff: noqa: A002, ARG001, N802 names and arguments are ONNX's, and so is what they mean

import math
import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixbit.models._onnx_numbers import Number, combined, elementwise, is_number, one, operand, tensor, truncated

Value = Tensor | Number
#: ONNX's number of a type -> torch's; float16 and bfloat16 are computed as float32.
TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float32, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 16: torch.float32,
}  # fmt: skip


def Add(a: Value, b: Value) -> Value:
    return combined(operator.add, operator.add, a, b)


def Sub(a: Value, b: Value) -> Value:
    return combined(operator.sub, operator.sub, a, b)


def Mul(a: Value, b: Value) -> Value:
    return combined(operator.mul, operator.mul, a, b)


def Div(a: Value, b: Value) -> Value:
    return combined(_divided, truncated, a, b)


def _divided(a: Any, b: Any) -> Tensor:
    parts = [part for part in (a, b) if isinstance(part, Tensor)]
    if any(part.is_floating_point() for part in parts):
        return a / b
    return torch.div(tensor(a, parts[0]), b, rounding_mode="trunc")


def Pow(a: Value, b: Value) -> Value:
    return combined(_power, lambda x, y: int(x**y) if isinstance(x, int) else x**y, a, b)


def _power(a: Any, b: Any) -> Tensor:
    made = a**b
    return made.to(a.dtype) if isinstance(a, Tensor) else made


def Mod(a: Value, b: Value, *, fmod: int = 0) -> Value:
    on_tensors, on_numbers = (torch.fmod, _remainder) if fmod else (torch.remainder, operator.mod)
    return combined(lambda x, y: on_tensors(tensor(x, dtype=_type_of(y)), y), on_numbers, a, b)


def _type_of(value: Any) -> torch.dtype | None:
    return value.dtype if isinstance(value, Tensor) else None


def _remainder(a: Any, b: Any) -> Any:
    """Of the sign of `a`; of integers, an integer."""
    made = math.fmod(a, b)
    return int(made) if isinstance(a, int) and isinstance(b, int) else made


def Sum(*values: Value) -> Value:
    return reduce(Add, values)


def Mean(*values: Value) -> Value:
    return Div(reduce(Add, values), float(len(values)))


def Max(*values: Value) -> Value:
    return reduce(lambda a, b: combined(_maximum, torch.sym_max, a, b), values)


def Min(*values: Value) -> Value:
    return reduce(lambda a, b: combined(_minimum, torch.sym_min, a, b), values)


def _maximum(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return torch.clamp_min(a, b) if isinstance(a, Tensor) else torch.clamp_min(b, a)


def _minimum(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return torch.clamp_max(a, b) if isinstance(a, Tensor) else torch.clamp_max(b, a)


def Neg(x: Value) -> Value:
    return combined(operator.neg, operator.neg, x)


def Abs(x: Value) -> Value:
    return combined(torch.abs, abs, x)


def Sqrt(x: Value) -> Value:
    return combined(torch.sqrt, torch.sym_sqrt, x)


def Reciprocal(x: Value) -> Value:
    return combined(torch.reciprocal, lambda number: 1 / number, x)


def Floor(x: Value) -> Value:
    return combined(torch.floor, _kept(math.floor), x)


def Ceil(x: Value) -> Value:
    return combined(torch.ceil, _kept(math.ceil), x)


def Round(x: Value) -> Value:
    return combined(torch.round, _kept(round), x)


def _kept(function: Any) -> Any:
    """The function, which makes an integer, with its result as a float."""
    return lambda number: torch.sym_float(function(number))


def Exp(x: Value) -> Value:
    return combined(torch.exp, math.exp, x)


def Log(x: Value) -> Value:
    return combined(torch.log, math.log, x)


def Sign(x: Value) -> Tensor:
    return torch.sign(tensor(x))


def Erf(x: Value) -> Tensor:
    return torch.erf(tensor(x))


def Sin(x: Value) -> Tensor:
    return torch.sin(tensor(x))


def Cos(x: Value) -> Tensor:
    return torch.cos(tensor(x))


def Tan(x: Value) -> Tensor:
    return torch.tan(tensor(x))


def Asin(x: Value) -> Tensor:
    return torch.asin(tensor(x))


def Acos(x: Value) -> Tensor:
    return torch.acos(tensor(x))


def Atan(x: Value) -> Tensor:
    return torch.atan(tensor(x))


def Sinh(x: Value) -> Tensor:
    return torch.sinh(tensor(x))


def Cosh(x: Value) -> Tensor:
    return torch.cosh(tensor(x))


def Asinh(x: Value) -> Tensor:
    return torch.asinh(tensor(x))


def Acosh(x: Value) -> Tensor:
    return torch.acosh(tensor(x))


def Atanh(x: Value) -> Tensor:
    return torch.atanh(tensor(x))


def Clip(x: Value, low: Value | None = None, high: Value | None = None, *, min: Any = None, max: Any = None) -> Value:
    low, high = min if low is None else low, max if high is None else high
    if not isinstance(x, Tensor):
        x = x if low is None else Max(x, low)
        return x if high is None else Min(x, high)
    bounds: list[Any] = [None if bound is None else operand(bound, x) for bound in (low, high)]
    low, high = bounds
    if (low, high) == (0, 6):
        return functional.relu6(x)
    if low == 0 and high is None:
        return functional.relu(x)
    return x if low is high is None else torch.clamp(x, *bounds)


def Relu(x: Value) -> Tensor:
    return functional.relu(tensor(x))


def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


def PRelu(x: Tensor, slope: Value) -> Tensor:
    """The slope is broadcast, as [C, 1, 1]; torch's own operator takes one for each channel."""
    slope = tensor(slope, x).reshape(-1) if is_number(slope) and not isinstance(slope, list) else tensor(slope, x)
    channels = x.ndim > 1 and slope.numel() == slope.shape[-x.ndim + 1 if slope.ndim == x.ndim - 1 else 0]
    if slope.numel() == 1 or (channels and slope.ndim == x.ndim - 1):
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


def Selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    if math.isclose(alpha, 1.6732632423543772, rel_tol=1e-5) and math.isclose(gamma, 1.0507009873554805, rel_tol=1e-5):
        return functional.selu(x)
    return functional.elu(x, alpha) * gamma


def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.threshold(x, alpha, 0.0)


def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


def Sigmoid(x: Value) -> Tensor:
    return torch.sigmoid(tensor(x))


def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def HardSwish(x: Tensor) -> Tensor:
    return functional.hardswish(x)


def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)


def Tanh(x: Value) -> Tensor:
    return torch.tanh(tensor(x))


def Softplus(x: Tensor) -> Tensor:
    return functional.softplus(x)


def Softsign(x: Tensor) -> Tensor:
    return functional.softsign(x)


def Mish(x: Tensor) -> Tensor:
    return functional.mish(x)


def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


def Softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(torch.softmax, x, axis, opset)


def LogSoftmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(torch.log_softmax, x, axis, opset)


def Hardmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
    return _over(_largest, x, axis, opset)


def _over(function: Any, x: Tensor, axis: int | None, opset: int) -> Tensor:
    """The function over one dimension; before opset 13 over it and all behind it, as over one."""
    if opset >= 13:
        return function(x, -1 if axis is None else axis)
    axis = (1 if axis is None else axis) % max(x.ndim, 1)
    return function(x, -1) if axis == x.ndim - 1 else function(x.flatten(axis), -1).reshape(x.shape)


def _largest(x: Tensor, axis: int) -> Tensor:
    places = torch.arange(x.shape[axis], device=x.device).reshape([-1] + [1] * (x.ndim - 1 - axis % x.ndim))
    return (places == x.argmax(axis, keepdim=True)).to(x.dtype)


def Equal(a: Value, b: Value) -> Value:
    return combined(operator.eq, operator.eq, a, b)


def Less(a: Value, b: Value) -> Value:
    return combined(operator.lt, operator.lt, a, b)


def LessOrEqual(a: Value, b: Value) -> Value:
    return combined(operator.le, operator.le, a, b)


def Greater(a: Value, b: Value) -> Value:
    return combined(operator.gt, operator.gt, a, b)


def GreaterOrEqual(a: Value, b: Value) -> Value:
    return combined(operator.ge, operator.ge, a, b)


def And(a: Value, b: Value) -> Value:
    return combined(_on_tensors(torch.logical_and), lambda x, y: x and y, a, b)


def Or(a: Value, b: Value) -> Value:
    return combined(_on_tensors(torch.logical_or), lambda x, y: x or y, a, b)


def Xor(a: Value, b: Value) -> Value:
    return combined(_on_tensors(torch.logical_xor), lambda x, y: bool(x) != bool(y), a, b)


def Not(x: Value) -> Value:
    return combined(torch.logical_not, lambda number: not number, x)


def BitwiseAnd(a: Value, b: Value) -> Value:
    return combined(operator.and_, operator.and_, a, b)


def BitwiseOr(a: Value, b: Value) -> Value:
    return combined(operator.or_, operator.or_, a, b)


def BitwiseXor(a: Value, b: Value) -> Value:
    return combined(operator.xor, operator.xor, a, b)


def BitwiseNot(x: Value) -> Value:
    return combined(operator.invert, operator.invert, x)


def _on_tensors(function: Any) -> Any:
    """The function, which takes tensors only, of tensors and numbers."""

    def call(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return function(tensor(a, like), tensor(b, like))

    return call


def IsNaN(x: Tensor) -> Tensor:
    return torch.isnan(x)


def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if not (detect_negative or detect_positive):
        return torch.zeros_like(x, dtype=torch.bool)
    return x == (math.inf if detect_positive else -math.inf)


def Where(condition: Value, a: Value, b: Value) -> Value:
    like = next((value for value in (condition, a, b) if isinstance(value, Tensor)), None)
    if like is None:
        return elementwise(lambda which, x, y: x if which else y, condition, a, b)
    a, b = (operand(value, like) for value in (a, b))
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = tensor(a, like)
    return torch.where(tensor(condition, like), a, b)


def Cast(x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    return x.to(TYPES[to]) if isinstance(x, Tensor) else _cast(x, TYPES[to])


def _cast(x: Number, kind: torch.dtype) -> Number:
    """Numbers of the type; of few bits, what overflows goes round."""
    if kind is torch.bool:
        return elementwise(bool, x)
    if kind.is_floating_point:
        return elementwise(torch.sym_float, x)
    made = elementwise(torch.sym_int, x)
    return made if kind in (torch.int32, torch.int64) else tensor(made).to(kind).tolist()


def CastLike(x: Value, other: Value, *, saturate: int = 1, round_mode: str = "up") -> Value:
    kind = tensor(other).dtype
    return _cast(x, kind) if is_number(x) else tensor(x).to(kind)


def Identity(x: Value) -> Value:
    return x


def Dropout(x: Value, share: Value = None, training_mode: Value = None, *, ratio: float = 0.5, seed: int = 0) -> Value:
    if training_mode is not None and one(training_mode):
        raise ValueError("training_mode is set, so that it drops at random; export in eval mode")
    return x
