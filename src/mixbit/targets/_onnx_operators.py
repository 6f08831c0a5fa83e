"""What each of torch's operators is in ONNX: a table of functions that write it.

A function takes the `Writer`, what the operator returns (of which it reads type and shape), and the operator's
arguments: values of the graph, numbers, and sizes. It returns a value, or several in a tuple; None where it does not
write this form of the operator, which torch's own exporter then does.
"""
# ruff: noqa: PLR0913, PLR0917 the arguments are those of torch's operators

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from mixbit.core import UnsupportedModel
from mixbit.graph.recurrent import WHOLE
from mixbit.targets._onnx_writer import ONNX_TYPES, TORCH_TYPES, Size, Writer

_aten = torch.ops.aten
#: Operator -> the function that writes it.
OPERATORS: dict[Any, Callable[..., Any]] = {}
#: Ends of slices that go to the last element, and behind the first.
_LAST, _FIRST = 2**63 - 1, -(2**63)
_WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _writes(*targets: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the function into the table."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update(dict.fromkeys(targets, function))
        return function

    return put


def _rank(x: Any) -> int:
    return len(x.shape)


def _axis(x: Any, dim: int) -> int:
    return dim % max(_rank(x), 1)


def _common_type(*pair: Any) -> torch.dtype:
    """The type that torch compares the two in."""
    parts: list[Any] = [1 if isinstance(each, Size) else each for each in pair]
    for place, each in enumerate(parts):
        if isinstance(each, ir.Value):
            parts[place] = torch.empty([0] * _rank(each), dtype=TORCH_TYPES[ir.DataType(each.dtype)])
    return torch.result_type(*parts)


# functions of one tensor, element by element


def _function(kind: str, w: Writer, out: Any, x: Any) -> Any:
    return w.add(kind, w.cast(x, out.dtype))


for _name, _kind in {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "erf": "Erf",
    "abs": "Abs", "neg": "Neg", "ceil": "Ceil", "floor": "Floor", "round": "Round", "sign": "Sign", "sin": "Sin",
    "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "reciprocal": "Reciprocal", "selu": "Selu", "mish": "Mish",
    "hardswish": "HardSwish",
}.items():  # fmt: skip
    OPERATORS[getattr(_aten, _name).default] = partial(_function, _kind)


@_writes(_aten.relu.default)
def _relu(w: Writer, out: Any, x: Any) -> Any:
    return w.add("Relu", x) if out.dtype.is_floating_point else w.add("Max", x, w.number(0, out.dtype))


@_writes(_aten.rsqrt.default)
def _rsqrt(w: Writer, out: Any, x: Any) -> Any:
    return w.add("Reciprocal", w.add("Sqrt", w.cast(x, out.dtype)))


@_writes(_aten.square.default)
def _square(w: Writer, _: Any, x: Any) -> Any:
    return w.add("Mul", x, x)


@_writes(_aten.silu.default)
def _silu(w: Writer, _: Any, x: Any) -> Any:
    return w.add("Mul", x, w.add("Sigmoid", x))


@_writes(_aten.hardsigmoid.default)
def _hardsigmoid(w: Writer, _: Any, x: Any) -> Any:
    return w.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@_writes(_aten.gelu.default)
def _gelu(w: Writer, _: Any, x: Any, approximate: str = "none") -> Any:
    return w.add("Gelu", x, approximate=approximate)


@_writes(_aten.leaky_relu.default)
def _leaky_relu(w: Writer, _: Any, x: Any, slope: float = 0.01) -> Any:
    return w.add("LeakyRelu", x, alpha=float(slope))


@_writes(_aten.elu.default)
def _elu(w: Writer, _: Any, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    return w.add("Elu", x, alpha=float(alpha)) if scale == input_scale == 1 else None


@_writes(_aten.celu.default)
def _celu(w: Writer, _: Any, x: Any, alpha: float = 1.0) -> Any:
    return w.add("Celu", x, alpha=float(alpha))


@_writes(_aten.softplus.default)
def _softplus(w: Writer, out: Any, x: Any, beta: float = 1, threshold: float = 20) -> Any:
    number = partial(w.number, dtype=out.dtype)
    scaled = x if beta == 1 else w.add("Mul", x, number(beta))
    soft = w.add("Softplus", scaled)
    soft = soft if beta == 1 else w.add("Div", soft, number(beta))
    return w.add("Where", w.add("Greater", scaled, number(threshold)), x, soft)


@_writes(_aten.log_sigmoid.default)
def _log_sigmoid(w: Writer, _: Any, x: Any) -> Any:
    return w.add("Neg", w.add("Softplus", w.add("Neg", x)))


@_writes(_aten.prelu.default)
def _prelu(w: Writer, _: Any, x: Any, slope: Any) -> Any:
    if slope.shape != (1,):
        slope = w.reshape(slope, [-1] + [1] * (_rank(x) - 2))
    return w.add("PRelu", x, slope)


@_writes(_aten.glu.default)
def _glu(w: Writer, _: Any, x: Any, dim: int = -1) -> Any:
    first, second = w.add_many(2, "Split", x, axis=_axis(x, dim), num_outputs=2)
    return w.add("Mul", first, w.add("Sigmoid", second))


@_writes(_aten.clamp.default)
def _clip(w: Writer, out: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    bounds = [bound if bound is None else w.cast(bound, out.dtype) for bound in (low, high)]
    return w.add("Clip", w.cast(x, out.dtype), *bounds)


OPERATORS[_aten.hardtanh.default] = lambda w, out, x, low=-1, high=1: _clip(w, out, x, low, high)
OPERATORS[_aten.relu6.default] = lambda w, out, x: _clip(w, out, x, 0, 6)
OPERATORS[_aten.clamp_min.default] = _clip
OPERATORS[_aten.clamp_max.default] = lambda w, out, x, high: _clip(w, out, x, None, high)


@_writes(_aten.clamp.Tensor)
def _clip_by_tensors(w: Writer, out: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    x = w.cast(x, out.dtype)
    x = x if low is None else w.add("Max", x, w.cast(low, out.dtype))
    return x if high is None else w.add("Min", x, w.cast(high, out.dtype))


@_writes(_aten.threshold.default)
def _threshold(w: Writer, out: Any, x: Any, threshold: float, value: float) -> Any:
    above = w.add("Greater", x, w.number(threshold, out.dtype))
    return w.add("Where", above, x, w.number(value, out.dtype))


@_writes(_aten.logical_not.default)
def _logical_not(w: Writer, _: Any, x: Any) -> Any:
    return w.add("Not", w.cast(x, torch.bool))


@_writes(_aten.bitwise_not.default)
def _bitwise_not(w: Writer, out: Any, x: Any) -> Any:
    return w.add("Not" if out.dtype == torch.bool else "BitwiseNot", x)


@_writes(_aten.isnan.default)
def _isnan(w: Writer, _: Any, x: Any) -> Any:
    return w.add("IsNaN", x) if TORCH_TYPES[x.dtype].is_floating_point else None


@_writes(
    _aten._to_copy.default, _aten.to.dtype, _aten.type_as.default, _aten.clone.default, _aten.contiguous.default,
    _aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default,
)  # fmt: skip
def _same(w: Writer, out: Any, x: Any, *_: Any) -> Any:
    return w.cast(x, out.dtype)


@_writes(_aten.dropout.default)
def _dropout(w: Writer, out: Any, x: Any, _: float, train: bool) -> Any:
    return None if train else w.cast(x, out.dtype)


# functions of two tensors, element by element


def _sum(kind: str, w: Writer, out: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    if out.dtype == torch.bool:
        return None
    y = w.cast(y, out.dtype)
    if alpha != 1:
        y = w.add("Mul", y, w.number(alpha, out.dtype))
    return w.add(kind, w.cast(x, out.dtype), y)


for _add in (_aten.add.Tensor, _aten.add.Scalar):
    OPERATORS[_add] = partial(_sum, "Add")
for _sub in (_aten.sub.Tensor, _aten.sub.Scalar):
    OPERATORS[_sub] = partial(_sum, "Sub")


@_writes(_aten.rsub.Scalar, _aten.rsub.Tensor)
def _reverse_sub(w: Writer, out: Any, x: Any, y: Any, alpha: float = 1) -> Any:
    return _sum("Sub", w, out, y, x, alpha)


def _binary(kind: str, w: Writer, out: Any, x: Any, y: Any) -> Any:
    kind = "And" if out.dtype == torch.bool and kind == "Mul" else kind
    return w.add(kind, w.cast(x, out.dtype), w.cast(y, out.dtype))


for _kind, _targets in {
    "Mul": (_aten.mul.Tensor, _aten.mul.Scalar), "Div": (_aten.div.Tensor, _aten.div.Scalar),
    "Max": (_aten.maximum.default, _aten.max.other, _aten.clamp_min.Tensor),
    "Min": (_aten.minimum.default, _aten.min.other, _aten.clamp_max.Tensor),
    "Pow": (_aten.pow.Tensor_Tensor, _aten.pow.Tensor_Scalar, _aten.pow.Scalar),
}.items():  # fmt: skip
    OPERATORS.update(dict.fromkeys(_targets, partial(_binary, _kind)))


@_writes(_aten.div.Tensor_mode, _aten.div.Scalar_mode)
def _div_rounded(w: Writer, out: Any, x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    x, y = w.cast(x, out.dtype), w.cast(y, out.dtype)
    if out.dtype in _WHOLE:  # ONNX divides towards zero, and its remainder has the divisor's sign
        x = w.add("Sub", x, w.add("Mod", x, y)) if rounding_mode == "floor" else x
        return w.add("Div", x, y)
    quotient = w.add("Div", x, y)
    if rounding_mode == "trunc":
        return w.add("Mul", w.add("Sign", quotient), w.add("Floor", w.add("Abs", quotient)))
    return w.add("Floor", quotient) if rounding_mode == "floor" else quotient


@_writes(_aten.floor_divide.default, _aten.floor_divide.Scalar)
def _floor_divide(w: Writer, out: Any, x: Any, y: Any) -> Any:
    return _div_rounded(w, out, x, y, "floor")


@_writes(_aten.remainder.Tensor, _aten.remainder.Scalar, _aten.remainder.Scalar_Tensor)
def _remainder(w: Writer, out: Any, x: Any, y: Any) -> Any:
    x, y = w.cast(x, out.dtype), w.cast(y, out.dtype)
    if out.dtype in _WHOLE:
        return w.add("Mod", x, y)
    return w.add("Sub", x, w.add("Mul", w.add("Floor", w.add("Div", x, y)), y))


@_writes(_aten.fmod.Tensor, _aten.fmod.Scalar)
def _fmod(w: Writer, out: Any, x: Any, y: Any) -> Any:
    return w.add("Mod", w.cast(x, out.dtype), w.cast(y, out.dtype), fmod=1)


def _comparison(kind: str, negated: bool, w: Writer, _: Any, x: Any, y: Any) -> Any:
    dtype = _common_type(x, y)
    if dtype == torch.bool and kind != "Equal":
        dtype = torch.int32
    same = w.add(kind, w.cast(x, dtype), w.cast(y, dtype))
    return w.add("Not", same) if negated else same


for _name, _kind in {
    "eq": "Equal", "ne": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}.items():  # fmt: skip
    for _target in (getattr(_aten, _name).Tensor, getattr(_aten, _name).Scalar):
        OPERATORS[_target] = partial(_comparison, _kind, _name == "ne")


def _logical(kind: str, bits: str | None, w: Writer, out: Any, x: Any, y: Any) -> Any:
    dtype = out.dtype
    return w.add(kind if dtype == torch.bool else bits or kind, w.cast(x, dtype), w.cast(y, dtype))


for _name, _kind in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    OPERATORS[getattr(_aten, f"logical_{_name}").default] = partial(_logical, _kind, None)
    for _target in (getattr(_aten, f"bitwise_{_name}"), getattr(_aten, f"__{_name}__")):
        for _overload in (_target.Tensor, _target.Scalar):
            OPERATORS[_overload] = partial(_logical, _kind, f"Bitwise{_kind}")


@_writes(_aten.where.self, _aten.where.ScalarOther, _aten.where.ScalarSelf, _aten.where.Scalar)
def _where(w: Writer, out: Any, condition: Any, x: Any, y: Any) -> Any:
    dtype = torch.uint8 if out.dtype == torch.bool else out.dtype  # onnxruntime 1.31 does not choose among booleans
    chosen = w.add("Where", w.cast(condition, torch.bool), w.cast(x, dtype), w.cast(y, dtype))
    return chosen if dtype == out.dtype else w.cast(chosen, out.dtype)


@_writes(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _masked_fill(w: Writer, out: Any, x: Any, mask: Any, value: Any) -> Any:
    return _where(w, out, mask, value, x)


# sums and others along dimensions


def _reduced(w: Writer, kind: str, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
    axes = [dims] if isinstance(dims, int) else list(dims or ())
    return w.add(kind, x, axes if axes and x.shape != () else None, keepdims=int(keepdim))


def _reduction(kind: str, w: Writer, out: Any, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
    return _reduced(w, kind, w.cast(x, out.dtype), dims, keepdim)


for _kind, _targets in {
    "ReduceSum": (_aten.sum.default, _aten.sum.dim_IntList), "ReduceMean": (_aten.mean.default, _aten.mean.dim),
    "ReduceProd": (_aten.prod.default, _aten.prod.dim_int), "ReduceMax": (_aten.amax.default, _aten.max.default),
    "ReduceMin": (_aten.amin.default, _aten.min.default), "ReduceLogSumExp": (_aten.logsumexp.default,),
}.items():  # fmt: skip
    OPERATORS.update(dict.fromkeys(_targets, partial(_reduction, _kind)))


def _logical_reduction(kind: str, w: Writer, _: Any, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
    x = w.cast(w.cast(x, torch.bool), torch.int32)
    return w.cast(_reduced(w, kind, x, dims, keepdim), torch.bool)


for _kind, _packet in {"ReduceMax": _aten.any, "ReduceMin": _aten.all}.items():
    for _overload in (_packet.default, _packet.dim, _packet.dims):
        OPERATORS[_overload] = partial(_logical_reduction, _kind)


@_writes(_aten.linalg_vector_norm.default)
def _vector_norm(w: Writer, out: Any, x: Any, order: float = 2, dims: Any = None, keepdim: bool = False) -> Any:
    x = w.cast(x, out.dtype)
    if order in (1, 2):
        return _reduced(w, f"ReduceL{int(order)}", x, dims, keepdim)
    return _reduced(w, "ReduceMax", w.add("Abs", x), dims, keepdim) if order == math.inf else None


@_writes(_aten.norm.ScalarOpt_dim)
def _norm(w: Writer, out: Any, x: Any, order: float | None, dims: Any, keepdim: bool = False) -> Any:
    return _vector_norm(w, out, x, 2 if order is None else order, dims, keepdim)


def _variance(w: Writer, out: Any, x: Any, dims: Any, correction: float, keepdim: bool) -> Any:
    axes = [dims] if isinstance(dims, int) else list(dims or range(_rank(x)))
    sizes = [x.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        return None
    count = math.prod(sizes)
    if count <= correction:  # NaN, as torch's exporter writes it
        return None
    away = w.add("Sub", x, _reduced(w, "ReduceMean", x, axes, keepdim=True))
    mean = _reduced(w, "ReduceMean", w.add("Mul", away, away), axes, keepdim)
    return mean if correction == 0 else w.add("Mul", mean, w.number(count / (count - correction), out.dtype))


@_writes(_aten.var.correction)
def _var(w: Writer, out: Any, x: Any, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Any:
    return _variance(w, out, x, dims, 1 if correction is None else correction, keepdim)


@_writes(_aten.std.correction)
def _std(w: Writer, out: Any, x: Any, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Any:
    variance = _var(w, out, x, dims, correction, keepdim)
    return None if variance is None else w.add("Sqrt", variance)


def _best(kind: str, w: Writer, _: Any, x: Any, dim: int, keepdim: bool = False) -> Any:
    if not _rank(x):
        return None
    where = w.add(f"Arg{kind}", x, axis=_axis(x, dim), keepdims=int(keepdim))
    return _reduced(w, f"Reduce{kind}", x, dim, keepdim), where


OPERATORS[_aten.max.dim], OPERATORS[_aten.min.dim] = partial(_best, "Max"), partial(_best, "Min")


def _place_of_best(kind: str, w: Writer, _: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    if not _rank(x) or (dim is None and keepdim):
        return None
    if dim is None:
        return w.add(kind, w.reshape(x, [-1]), axis=0, keepdims=0)
    return w.add(kind, x, axis=_axis(x, dim), keepdims=int(keepdim))


OPERATORS[_aten.argmax.default] = partial(_place_of_best, "ArgMax")
OPERATORS[_aten.argmin.default] = partial(_place_of_best, "ArgMin")


@_writes(_aten.cumsum.default)
def _cumsum(w: Writer, out: Any, x: Any, dim: int) -> Any:
    return w.add("CumSum", w.cast(x, out.dtype), np.int64(_axis(x, dim))) if _rank(x) else None


@_writes(_aten.topk.default)
def _topk(w: Writer, _: Any, x: Any, count: Any, dim: int = -1, largest: bool = True, ordered: bool = True) -> Any:
    options = {"axis": _axis(x, dim), "largest": int(largest), "sorted": int(ordered)}
    return w.add_many(2, "TopK", x, w.vector([count]), **options) if _rank(x) else None


@_writes(_aten.sort.default)
def _sort(w: Writer, out: Any, x: Any, dim: int = -1, descending: bool = False) -> Any:
    return _topk(w, out, x, w.size(x, dim), dim, descending) if _rank(x) else None


def _softmax(kind: str, w: Writer, out: Any, x: Any, dim: int, *_: Any) -> Any:
    return w.add(kind, w.cast(x, out.dtype), axis=_axis(x, dim)) if _rank(x) else None


for _kind, _targets in {
    "Softmax": (_aten.softmax.int, _aten._softmax.default),
    "LogSoftmax": (_aten.log_softmax.int, _aten._log_softmax.default),
}.items():
    OPERATORS.update(dict.fromkeys(_targets, partial(_softmax, _kind)))


@_writes(_aten.diff.default)
def _diff(
    w: Writer, out: Any, x: Any, count: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> Any:  # fmt: skip
    if count != 1 or out.dtype == torch.bool:
        return None
    axis, parts = _axis(x, dim), [w.cast(part, out.dtype) for part in (prepend, x, append) if part is not None]
    joined = parts[0] if len(parts) == 1 else w.add("Concat", *parts, axis=axis)
    return w.add("Sub", w.add("Slice", joined, [1], [_LAST], [axis]), w.add("Slice", joined, [0], [-1], [axis]))


# shapes


@_writes(_aten.reshape.default, _aten.view.default, _aten._unsafe_view.default)
def _reshape(w: Writer, _: Any, x: Any, sizes: Sequence[Any]) -> Any:
    return w.reshape(x, sizes)


@_writes(_aten.flatten.using_ints)
def _flatten(w: Writer, _: Any, x: Any, start: int = 0, end: int = -1) -> Any:
    first, last, sizes = _axis(x, start), _axis(x, end), w.sizes_of(x)
    return w.reshape(x, [*sizes[:first], -1, *sizes[last + 1 :]])


@_writes(_aten.unflatten.int)
def _unflatten(w: Writer, _: Any, x: Any, dim: int, parts: Sequence[Any]) -> Any:
    axis, sizes = _axis(x, dim), w.sizes_of(x)
    return w.reshape(x, [*sizes[:axis], *parts, *sizes[axis + 1 :]])


@_writes(_aten.permute.default)
def _permute(w: Writer, _: Any, x: Any, dims: Sequence[int]) -> Any:
    order = [_axis(x, dim) for dim in dims]
    return x if order == sorted(order) else w.add("Transpose", x, perm=order)


@_writes(_aten.transpose.int)
def _transpose(w: Writer, out: Any, x: Any, one: int, other: int) -> Any:
    order = [*range(_rank(x))]
    if order:
        one, other = _axis(x, one), _axis(x, other)
        order[one], order[other] = other, one
    return _permute(w, out, x, order)


@_writes(_aten.t.default, _aten.numpy_T.default)
def _turned(w: Writer, out: Any, x: Any) -> Any:
    return _permute(w, out, x, [*reversed(range(_rank(x)))])


@_writes(_aten.unsqueeze.default)
def _unsqueeze(w: Writer, _: Any, x: Any, dim: int) -> Any:
    return w.add("Unsqueeze", x, [dim % (_rank(x) + 1)])


@_writes(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims)
def _squeeze(w: Writer, _: Any, x: Any, dims: Any = None) -> Any:
    dims = range(_rank(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [axis for axis in (_axis(x, dim) for dim in dims) if _rank(x) and x.shape[axis] == 1]
    return w.add("Squeeze", x, axes) if axes else x


@_writes(_aten.expand.default)
def _expand(w: Writer, _: Any, x: Any, sizes: Sequence[Any]) -> Any:
    more = len(sizes) - _rank(x)
    own = [1] * more + [size if isinstance(size, int) else size.value for size in x.shape]
    told = [size.symbol if isinstance(size, Size) else size for size in sizes]
    # 1 leaves the size as it is
    wanted: list[Any] = [1 if name in (have, -1) else size for size, name, have in zip(sizes, told, own, strict=True)]
    return x if wanted == [1] * len(own) and not more else w.add("Expand", x, w.vector(wanted))


@_writes(_aten.expand_as.default)
def _expand_as(w: Writer, out: Any, x: Any, other: Any) -> Any:
    return _expand(w, out, x, w.sizes_of(other))


@_writes(_aten.repeat.default)
def _repeat(w: Writer, _: Any, x: Any, times: Sequence[Any]) -> Any:
    more = len(times) - _rank(x)
    x = w.add("Unsqueeze", x, [*range(more)]) if more else x
    return w.add("Tile", x, w.vector(times)) if times else x


@_writes(_aten.slice.Tensor)
def _slice(w: Writer, _: Any, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis = _axis(x, dim)
    size, start, end = x.shape[axis], 0 if start is None else start, _LAST if end is None else end
    whole = isinstance(end, int) and end >= (size if isinstance(size, int) else _LAST)
    whole = whole or (isinstance(end, Size) and not isinstance(size, int) and end.symbol == size.value)
    if start == 0 and step == 1 and whole:
        return x
    steps = [] if step == 1 else [[step]]
    return w.add("Slice", x, w.vector([start]), w.vector([end]), [axis], *steps)


@_writes(_aten.select.int)
def _select(w: Writer, _: Any, x: Any, dim: int, index: Any) -> Any:
    return w.add("Gather", x, w.cast(index, torch.int64), axis=_axis(x, dim))


@_writes(_aten.unbind.int)
def _unbind(w: Writer, out: Any, x: Any, dim: int = 0) -> Any:
    return tuple(_select(w, out, x, dim, index) for index in range(len(out)))


@_writes(_aten.split_with_sizes.default)
def _split_with_sizes(w: Writer, _: Any, x: Any, sizes: Sequence[Any], dim: int = 0) -> Any:
    return w.add_many(len(sizes), "Split", x, w.vector(sizes), axis=_axis(x, dim)) if len(sizes) > 1 else (x,)


@_writes(_aten.split.Tensor, _aten.chunk.default)
def _split(w: Writer, out: Any, x: Any, _: Any, dim: int = 0) -> Any:
    axis = _axis(x, dim)
    sizes = [part.shape[axis] for part in out]
    return _split_with_sizes(w, out, x, sizes, axis) if all(isinstance(size, int) for size in sizes) else None


@_writes(_aten.cat.default)
def _cat(w: Writer, out: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    parts = [w.cast(part, out.dtype) for part in tensors if part.shape != (0,) or out.ndim == 1]
    return parts[0] if len(parts) == 1 else w.add("Concat", *parts, axis=dim % out.ndim)


@_writes(_aten.stack.default)
def _stack(w: Writer, out: Any, tensors: Sequence[Any], dim: int = 0) -> Any:
    axis = dim % out.ndim
    return w.add("Concat", *(w.add("Unsqueeze", w.cast(part, out.dtype), [axis]) for part in tensors), axis=axis)


@_writes(_aten.roll.default)
def _roll(w: Writer, _: Any, x: Any, shifts: Any, dims: Any = ()) -> Any:
    shifts, dims = ([each] if isinstance(each, int) else list(each) for each in (shifts, dims))
    if not dims or not all(isinstance(x.shape[dim], int) and x.shape[dim] for dim in dims):
        return None
    sizes = list(x.shape)
    for shift, axis in zip(shifts, [dim % len(sizes) for dim in dims], strict=True):
        if place := -shift % sizes[axis]:
            parts = [w.add("Slice", x, [first], [end], [axis]) for first, end in ((place, _LAST), (0, place))]
            x = w.add("Concat", *parts, axis=axis)
    return x


@_writes(_aten.flip.default)
def _flip(w: Writer, _: Any, x: Any, dims: Sequence[int]) -> Any:
    axes = [_axis(x, dim) for dim in dims]
    count = len(axes)
    return w.add("Slice", x, [-1] * count, [_FIRST] * count, axes, [-1] * count) if axes and _rank(x) else x


@_writes(_aten.pixel_shuffle.default)
def _pixel_shuffle(w: Writer, _: Any, x: Any, factor: int) -> Any:
    return w.add("DepthToSpace", x, blocksize=factor, mode="CRD") if _rank(x) == 4 else None


#: How torch and ONNX name what is put around a tensor.
_AROUND = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@_writes(_aten.pad.default)
def _pad(w: Writer, out: Any, x: Any, pads: Sequence[Any], mode: str = "constant", value: Any = None) -> Any:
    if all(pad == 0 for pad in pads if isinstance(pad, int)) and all(isinstance(pad, int) for pad in pads):
        return x
    none = [0] * (_rank(x) - len(pads) // 2)
    around = w.vector([*none, *reversed(pads[::2]), *none, *reversed(pads[1::2])])
    number = [w.cast(value or 0, out.dtype)] if mode == "constant" else []
    return w.add("Pad", x, around, *number, mode=_AROUND[mode])


OPERATORS[_aten.constant_pad_nd.default] = lambda w, out, x, pads, value=0: _pad(w, out, x, pads, "constant", value)
for _name, _mode in {"reflection": "reflect", "replication": "replicate"}.items():
    for _number in (1, 2, 3):
        OPERATORS[getattr(_aten, f"{_name}_pad{_number}d").default] = partial(
            lambda mode, w, out, x, pads: _pad(w, out, x, pads, mode), _mode
        )


# looking up


@_writes(_aten.embedding.default)
def _embedding(w: Writer, _: Any, weight: Any, indices: Any, *_options: Any) -> Any:
    return w.add("Gather", weight, indices)


@_writes(_aten.index_select.default)
def _index_select(w: Writer, _: Any, x: Any, dim: int, index: Any) -> Any:
    return w.add("Gather", x, index, axis=_axis(x, dim)) if _rank(x) and _rank(index) else None


@_writes(_aten.gather.default)
def _gather(w: Writer, _: Any, x: Any, dim: int, index: Any) -> Any:
    return w.add("GatherElements", x, index, axis=_axis(x, dim)) if _rank(x) and _rank(index) else None


@_writes(_aten.scatter.src)
def _scatter(w: Writer, _: Any, x: Any, dim: int, index: Any, source: Any) -> Any:
    same = _rank(x) and list(index.shape) == list(source.shape)
    return w.add("ScatterElements", x, index, source, axis=_axis(x, dim)) if same else None


@_writes(_aten.scatter.value)
def _scatter_number(w: Writer, out: Any, x: Any, dim: int, index: Any, value: Any) -> Any:
    if not _rank(x) or not _rank(index):
        return None
    source = w.add("Expand", w.cast(value, out.dtype), w.vector(w.sizes_of(index)))
    return w.add("ScatterElements", x, index, source, axis=_axis(x, dim))


@_writes(_aten.index.Tensor)
def _index(w: Writer, _: Any, x: Any, indices: Sequence[Any]) -> Any:
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    given = [indices[axis] for axis in axes]
    if any(index.dtype in (ir.DataType.BOOL, ir.DataType.UINT8) for index in given):
        return None
    if len(axes) == 1:
        return w.add("Gather", x, given[0], axis=axes[0])
    count = max(map(_rank, given))
    sizes = [_broadcast(w, given, axis) for axis in range(-count, 0)]
    shape = w.vector(sizes)
    told = [size.symbol if isinstance(size, Size) else size for size in sizes]
    columns = []
    for index in given:
        own = [size if isinstance(size, int) else size.value for size in index.shape]
        whole = w.cast(index, torch.int64)
        whole = whole if own == told else w.add("Expand", whole, shape)
        columns.append(w.add("Unsqueeze", whole, [count]))
    places = w.add("Concat", *columns, axis=count)
    others = [axis for axis in range(_rank(x)) if axis not in axes]
    order = [*axes, *others]
    x = x if order == sorted(order) else w.add("Transpose", x, perm=order)
    picked = w.add("GatherND", x, places)
    in_a_row = axes == [*range(axes[0], axes[0] + len(axes))]
    before = axes[0] if in_a_row else 0
    if not before:
        return picked
    rest = [*range(count, count + len(others))]
    return w.add("Transpose", picked, perm=[*rest[:before], *range(count), *rest[before:]])


def _broadcast(w: Writer, tensors: Sequence[Any], axis: int) -> Any:
    """The size that the tensors take together along an axis, counted from the last."""
    sizes = [w.size(each, axis) for each in tensors if _rank(each) >= -axis]
    return next((size for size in sizes if size != 1), 1)


# tensors of one number


def _filled(w: Writer, out: Any, sizes: Sequence[Any], value: Any) -> Any:
    number = w.cast(value, out.dtype)
    return w.add("Expand", number, w.vector(sizes)) if sizes else number


OPERATORS[_aten.full.default] = _filled
OPERATORS[_aten.new_full.default] = lambda w, out, _, sizes, value: _filled(w, out, sizes, value)
OPERATORS[_aten.full_like.default] = lambda w, out, x, value: _filled(w, out, w.sizes_of(x), value)
OPERATORS[_aten.scalar_tensor.default] = lambda w, out, value: _filled(w, out, [], value)
for _name, _value in {"zeros": 0, "ones": 1, "empty": 0}.items():
    _like, _new = getattr(_aten, f"{_name}_like").default, getattr(_aten, f"new_{_name}").default
    OPERATORS[_like] = partial(lambda value, w, out, x: _filled(w, out, w.sizes_of(x), value), _value)
    OPERATORS[_new] = partial(lambda value, w, out, _, sizes: _filled(w, out, sizes, value), _value)
OPERATORS[_aten.zeros.default] = lambda w, out, sizes: _filled(w, out, sizes, 0)
OPERATORS[_aten.ones.default] = lambda w, out, sizes: _filled(w, out, sizes, 1)
OPERATORS[_aten.empty.memory_format] = OPERATORS[_aten.zeros.default]


@_writes(_aten.arange.start_step)
def _arange(w: Writer, out: Any, start: Any, end: Any, step: Any = 1) -> Any:
    return w.add("Range", *(w.cast(each, out.dtype) for each in (start, end, step)))


OPERATORS[_aten.arange.default] = lambda w, out, end: _arange(w, out, 0, end)
OPERATORS[_aten.arange.start] = _arange


def _triangle(upper: int, w: Writer, out: Any, x: Any, diagonal: int = 0) -> Any:
    if out.dtype == torch.bool:
        return w.cast(w.add("Trilu", w.cast(x, torch.int64), np.int64(diagonal), upper=upper), torch.bool)
    return w.add("Trilu", x, np.int64(diagonal), upper=upper)


OPERATORS[_aten.tril.default], OPERATORS[_aten.triu.default] = partial(_triangle, 0), partial(_triangle, 1)


# products


@_writes(_aten.linear.default)
def _linear(w: Writer, _: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if _rank(weight) != 2:
        return None
    if _rank(x) == 2:
        return w.add("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)
    product = w.add("MatMul", x, w.add("Transpose", weight, perm=[1, 0]))
    return product if bias is None else w.add("Add", product, bias)


@_writes(_aten.matmul.default, _aten.mm.default, _aten.bmm.default)
def _matmul(w: Writer, _: Any, x: Any, y: Any) -> Any:
    return w.add("MatMul", x, y)


@_writes(_aten.addmm.default)
def _addmm(w: Writer, out: Any, added: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    factors = {"alpha": float(alpha), "beta": float(beta)} if (alpha, beta) != (1, 1) else {}
    return w.add("Gemm", x, y, added, **factors) if out.dtype.is_floating_point else None


@_writes(_aten.baddbmm.default)
def _baddbmm(w: Writer, out: Any, added: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Any:
    product = w.add("MatMul", x, y)
    product = product if alpha == 1 else w.add("Mul", product, w.number(alpha, out.dtype))
    return w.add("Add", product, added if beta == 1 else w.add("Mul", added, w.number(beta, out.dtype)))


#: Order of the gates in ONNX, by their places in torch.
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "tanh": (0,), "relu": (0,)}


@_writes(WHOLE)
def _recurrence(
    w: Writer, out: Any, x: Any, of_input: Any, of_state: Any, bias: Any, kind: str, back: bool, with_cell: bool,
    *states: Any,
) -> Any:  # fmt: skip
    order, width = _GATES[kind], int(out.shape[-1])
    if kind == "gru":
        halves = w.add_many(2, "Split", bias, axis=0, num_outputs=2)
    else:
        halves = bias, w.add("ConstantOfShape", [len(order) * width])
    rows = w.add("Concat", *(_in_order(w, half, order) for half in halves), axis=0)
    given = [w.add("Transpose", x, perm=[1, 0, 2])]
    given += [
        w.add("Unsqueeze", each, [0]) for each in (*(_in_order(w, each, order) for each in (of_input, of_state)), rows)
    ]
    given += [None, *(w.add("Unsqueeze", state, [0]) for state in states)] if states else []
    behind, _, *cell = w.add_many(
        3 if kind == "lstm" else 2,
        {"lstm": "LSTM", "gru": "GRU"}.get(kind, "RNN"),
        *given,
        hidden_size=width,
        direction="reverse" if back else None,
        linear_before_reset=1 if kind == "gru" else None,
        activations=["Relu"] if kind == "relu" else None,
    )
    behind = w.add("Transpose", w.add("Squeeze", behind, [1]), perm=[1, 0, 2])
    return w.add("Concat", behind, w.add("Transpose", *cell, perm=[1, 0, 2]), axis=1) if with_cell else behind


def _in_order(w: Writer, rows: Any, order: Sequence[int]) -> Any:
    """The same rows with their gates in that order."""
    if len(order) == 1:
        return rows
    parts = w.add_many(len(order), "Split", rows, axis=0, num_outputs=len(order))
    return w.add("Concat", *(parts[place] for place in order), axis=0)


def _each(value: Any, count: int) -> list[int]:
    """One number for each dimension."""
    given = [value] if isinstance(value, int) else list(value)
    return given * count if len(given) == 1 else given


def _convolution(
    w: Writer, _: Any, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    count = _rank(weight) - 2
    if _rank(x) != count + 2:
        return None
    kernel, dilations = list(weight.shape)[2:], _each(dilation, count)
    whole = [each * (size - 1) for each, size in zip(dilations, kernel, strict=True)]
    if isinstance(padding, str):
        first = [0] * count if padding == "valid" else [each // 2 for each in whole]
        pads = [*first, *([0] * count if padding == "valid" else [a - b for a, b in zip(whole, first, strict=True)])]
    else:
        pads = 2 * _each(padding, count)
    options = {"strides": _each(stride, count), "pads": pads, "dilations": dilations, "kernel_shape": kernel}
    return w.add("Conv", x, weight, *([] if bias is None else [bias]), group=groups, **options)


for _number in (1, 2, 3):
    _packet = getattr(_aten, f"conv{_number}d")
    OPERATORS[_packet.default] = OPERATORS[_packet.padding] = _convolution


@_writes(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
def _transposed_convolution(
    w: Writer, _: Any, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    count = _rank(weight) - 2
    if _rank(x) != count + 2:
        return None
    return w.add(
        "ConvTranspose", x, weight, *([] if bias is None else [bias]), group=groups,
        strides=_each(stride, count), pads=2 * _each(padding, count), dilations=_each(dilation, count),
        output_padding=_each(output_padding, count), kernel_shape=list(weight.shape)[2:],
    )  # fmt: skip


@_writes(_aten.convolution.default)
def _any_convolution(
    w: Writer, out: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    if transposed:
        return _transposed_convolution(w, out, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(w, out, x, weight, bias, stride, padding, dilation, groups)


@_writes(_aten.scaled_dot_product_attention.default)
def _attention(
    w: Writer, out: Any, query: Any, key: Any, value: Any, mask: Any = None, dropout: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    size, rank = query.shape[-1], _rank(query)
    if dropout or not isinstance(size, int) or rank < 2 or (enable_gqa and query.shape[-3] != key.shape[-3]):
        return None
    scaled = w.add("Mul", query, w.number(1 / math.sqrt(size) if scale is None else scale, out.dtype))
    turned = w.add("Transpose", key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores, lowest = w.add("MatMul", scaled, turned), w.number(torch.finfo(out.dtype).min, out.dtype)
    if is_causal:
        ahead = w.add("Expand", lowest, w.vector([w.size(query, -2), w.size(key, -2)]))
        mask = w.add("Trilu", ahead, np.int64(1), upper=1)
    elif mask is not None and mask.dtype == ir.DataType.BOOL:
        mask = w.add("Where", mask, w.number(0, out.dtype), lowest)
    scores = scores if mask is None else w.add("Add", scores, mask)
    return w.add("MatMul", w.add("Softmax", scores, axis=-1), value)


# norms


def _of_shape(w: Writer, sizes: Sequence[int], value: float, dtype: torch.dtype) -> Any:
    return w.add("ConstantOfShape", list(sizes), value=ir.tensor(np.array([value], ONNX_TYPES[dtype].numpy())))


@_writes(_aten.layer_norm.default)
def _layer_norm(
    w: Writer, out: Any, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:  # fmt: skip
    weight = _of_shape(w, shape, 1, out.dtype) if weight is None else weight
    return w.add("LayerNormalization", x, weight, *([] if bias is None else [bias]), axis=-len(shape), epsilon=eps)


@_writes(_aten.group_norm.default)
def _group_norm(
    w: Writer, out: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:  # fmt: skip
    sizes, one_each = w.sizes_of(x), [-1] + [1] * (_rank(x) - 2)
    ones, zeros = (np.full(groups, value, ONNX_TYPES[out.dtype].numpy()) for value in (1, 0))
    y = w.add("InstanceNormalization", w.add("Reshape", x, [0, groups, -1]), ones, zeros, epsilon=eps)
    fixed = [size if isinstance(size, int) else -1 for size in sizes]
    y = w.add("Reshape", y, w.vector(sizes) if fixed.count(-1) > 1 else fixed)
    y = y if weight is None else w.add("Mul", y, w.reshape(weight, one_each))
    return y if bias is None else w.add("Add", y, w.reshape(bias, one_each))


@_writes(_aten.instance_norm.default)
def _instance_norm(
    w: Writer, out: Any, x: Any, weight: Any, bias: Any, _mean: Any, _variance: Any, own: bool, _momentum: float,
    eps: float, *_: Any,
) -> Any:  # fmt: skip
    channels = x.shape[1]
    if not own or not isinstance(channels, int):
        return None
    weight = _of_shape(w, [channels], 1, out.dtype) if weight is None else weight
    bias = _of_shape(w, [channels], 0, out.dtype) if bias is None else bias
    return w.add("InstanceNormalization", x, weight, bias, epsilon=eps)


@_writes(_aten._native_batch_norm_legit_no_training.default)
def _batch_norm_only(
    w: Writer, out: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, _: float, eps: float
) -> Any:  # fmt: skip
    dtype = out[0].dtype if isinstance(out, tuple | list) else out.dtype
    weight = _of_shape(w, list(mean.shape), 1, dtype) if weight is None else weight
    bias = _of_shape(w, list(mean.shape), 0, dtype) if bias is None else bias
    return w.add("BatchNormalization", x, weight, bias, mean, variance, epsilon=eps), None, None


@_writes(_aten.batch_norm.default)
def _batch_norm(
    w: Writer, out: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float,
    eps: float, _: bool,
) -> Any:  # fmt: skip
    if training or mean is None:
        return None
    return _batch_norm_only(w, out, x, weight, bias, mean, variance, momentum, eps)[0]


@_writes(_aten.rms_norm.default)
def _rms_norm(w: Writer, out: Any, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    eps = torch.finfo(out.dtype).eps if eps is None else eps
    mean = w.add("ReduceMean", w.add("Mul", x, x), [*range(-len(shape), 0)], keepdims=1)
    root = w.add("Sqrt", w.add("Add", mean, w.number(eps, out.dtype)))
    y = w.add("Mul", x, w.add("Reciprocal", root))
    return y if weight is None else w.add("Mul", y, weight)


# pools and interpolation


def _pooled(w: Writer, x: Any, count: int, kind: str, options: dict[str, Any]) -> Any:
    """The pool of [N, C, ...], and of [C, ...], which ONNX does not take."""
    if _rank(x) > count + 1:
        return w.add(kind, x, **options)
    return w.add("Squeeze", w.add(kind, w.add("Unsqueeze", x, [0]), **options), [0])


def _avg_pool(
    count: int, w: Writer, out: Any, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    counted: bool = True, divisor: int | None = None,
) -> Any:  # fmt: skip
    """Windows beyond the padding have fewer numbers.

    Between tensors of integers onnxruntime 1.31 divides by the whole kernel there, if the padding is counted; so it is
    not, and the share of each window that is inside is a factor.
    """
    kernel, padding = _each(kernel, count), _each(padding, count)
    strides = _each(stride, count) if stride else kernel
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": 2 * padding}
    if divisor is not None:
        if ceil_mode:
            return None
        mean = _pooled(w, x, count, "AveragePool", options | {"count_include_pad": 1})
        return w.add("Mul", mean, w.number(math.prod(kernel) / divisor, out.dtype))
    if not (ceil_mode and counted):
        return _pooled(
            w, x, count, "AveragePool", options | {"ceil_mode": int(ceil_mode), "count_include_pad": int(counted)}
        )
    sizes = list(x.shape)[-count:]
    if not all(isinstance(size, int) for size in sizes):
        raise UnsupportedModel(
            "an average pool with ceil_mode over sizes that are dynamic; leave them out of `dynamic`, or pool without "
            "ceil_mode"
        )
    pool = getattr(_aten, f"avg_pool{count}d").default
    shares = pool(torch.ones(1, *sizes, dtype=out.dtype), kernel, strides, padding, True, True)
    return w.add("Mul", _pooled(w, x, count, "AveragePool", options | {"ceil_mode": 1}), shares.numpy())


def _max_pool(
    count: int, w: Writer, _: Any, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    kernel = _each(kernel, count)
    options = {
        "kernel_shape": kernel, "strides": _each(stride, count) if stride else kernel,
        "pads": 2 * _each(padding, count), "dilations": _each(dilation, count), "ceil_mode": int(ceil_mode),
    }  # fmt: skip
    return _pooled(w, x, count, "MaxPool", options)


def _adaptive_pool(count: int, kind: str, w: Writer, x: Any, size: Any) -> Any:
    """Windows of one size, where it divides; None elsewhere."""
    axes, reduce = [*range(_rank(x) - count, _rank(x))], {"AveragePool": "ReduceMean", "MaxPool": "ReduceMax"}[kind]
    sizes = [x.shape[axis] for axis in axes]
    wanted = [own if each is None else each for own, each in zip(sizes, _each(size, count), strict=True)]
    by_one_window = kind == "AveragePool" or not all(isinstance(own, int) for own in sizes)
    if by_one_window and wanted == [1] * count:
        return w.add(reduce, x, axes, keepdims=1)
    if not all(isinstance(own, int) and own % each == 0 for own, each in zip(sizes, wanted, strict=True)):
        return None
    kernel = [own // each for own, each in zip(sizes, wanted, strict=True)]
    return _pooled(w, x, count, kind, {"kernel_shape": kernel, "strides": kernel})


def _adaptive_avg_pool(count: int, w: Writer, _: Any, x: Any, size: Any) -> Any:
    return _adaptive_pool(count, "AveragePool", w, x, size)


def _adaptive_max_pool(count: int, w: Writer, _: Any, x: Any, size: Any) -> Any:
    pooled = _adaptive_pool(count, "MaxPool", w, x, size)
    return None if pooled is None else (pooled, None)


#: Of each operator that makes images larger: what ONNX calls it, and whether it says if corners are aligned.
_RESIZES = {
    "nearest1d": ("nearest", False), "nearest2d": ("nearest", False), "nearest3d": ("nearest", False),
    "linear1d": ("linear", True), "bilinear2d": ("linear", True), "trilinear3d": ("linear", True),
    "bicubic2d": ("cubic", True),
}  # fmt: skip


def _resized(w: Writer, x: Any, sizes: Any, factors: Any, mode: str, align: bool) -> Any:
    options: dict[str, Any] = {"mode": mode, "nearest_mode": "floor"}
    options["coordinate_transformation_mode"] = (
        "asymmetric" if mode == "nearest" else "align_corners" if align else "half_pixel"
    )
    if mode == "cubic":
        options["cubic_coeff_a"] = -0.75
    if sizes is not None:
        pairs = list(zip(sizes, list(x.shape)[2:], strict=True))
        if not all(isinstance(to, int) and isinstance(own, int) and to % own == 0 for to, own in pairs):
            return w.add("Resize", x, None, None, w.vector([w.size(x, 0), w.size(x, 1), *sizes]), **options)
        factors = [to // own for to, own in pairs]
    return w.add("Resize", x, None, np.array([1, 1, *factors], np.float32), **options)


def _upsample_vec(mode: str, aligns: bool, w: Writer, _: Any, x: Any, sizes: Any, *rest: Any) -> Any:
    return _resized(w, x, sizes, rest[-1], mode, aligns and rest[0])


def _upsample(mode: str, aligns: bool, w: Writer, _: Any, x: Any, sizes: Any, *rest: Any) -> Any:
    align, factors = (rest[0], rest[1:]) if aligns else (False, rest)
    given = bool(factors) and all(factor is not None for factor in factors)
    return _resized(w, x, None if given else sizes, factors, mode, align)


for _name, (_mode, _aligns) in _RESIZES.items():
    _packet = getattr(_aten, f"upsample_{_name}")
    OPERATORS[_packet.vec] = partial(_upsample_vec, _mode, _aligns)
    OPERATORS[_packet.default] = partial(_upsample, _mode, _aligns)
for _number in (1, 2, 3):
    OPERATORS[getattr(_aten, f"avg_pool{_number}d").default] = partial(_avg_pool, _number)
    OPERATORS[getattr(_aten, f"max_pool{_number}d").default] = partial(_max_pool, _number)
    _adaptive = getattr(_aten, f"adaptive_avg_pool{_number}d").default
    OPERATORS[_adaptive] = partial(_adaptive_avg_pool, _number)
    OPERATORS[getattr(_aten, f"adaptive_max_pool{_number}d").default] = partial(_adaptive_max_pool, _number)


# sizes


@_writes(_aten.sym_size.int)
def _sym_size(w: Writer, _: Any, x: Any, dim: int) -> Any:
    return w.size(x, dim)


def _of_sizes(kind: str, w: Writer, out: Any, *sizes: Any) -> Any:
    if isinstance(out, int):
        return out
    return Size(w.add(kind, *(w.vector([size]) for size in sizes)), str(out.node.expr))


for _kind, _target in {
    "Mul": operator.mul, "Add": operator.add, "Sub": operator.sub, "Mod": operator.mod, "Neg": operator.neg,
    "Max": torch.sym_max, "Min": torch.sym_min,
}.items():  # fmt: skip
    OPERATORS[_target] = partial(_of_sizes, _kind)


@_writes(operator.floordiv)
def _floordiv(w: Writer, out: Any, size: Any, by: Any) -> Any:
    """ONNX divides towards zero, and `-(-size // by)` is how code rounds up."""
    if isinstance(out, int):
        return out
    size, by = w.vector([size]), w.vector([by])
    return Size(w.add("Div", w.add("Sub", size, w.add("Mod", size, by)), by), str(out.node.expr))


@_writes(operator.getitem)
def _getitem(_w: Writer, _: Any, parts: Sequence[Any], index: int) -> Any:
    return parts[index]
