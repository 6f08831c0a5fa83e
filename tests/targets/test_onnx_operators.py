"""Every operator that the table writes: onnxruntime computes what torch does, at other batch sizes too."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import Dim

from mixbit.core.batches import Inputs
from mixbit.core.errors import UnsupportedModel
from mixbit.graph.graph import Graph
from mixbit.graph.recurrent import WHOLE

pytest.importorskip("onnxruntime")

import onnx_ir as ir
import onnxruntime

from mixbit.targets import _onnx, _onnx_translation
from mixbit.targets._onnx_operators import OPERATORS
from mixbit.targets._onnx_translation import translated

aten = torch.ops.aten
LAST = 2**63 - 1
#: Numbers of samples that files run with, beside the three of the example; cases in one file.
COUNTS, AT_ONCE = (1, 5), 64


@dataclass(frozen=True)
class Named:
    """An input or a buffer."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operator on named tensors, numbers and what other operators return; `parts` are the outputs that are read."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parts: Sequence[int] | None = None

    def __str__(self) -> str:
        def told(value: Any) -> str:
            if isinstance(value, Sequence) and not isinstance(value, str):
                return f"[{', '.join(map(told, value))}]"
            return value.name if isinstance(value, Named) else str(value)

        options = [f"{name}={value}" for name, value in self.kwargs.items()]
        return f"{self.target}({', '.join([*map(told, self.args), *options])})"


def call(target: Any, *args: Any, parts: Sequence[int] | None = None, **kwargs: Any) -> Call:
    return Call(target, args, kwargs, parts)


def inputs(count: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=made)

    def whole(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, (count, *shape), generator=made)

    return {
        "x": normal(4, 6), "y": normal(4, 6), "positive": normal(4, 6).abs() + 0.1,
        "small": 0.9 * torch.rand(count, 4, 6, generator=made), "i": whole(-4, 6, 4, 6), "j": whole(1, 6, 4, 6),
        "b": normal(4, 6) > 0, "c": normal(4, 6) > 0, "i32": whole(-4, 6, 4, 6).int(), "places": whole(0, 4, 2, 6),
        "ids": whole(0, 7, 3), "rows": normal(6), "one_each": normal(), "image": normal(4, 8, 6),
        "volume": normal(2, 4, 4, 4), "column": normal(4, 1), "heads": normal(2, 5, 6), "mask": normal(1, 5, 5) > -1,
        "signal": normal(4, 10),
    }  # fmt: skip


def buffers() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(99)
    shapes = {
        "matrix": (5, 6), "turned": (6, 5), "bias": (5,), "six": (6,), "four": (4,), "five": (5,), "kernel1": (5, 4, 3),
        "kernel2": (5, 4, 3, 3), "grouped": (6, 2, 3, 2), "kernel3": (5, 2, 2, 2, 2), "back1": (4, 5, 3),
        "back2": (4, 5, 3, 3), "back_grouped": (4, 3, 2, 2), "back3": (2, 5, 2, 2, 2), "table": (7, 5), "number": (),
        "one": (1,), "square": (6, 6),
    }  # fmt: skip
    floats = {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}
    return floats | {"spread": torch.rand(4, generator=made) + 0.5, "picks": torch.tensor([2, 0, -1])}


X, Y, I, J, B, C, I32 = map(Named, ("x", "y", "i", "j", "b", "c", "i32"))  # noqa: E741 integers
POSITIVE, SMALL, PLACES, IDS, ROWS = map(Named, ("positive", "small", "places", "ids", "rows"))
IMAGE, VOLUME, COLUMN, HEADS, MASK, SIGNAL = map(Named, ("image", "volume", "column", "heads", "mask", "signal"))
ONE_EACH, NUMBER, SIX, FOUR, SPREAD, PICKS = map(Named, ("one_each", "number", "six", "four", "spread", "picks"))
SAMPLES = call(aten.sym_size.int, X, 0)
WIDE = call(aten.reshape.default, X, [call(operator.mul, SAMPLES, 4), 6])
SQUARES, ABSOLUTE = call(aten.expand.default, Named("square"), [SAMPLES, 6, 6]), call(aten.abs.default, PICKS)

#: Functions of one tensor, and what they are run on beside x.
FUNCTIONS = {
    "abs": (I,), "acos": (SMALL,), "acosh": (call(aten.add.Scalar, POSITIVE, 1),), "asin": (SMALL,), "asinh": (X,),
    "atan": (X,), "atanh": (SMALL,), "ceil": (X,), "cos": (X, I), "cosh": (X,), "erf": (X,), "exp": (X, I),
    "floor": (X,), "gelu": (X,), "hardsigmoid": (X,), "hardswish": (X,), "log": (POSITIVE, J), "log_sigmoid": (X,),
    "mish": (X,), "neg": (X, I), "reciprocal": (POSITIVE, J), "relu": (X, I), "relu6": (X,), "round": (X,),
    "rsqrt": (POSITIVE, J), "selu": (X,), "sigmoid": (X, I, B), "sign": (X, I), "silu": (X,), "sin": (X,),
    "sinh": (X,), "sqrt": (POSITIVE, J), "square": (X, I), "tan": (SMALL,), "tanh": (X, I), "isnan": (X,),
    "logical_not": (X, I, B), "bitwise_not": (I, B), "celu": (X,), "elu": (X,), "leaky_relu": (X,), "softplus": (X,),
    "clone": (X, I, B), "contiguous": (X,), "alias": (X,), "detach": (X,), "lift_fresh_copy": (X,),
    "t": (ROWS, ONE_EACH), "numpy_T": (X, ROWS),
    "squeeze": (call(aten.unsqueeze.default, SIX, 0),), "zeros_like": (X, I, B), "ones_like": (X, B),
}  # fmt: skip

CASES = [call(getattr(aten, name).default, x) for name, given in FUNCTIONS.items() for x in given]
CASES += [
    call(aten.gelu.default, X, approximate="tanh"), call(aten.leaky_relu.default, X, 0.3),
    call(aten.elu.default, X, 0.5), call(aten.celu.default, X, 0.5), call(aten.softplus.default, X, 2, 1),
    call(aten.prelu.default, X, FOUR), call(aten.prelu.default, IMAGE, Named("one")), call(aten.glu.default, X),
    call(aten.prelu.default, ROWS, SIX), call(aten.glu.default, IMAGE, -3), call(aten.hardtanh.default, X),
    call(aten.hardtanh.default, X, 0.0, 0.5), call(aten.clamp.default, X, -0.5, 0.5), call(aten.clamp.default, I, 0),
    call(aten.clamp.default, X, None, 0.2), call(aten.clamp.default, I, -0.5, 2.5),
    call(aten.clamp_min.default, X, 0.1), call(aten.clamp_max.default, I, 2), call(aten.clamp.Tensor, X, Y),
    call(aten.clamp.Tensor, X, None, SIX), call(aten.clamp_min.Tensor, X, Y), call(aten.clamp_max.Tensor, I, X),
    call(aten.threshold.default, X, 0.1, 20), call(aten._to_copy.default, X, dtype=torch.int64),
    call(aten._to_copy.default, B, dtype=torch.float32), call(aten._to_copy.default, I, dtype=torch.bool),
    call(aten.to.dtype, X, torch.bool), call(aten.to.dtype, I, torch.float32), call(aten.type_as.default, I, X),
    call(aten.dropout.default, X, 0.5, False),
]  # fmt: skip

ARITHMETIC = {
    "add": ((X, Y), (X, I), (I, J), (X, SIX), (X, NUMBER), (I, NUMBER), (X, COLUMN), (I32, I), (B, I)),
    "sub": ((X, Y), (I, X), (X, NUMBER), (I32, J)), "mul": ((X, Y), (X, I), (B, X), (B, C), (I, J), (I, NUMBER)),
    "div": ((X, Y), (I, J), (X, J), (I, NUMBER)), "maximum": ((X, Y), (I, X), (I, J)), "minimum": ((X, Y), (I, J)),
    "rsub": ((X, Y), (I, X)), "floor_divide": ((X, Y), (I, J), (I32, J)), "remainder": ((X, Y), (I, J), (X, J)),
    "fmod": ((X, Y), (I, J)),
}  # fmt: skip
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def binary(name: str) -> Any:
    packet = getattr(aten, name)
    return packet.Tensor if "Tensor" in packet.overloads() else packet.default


CASES += [call(binary(name), *pair) for name, pairs in ARITHMETIC.items() for pair in pairs]
CASES += [
    call(getattr(aten, name).Scalar, x, number)
    for name in ("add", "sub", "rsub", "mul", "div", "remainder", "fmod", "floor_divide")
    for x, number in ((X, 3), (X, 0.7), (I, 3), (I, -2), (I, 1.5))
]
CASES += [
    call(getattr(aten, name).Tensor, *pair)
    for name in COMPARISONS
    for pair in ((X, Y), (I, J), (I, X), (B, C), (I32, I), (X, NUMBER))
]
CASES += [
    call(getattr(aten, name).Scalar, x, number)
    for name in COMPARISONS
    for x, number in ((X, 0), (I, 1), (I, 0.5), (B, 1))
]
CASES += [
    call(getattr(aten, f"logical_{name}").default, *pair)
    for name in ("and", "or", "xor")
    for pair in ((B, C), (X, I), (I, B))
]
CASES += [
    call(target, *pair)
    for name in ("and", "or", "xor")
    for packet in (getattr(aten, f"bitwise_{name}"), getattr(aten, f"__{name}__"))
    for target, pair in ((packet.Tensor, (B, C)), (packet.Tensor, (I, J)), (packet.Scalar, (I, 3)))
]
CASES += [
    call(aten.add.Tensor, X, Y, alpha=0.5), call(aten.add.Tensor, I, J, alpha=2), call(aten.sub.Tensor, X, 3),
    call(aten.sub.Tensor, X, Y, alpha=2), call(aten.rsub.Scalar, X, 1, 2), call(aten.mul.Tensor, X, 2.5),
    call(aten.mul.Tensor, I, SAMPLES), call(aten.add.Tensor, X, SAMPLES), call(aten.mul.Tensor, NUMBER, SAMPLES),
    call(aten.div.Tensor_mode, X, Y, rounding_mode="floor"), call(aten.div.Tensor_mode, X, Y, rounding_mode="trunc"),
    call(aten.div.Tensor_mode, I, J, rounding_mode="floor"), call(aten.div.Tensor_mode, I, J, rounding_mode="trunc"),
    call(aten.div.Tensor_mode, I, J, rounding_mode=None), call(aten.div.Scalar_mode, I, -3, rounding_mode="floor"),
    call(aten.div.Scalar_mode, X, 0.3, rounding_mode="trunc"), call(aten.pow.Tensor_Scalar, X, 2),
    call(aten.pow.Tensor_Scalar, I, 2), call(aten.pow.Tensor_Scalar, POSITIVE, 0.5), call(aten.pow.Scalar, 2.5, X),
    call(aten.pow.Scalar, 3, J), call(aten.pow.Tensor_Tensor, POSITIVE, Y), call(aten.max.other, X, Y),
    call(aten.min.other, I, J), call(aten.remainder.Scalar_Tensor, 7, J), call(aten.where.self, B, X, Y),
    call(aten.where.self, B, X, I), call(aten.where.self, B, X, NUMBER), call(aten.where.ScalarOther, B, X, -3.4e38),
    call(aten.where.ScalarSelf, B, 2, I), call(aten.where.Scalar, B, 1.0, 0.0), call(aten.where.self, B, C, B),
    call(aten.masked_fill.Scalar, X, B, -100.0), call(aten.masked_fill.Scalar, I, B, 3),
    call(aten.masked_fill.Tensor, X, B, NUMBER),
]  # fmt: skip

# sums and others along dimensions
CASES += [
    call(getattr(aten, name).default, x)
    for name, given in {"sum": (X, I, B), "mean": (X,), "prod": (SMALL,), "max": (X, I), "min": (X, I)}.items()
    for x in given
]
CASES += [
    call(target, x, dims, keepdim)
    for target, given in {
        aten.sum.dim_IntList: (X, I, B), aten.mean.dim: (X,), aten.amax.default: (X, I), aten.amin.default: (X, I32),
        aten.logsumexp.default: (X,), aten.any.dims: (B,), aten.all.dims: (B, X),
    }.items()
    for x in given
    for dims, keepdim in (([1], False), ([-1], True), ([1, 2], False), ([-1, 1], True))
]  # fmt: skip
CASES += [
    call(aten.sum.dim_IntList, X, None), call(aten.mean.dim, X, None, True), call(aten.mean.dim, X, [0]),
    call(aten.mean.default, I, dtype=torch.float32), call(aten.sum.dim_IntList, X, [0, 2]), call(aten.amax.default, X),
    call(aten.mean.dim, IMAGE, [2, 3], True), call(aten.sum.dim_IntList, ONE_EACH, [0]),
    call(aten.prod.dim_int, SMALL, 1), call(aten.prod.dim_int, SMALL, -1, True), call(aten.any.default, B),
    call(aten.all.default, I), call(aten.any.dim, X, 1), call(aten.all.dim, B, -1, True),
    call(aten.linalg_vector_norm.default, X), call(aten.linalg_vector_norm.default, X, 1, [1]),
    call(aten.linalg_vector_norm.default, X, 2, [1, -1], True),
    call(aten.linalg_vector_norm.default, X, float("inf"), [-1]), call(aten.norm.ScalarOpt_dim, X, None, [1]),
    call(aten.norm.ScalarOpt_dim, X, 1, [-1], True), call(aten.var.correction, X, [1]),
    call(aten.var.correction, X, [-1, 1], correction=0, keepdim=True), call(aten.std.correction, X, [2], correction=1),
    call(aten.max.dim, X, 1), call(aten.max.dim, X, -1, True), call(aten.min.dim, X, 2),
    call(aten.argmax.default, X, 1), call(aten.argmax.default, X, -1, True), call(aten.argmax.default, X),
    call(aten.argmin.default, X, 2), call(aten.argmax.default, I32, 1), call(aten.cumsum.default, X, 1),
    call(aten.cumsum.default, B, -1), call(aten.cumsum.default, I, 0), call(aten.topk.default, X, 2),
    call(aten.topk.default, X, 3, 1, False), call(aten.sort.default, X), call(aten.sort.default, X, 1, True),
    call(aten.softmax.int, X, -1), call(aten.softmax.int, X, 1, torch.float32),
    call(aten._softmax.default, X, 1, False), call(aten.log_softmax.int, X, 1),
    call(aten._log_softmax.default, X, -1, False), call(aten.diff.default, X), call(aten.diff.default, I, 1, 1),
    call(aten.diff.default, X, 1, -1, COLUMN), call(aten.diff.default, X, 1, 2, COLUMN, COLUMN),
]  # fmt: skip

# shapes
CASES += [
    call(aten.reshape.default, X, [-1, 24]), call(aten.reshape.default, X, [SAMPLES, 24]),
    call(aten.reshape.default, X, [SAMPLES, -1, 3]), call(aten.reshape.default, X, [2, SAMPLES, 12]),
    call(aten.reshape.default, WIDE, [SAMPLES, 4, 6]), call(aten.view.default, X, [SAMPLES, 2, 2, 6]),
    call(aten._unsafe_view.default, X, [SAMPLES, 24]), call(aten.reshape.default, X, [-1]),
    call(aten.reshape.default, call(aten.permute.default, IMAGE, [2, 0, 1, 3]), [8, call(operator.mul, 4, SAMPLES), 6]),
    call(aten.reshape.default, call(aten.slice.Tensor, X, 1, 0, 0), [SAMPLES, 0, 2, 3]),
    call(aten.flatten.using_ints, X), call(aten.flatten.using_ints, IMAGE, 1),
    call(aten.flatten.using_ints, IMAGE, -3, -2), call(aten.flatten.using_ints, NUMBER),
    call(aten.flatten.using_ints, IMAGE, 0, 1), call(aten.unflatten.int, X, -1, [2, -1]),
    call(aten.unflatten.int, WIDE, 0, [-1, 4]), call(aten.permute.default, IMAGE, [0, -1, 1, 2]),
    call(aten.permute.default, X, [0, 1, 2]), call(aten.transpose.int, X, 0, 1), call(aten.transpose.int, X, -1, -2),
    call(aten.unsqueeze.default, X, 0), call(aten.unsqueeze.default, X, -1), call(aten.squeeze.dim, COLUMN, 2),
    call(aten.squeeze.dim, COLUMN, 1), call(aten.squeeze.dims, COLUMN, [-1, 1]),
    call(aten.expand.default, COLUMN, [-1, 4, 6]), call(aten.expand.default, COLUMN, [SAMPLES, -1, 6]),
    call(aten.expand.default, SIX, [SAMPLES, 4, 6]), call(aten.expand.default, X, [SAMPLES, 4, 6]),
    call(aten.expand.default, COLUMN, [2, SAMPLES, 4, 3], implicit=False), call(aten.expand_as.default, COLUMN, X),
    call(aten.expand_as.default, SIX, X), call(aten.repeat.default, X, [1, 2, 1]),
    call(aten.repeat.default, X, [2, 1, 1, 3]), call(aten.repeat.default, SIX, [SAMPLES, 1]),
    call(aten.slice.Tensor, X, 0, 0, LAST), call(aten.slice.Tensor, X, 1, 1, 3),
    call(aten.slice.Tensor, X, -1, 0, LAST, 2), call(aten.slice.Tensor, X, 2, -3), call(aten.slice.Tensor, X, 2, 0, -1),
    call(aten.slice.Tensor, X, 2, 4, 100), call(aten.slice.Tensor, X, 0, 1), call(aten.slice.Tensor, X, 2, 5, 2),
    call(aten.slice.Tensor, X, 0, 0, SAMPLES), call(aten.slice.Tensor, B, 1, 2), call(aten.select.int, X, 1, 0),
    call(aten.select.int, X, -1, -2), call(aten.select.int, X, 0, 0), call(aten.unbind.int, X, 1),
    call(aten.unbind.int, X, -1), call(aten.split.Tensor, X, 2, 1), call(aten.split.Tensor, X, 4, -1),
    call(aten.split.Tensor, X, 6, 2), call(aten.split_with_sizes.default, X, [1, 2, 3], 2),
    call(aten.chunk.default, X, 3, -1), call(aten.chunk.default, X, 4, 2), call(aten.cat.default, [X, Y], 1),
    call(aten.cat.default, [X, I], -1), call(aten.cat.default, [X, X, Y]), call(aten.cat.default, [X]),
    call(aten.cat.default, [B, C], 2), call(aten.stack.default, [X, Y]), call(aten.stack.default, [X, I], -1),
    call(aten.stack.default, [X, Y, X], 1), call(aten.roll.default, X, [1], [1]),
    call(aten.roll.default, IMAGE, [-2, 3], [2, -1]), call(aten.roll.default, X, [8], [1]),
    call(aten.flip.default, X, [1]), call(aten.flip.default, X, [-1, 0]), call(aten.pixel_shuffle.default, IMAGE, 2),
    call(aten.pad.default, X, [1, 2]), call(aten.pad.default, X, [0, 0, 2, 1], "constant", 0.5),
    call(aten.pad.default, I, [1, 1], "constant", -1.0), call(aten.pad.default, X, [0, 0]),
    call(aten.pad.default, X, [2, 1], "reflect"), call(aten.pad.default, IMAGE, [2, 1, 1, 0], "replicate"),
    call(aten.pad.default, X, [2, 1], "circular"), call(aten.pad.default, X, [-1, -2]),
    call(aten.pad.default, X, [0, 0, 0, 0, 0, SAMPLES]), call(aten.pad.default, B, [1, 1]),
    call(aten.constant_pad_nd.default, X, [1, 0, 0, 2], 3.0), call(aten.reflection_pad1d.default, X, [2, 1]),
    call(aten.reflection_pad2d.default, IMAGE, [1, 2, 0, 1]),
    call(aten.reflection_pad3d.default, VOLUME, [1, 0, 1, 0, 1, 2]), call(aten.replication_pad1d.default, X, [2, 1]),
    call(aten.replication_pad2d.default, IMAGE, [1, 2, 0, 1]),
    call(aten.replication_pad3d.default, VOLUME, [1, 0, 1, 0, 1, 2]),
]  # fmt: skip

# looking up, and tensors of one number
CASES += [
    call(aten.embedding.default, Named("table"), IDS), call(aten.embedding.default, Named("table"), IDS, 0),
    call(aten.index_select.default, X, 1, ABSOLUTE), call(aten.index_select.default, X, -1, ABSOLUTE),
    call(aten.gather.default, X, 1, PLACES), call(aten.gather.default, X, -2, PLACES),
    call(aten.scatter.src, X, 1, PLACES, call(aten.slice.Tensor, Y, 1, 0, 2)),
    call(aten.scatter.value, X, 1, PLACES, 2.5), call(aten.scatter.value, I, -2, PLACES, 7),
    call(aten.index.Tensor, X, [None, PICKS]), call(aten.index.Tensor, X, [call(aten.zeros_like.default, IDS)]),
    call(aten.index.Tensor, X, [None, None, PICKS]), call(aten.index.Tensor, IMAGE, [None, PICKS, PICKS]),
    call(aten.index.Tensor, IMAGE, [None, PICKS, None, PICKS]),
    call(aten.index.Tensor, IMAGE, [None, None, PICKS, PICKS]),
    call(aten.index.Tensor, X, [call(aten.reshape.default, call(aten.arange.default, SAMPLES), [-1, 1]), PICKS]),
    call(aten.index.Tensor, Named("table"), [call(aten.reshape.default, IDS, [-1])]),
    call(aten.full.default, [SAMPLES, 3], 0.5), call(aten.full.default, [2, 200], 3),
    call(aten.full.default, [SAMPLES], True), call(aten.new_full.default, X, [SAMPLES, 2], 4),
    call(aten.full_like.default, X, 2), call(aten.full_like.default, I, 3), call(aten.zeros.default, [SAMPLES, 3]),
    call(aten.ones.default, [SAMPLES, 3], dtype=torch.int64), call(aten.new_zeros.default, I, [SAMPLES]),
    call(aten.new_ones.default, X, [3, SAMPLES]), call(aten.new_ones.default, X, [], dtype=torch.bool),
    call(aten.scalar_tensor.default, 2.5), call(aten.scalar_tensor.default, SAMPLES),
    call(aten.arange.default, SAMPLES), call(aten.arange.default, 200), call(aten.arange.start, -2, SAMPLES),
    call(aten.arange.start_step, 1, 400, 2), call(aten.tril.default, X),
    call(aten.arange.start_step, 0, SAMPLES, 2, dtype=torch.float32), call(aten.tril.default, B, -1),
    call(aten.triu.default, X, 1), call(aten.triu.default, I),
    call(aten.zeros_like.default, call(aten.empty_like.default, X)),
    call(aten.zeros_like.default, call(aten.new_empty.default, X, [SAMPLES])),
    call(aten.zeros_like.default, call(aten.empty.memory_format, [SAMPLES, 2])),
    call(aten.add.Tensor, X, call(aten.mul.Tensor, call(aten.arange.default, 6), 0.5)), call(aten.eye.default, 3),
]  # fmt: skip

# products
QKV = (HEADS, HEADS, HEADS)
CASES += [
    call(aten.linear.default, X, Named("matrix"), Named("bias")), call(aten.linear.default, X, Named("matrix")),
    call(aten.linear.default, ROWS, Named("matrix"), Named("bias")), call(aten.linear.default, ROWS, Named("matrix")),
    call(aten.matmul.default, X, Named("turned")), call(aten.matmul.default, X, SIX),
    call(aten.mm.default, ROWS, Named("turned")), call(aten.bmm.default, X, call(aten.transpose.int, Y, 1, 2)),
    call(aten.addmm.default, Named("bias"), ROWS, Named("turned")),
    call(aten.addmm.default, Named("bias"), ROWS, Named("turned"), beta=0.5, alpha=2),
    call(aten.baddbmm.default, X, Y, SQUARES), call(aten.baddbmm.default, X, Y, SQUARES, beta=0.5, alpha=3),
    call(aten.conv1d.default, X, Named("kernel1"), Named("bias")),
    call(aten.conv1d.default, X, Named("kernel1"), None, [2], [1]),
    call(aten.conv1d.default, SIGNAL, Named("kernel1"), None, [1], [2], [3]),
    call(aten.conv1d.padding, X, Named("kernel1"), None, [1], "same"),
    call(aten.conv2d.default, IMAGE, Named("kernel2"), Named("bias"), [2, 1], [1, 0]),
    call(aten.conv2d.default, IMAGE, Named("grouped"), None, [1, 1], [0, 0], [1, 1], 2),
    call(aten.conv2d.padding, IMAGE, Named("grouped"), None, [1, 1], "same", [1, 1], 2),
    call(aten.conv2d.padding, IMAGE, Named("kernel2"), None, [1, 1], "valid"),
    call(aten.conv3d.default, VOLUME, Named("kernel3"), Named("bias")),
    call(aten.conv3d.padding, VOLUME, Named("kernel3"), None, [1, 1, 1], "same"),
    call(aten.conv_transpose1d.default, X, Named("back1"), Named("bias"), [2], [1], [1]),
    call(aten.conv_transpose2d.input, IMAGE, Named("back2"), None, [2, 2], [1, 1], [1, 1]),
    call(aten.conv_transpose2d.input, IMAGE, Named("back_grouped"), None, [1, 1], [0, 0], [0, 0], 2, [2, 2]),
    call(aten.conv_transpose3d.input, VOLUME, Named("back3"), Named("bias"), [2, 2, 2]),
    call(aten.convolution.default, IMAGE, Named("kernel2"), Named("bias"), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    call(aten.convolution.default, IMAGE, Named("back2"), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    call(aten.scaled_dot_product_attention.default, *QKV), call(aten.scaled_dot_product_attention.default, *QKV, MASK),
    call(aten.scaled_dot_product_attention.default, *QKV, None, 0.0, True),
    call(aten.scaled_dot_product_attention.default, *QKV, scale=0.3),
    call(aten.scaled_dot_product_attention.default, *QKV, call(aten._to_copy.default, MASK, dtype=torch.float32)),
]  # fmt: skip

# norms, pools and interpolation
NORM = (FOUR, Named("spread"), FOUR, SPREAD)
CASES += [
    call(aten.layer_norm.default, X, [6], SIX, SIX), call(aten.layer_norm.default, X, [4, 6]),
    call(aten.layer_norm.default, X, [6], SIX, None, 1e-3), call(aten.group_norm.default, IMAGE, 2, FOUR, FOUR),
    call(aten.group_norm.default, X, 1, None, None, 1e-3),
    call(aten.instance_norm.default, IMAGE, None, None, None, None, True, 0.1, 1e-5, False),
    call(aten.instance_norm.default, X, FOUR, FOUR, None, None, True, 0.1, 1e-3, False),
    call(aten.batch_norm.default, IMAGE, *NORM, False, 0.1, 1e-5, False),
    call(aten.batch_norm.default, X, None, None, FOUR, SPREAD, False, 0.1, 1e-3, False),
    call(aten._native_batch_norm_legit_no_training.default, IMAGE, *NORM, 0.1, 1e-5, parts=[0]),
    call(aten.rms_norm.default, X, [6], SIX), call(aten.rms_norm.default, X, [4, 6], None, 1e-3),
    call(aten.avg_pool1d.default, SIGNAL, [3], [2], [1]), call(aten.avg_pool1d.default, ROWS, [3], [1], [1]),
    call(aten.avg_pool2d.default, IMAGE, [2, 2]), call(aten.avg_pool2d.default, IMAGE, [3, 3], [1, 1], [1, 1]),
    call(aten.avg_pool2d.default, IMAGE, [3, 3], [2, 2], [1, 1], False, False),
    call(aten.avg_pool2d.default, IMAGE, [3, 2], [2, 2], [1, 0], True),
    call(aten.avg_pool2d.default, IMAGE, [3, 3], [2, 2], [1, 1], True, False),
    call(aten.avg_pool2d.default, IMAGE, [2, 2], [], 0, False, True, 3),
    call(aten.avg_pool3d.default, VOLUME, [2, 2, 2]), call(aten.avg_pool3d.default, VOLUME, 3, 1, 1),
    call(aten.max_pool1d.default, SIGNAL, [3], [2], [1], [2], True), call(aten.max_pool2d.default, IMAGE, [2, 2]),
    call(aten.max_pool2d.default, IMAGE, [3, 3], [2, 2], [1, 1]),
    call(aten.max_pool2d.default, IMAGE, [3, 3], [2, 2], [0, 0], [1, 1], True),
    call(aten.max_pool2d.default, IMAGE, [5, 5], [1, 1], [2, 2]), call(aten.max_pool2d.default, IMAGE, 2, 1, 1, 2),
    call(aten.max_pool3d.default, VOLUME, [2, 2, 2]), call(aten.max_pool1d.default, ROWS, 2),
    call(aten.adaptive_avg_pool1d.default, X, [1]), call(aten.adaptive_avg_pool1d.default, X, [3]),
    call(aten.adaptive_avg_pool2d.default, IMAGE, [1, 1]), call(aten.adaptive_avg_pool2d.default, IMAGE, [4, 3]),
    call(aten.adaptive_avg_pool3d.default, VOLUME, [2, 2, 2]),
    call(aten.adaptive_max_pool1d.default, X, [1], parts=[0]),
    call(aten.adaptive_max_pool2d.default, IMAGE, [2, 3], parts=[0]),
    call(aten.adaptive_max_pool3d.default, VOLUME, [1, 1, 1], parts=[0]),
    call(aten.upsample_nearest1d.vec, X, None, [2.0]), call(aten.upsample_nearest1d.default, X, [9]),
    call(aten.upsample_nearest2d.vec, IMAGE, None, [2.0, 2.0]), call(aten.upsample_nearest2d.vec, IMAGE, [12, 9], None),
    call(aten.upsample_nearest2d.default, IMAGE, [16, 12]),
    call(aten.upsample_nearest2d.default, IMAGE, [16, 12], 2.0, 2.0),
    call(aten.upsample_nearest3d.vec, VOLUME, None, [2.0, 2.0, 2.0]),
    call(aten.upsample_nearest3d.default, VOLUME, [8, 8, 8]), call(aten.upsample_linear1d.vec, X, None, False, [1.5]),
    call(aten.upsample_linear1d.default, X, [9], True),
    call(aten.upsample_bilinear2d.vec, IMAGE, None, False, [2.0, 2.0]),
    call(aten.upsample_bilinear2d.vec, IMAGE, [11, 9], True, None),
    call(aten.upsample_bilinear2d.vec, IMAGE, [4, 3], False, None),
    call(aten.upsample_bilinear2d.default, IMAGE, [16, 12], False),
    call(aten.upsample_trilinear3d.vec, VOLUME, None, False, [2.0, 2.0, 2.0]),
    call(aten.upsample_trilinear3d.default, VOLUME, [6, 6, 6], True),
    call(aten.upsample_bicubic2d.vec, IMAGE, None, False, [2.0, 2.0]),
    call(aten.upsample_bicubic2d.vec, IMAGE, [13, 9], True, None),
    call(aten.upsample_bicubic2d.default, IMAGE, [16, 12], False),
]  # fmt: skip

# sizes
OF_SIZES = (operator.mul, operator.add, operator.floordiv, operator.mod, torch.sym_max, torch.sym_min)
CASES += [call(aten.arange.default, call(target, SAMPLES, 2)) for target in OF_SIZES]
CASES += [
    call(aten.arange.default, call(operator.sub, 9, SAMPLES)),
    call(aten.slice.Tensor, X, 0, call(operator.neg, SAMPLES)),
]


class Everything(nn.Module):
    """All inputs and buffers, returned."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in buffers().items():
            self.register_buffer(name, tensor)

    def forward(self, *given: torch.Tensor) -> list[torch.Tensor]:
        return [each.clone() for each in (*given, *self.buffers())]


@pytest.fixture(scope="module")
def everything() -> fx.GraphModule:
    """A module whose placeholders and buffers have what torch.export says of them."""
    batch = Dim("batch")
    given = tuple(inputs(3).values())
    program = torch.export.export(Everything(), given, dynamic_shapes={"given": tuple({0: batch} for _ in given)})
    return program.module(check_guards=False)


def module_of(everything: fx.GraphModule, *cases: Call) -> tuple[fx.GraphModule, list[Call]]:
    """The cases as a captured graph is, functional, with symbolic sizes; and the case of each output."""
    known = dict(zip(inputs(1), everything.graph.find_nodes(op="placeholder"), strict=True))
    known |= {node.target: node for node in everything.graph.find_nodes(op="get_attr")}
    graph, made, called = fx.Graph(), {}, {}
    outputs, owners = [], []

    def meta(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: node.meta["val"])

    def written(value: Any) -> Any:
        if isinstance(value, Named):
            return made[value.name]
        if isinstance(value, list | tuple):
            return [written(each) for each in value]
        if not isinstance(value, Call):
            return value
        if id(value) not in called:
            node = graph.call_function(value.target, tuple(written(value.args)), value.kwargs)
            read = meta(node.args)
            size = value.target == aten.sym_size.int
            node.meta["val"] = read[0].shape[0] if size else value.target(*read, **value.kwargs)
            called[id(value)] = node
        return called[id(value)]

    def part_of(node: fx.Node, number: int) -> fx.Node:
        part = graph.call_function(operator.getitem, (node, number))
        part.meta["val"] = node.meta["val"][number]
        return part

    for name, node in known.items():
        made[name] = graph.create_node(node.op, name)
        made[name].meta["val"] = node.meta["val"]
    with known["x"].meta["val"].fake_mode, enable_python_dispatcher():  # as torch.export traces
        for case in cases:
            node = written(case)
            parts = [node]
            if isinstance(node.meta["val"], tuple | list):
                numbers = case.parts if case.parts is not None else range(len(node.meta["val"]))
                parts = [part_of(node, number) for number in numbers]
            outputs.extend(parts)
            owners.extend([case] * len(parts))
    graph.output(tuple(outputs))
    assert not known["x"].meta["val"].shape[0].node.expr.is_number  # an operator took the number of samples for fixed
    return fx.GraphModule(everything, graph), owners


def assert_computes(everything: fx.GraphModule, *cases: Call) -> None:
    """The file returns what torch does."""
    module, owners = module_of(everything, *cases)
    model = translated(Graph(module, Inputs((), {}), {}), _onnx._quantized)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for count in COUNTS:
        given = inputs(count)
        with torch.no_grad():
            wanted = module(*given.values())
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        for case, want, got in zip(owners, wanted, map(torch.from_numpy, found), strict=True):
            told = f"{case}, {count} samples: {{}}".format
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5, equal_nan=True, msg=told)


@pytest.mark.parametrize("first", range(0, len(CASES), AT_ONCE))
def test_onnxruntime_computes_what_torch_does(first, everything, monkeypatch):
    def refused(_: Any, node: fx.Node, *__: Any) -> None:
        raise AssertionError(f"{node.target} is not written by the table")

    monkeypatch.setattr(_onnx_translation, "_by_torch", refused)
    assert_computes(everything, *CASES[first : first + AT_ONCE])


#: What the table leaves to torch's own exporter, which writes that operator alone.
LEFT = [
    call(aten.lerp.Scalar, X, Y, 0.3), call(aten.adaptive_avg_pool1d.default, SIGNAL, [3]),
    call(aten.max_pool1d_with_indices.default, X, [2]), call(aten.addcmul.default, X, X, Y, value=0.1),
]  # fmt: skip


def test_other_operators_are_written_by_torch_once(everything, monkeypatch):
    made = []
    export = _onnx_translation._exported
    monkeypatch.setattr(_onnx_translation, "_exported", lambda *given: made.append(1) or export(*given))
    case = call(aten.lerp.Scalar, X, call(aten.lerp.Scalar, Y, X, 0.3), 0.3)
    assert_computes(everything, case)
    assert_computes(everything, case)
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", LEFT, ids=str)
def test_torch_writes_what_the_table_leaves(case, everything):
    assert_computes(everything, case)


def test_an_operator_that_nobody_writes_is_named(everything):
    module, _ = module_of(everything, call(aten.lgamma.default, X))
    with pytest.raises(UnsupportedModel, match=r"lgamma_default: .*aten.lgamma.default.*take another target"):
        translated(Graph(module, Inputs((), {}), {}), _onnx._quantized)


def test_every_operator_of_the_table_is_tested():
    def targets(value: Any) -> set[Any]:
        if isinstance(value, Call):
            return {value.target} | targets(value.args)
        return {target for each in value for target in targets(each)} if isinstance(value, list | tuple) else set()

    assert OPERATORS.keys() - targets(CASES) <= {operator.getitem, WHOLE}  # the other in test_recurrences.py
