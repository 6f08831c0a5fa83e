"""Every operator of the table beside onnx's own reference, which is written in numpy and shares no code with torch."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mixbit.models.load import load_model
from tests.models.onnx_files import normal, saved

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL  # noqa: E741 types by their letters


@dataclass(frozen=True)
class Case:
    """One operator: shapes of its inputs behind the batch, constants by place, attributes, number of outputs."""

    name: str
    shapes: tuple[Any, ...]
    constants: dict[int, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    kind: int = F
    positive: bool = False

    def __str__(self) -> str:
        text = ",".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.name}-{self.opset}({text}){list(self.constants)}{self.shapes}".replace(" ", "")


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def each(names: str, shapes: tuple[Any, ...], **options: Any) -> list[Case]:
    return [Case(name, shapes, **options) for name in names.split()]


IMAGE, ROWS, SEQUENCE = ((4, 7, 6),), ((5,),), ((6, 4),)
CASES = [
    *each("Neg Abs Exp Floor Ceil Round Sign Erf Sin Cos Atan Sinh Cosh Asinh Relu LeakyRelu Elu Selu Celu", ROWS),
    *each("ThresholdedRelu Shrink Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Mish Gelu Identity", ROWS),
    *each("Tan", ROWS),
    *each("Sqrt Log Reciprocal Acosh", ROWS, positive=True),
    Case("Gelu", ROWS, attributes={"approximate": "tanh"}),
    Case("HardSigmoid", ROWS, attributes={"alpha": 0.3, "beta": 0.4}),
    Case("Selu", ROWS, attributes={"alpha": 1.2, "gamma": 2.0}),
    Case("LeakyRelu", ROWS, attributes={"alpha": 0.2}),
    Case("Elu", ROWS, attributes={"alpha": 0.7}),
    Case("Celu", ROWS, attributes={"alpha": 0.7}),
    *each("Add Sub Mul Div Max Min Equal Less LessOrEqual Greater GreaterOrEqual", ((5,), (5,))),
    *each("Add Sub Mul Div Max Min Pow", ROWS, constants={1: np.float32(2)}),
    *each("Add Sub Mul Div Max Min", ROWS, constants={1: normal(5)}),
    *each("Sub Div Add Mul Max", ROWS, constants={0: np.array([3], np.float32)}, positive=True),
    *each("Add Sub Mul", ((5,), (5,)), kind=I, positive=True),
    *each("Div Mod", ROWS, constants={1: ints(-3)}, kind=I),
    *each("Div Mod", ROWS, constants={1: ints(2, 1, 3, 2, 4)}, kind=I),
    Case("Mod", ROWS, {1: np.float32(1.5)}, {"fmod": 1}),
    *each("Sum Mean", ((5,), (5,), (5,)), opset=13),
    *each("And Or Xor", ((5,), (5,)), kind=B),
    Case("Not", ROWS, kind=B),
    *each("BitwiseAnd BitwiseOr BitwiseXor", ((5,), (5,)), kind=I),
    Case("BitwiseNot", ROWS, kind=I),
    *each("IsNaN IsInf", ROWS),
    Case("Clip", ROWS, {1: np.float32(-0.5), 2: np.float32(0.5)}),
    Case("Clip", ROWS, {1: np.float32(0), 2: np.float32(6)}),
    Case("Clip", ROWS, {1: np.float32(0)}),
    Case("Clip", ROWS, attributes={"min": -0.3, "max": 0.4}, opset=7),
    Case("PRelu", IMAGE, {1: normal(4, 1, 1)}),
    Case("PRelu", IMAGE, {1: normal(1)}),
    Case("PRelu", IMAGE, {1: normal(6)}),
    Case("PRelu", ROWS, {1: np.float32(0.3)}),
    *[Case(name, SEQUENCE, attributes={"axis": axis}, opset=opset)
      for name in ("Softmax", "LogSoftmax", "Hardmax") for axis in (1, 2) for opset in (11, 13)],
    *each("Softmax LogSoftmax", SEQUENCE, opset=9),
    Case("Where", ((5,), (5,)), {0: np.array([True, False, True, False, True])}),
    Case("Cast", ROWS, attributes={"to": I}),
    Case("Cast", ROWS, attributes={"to": TensorProto.DOUBLE}),
    # shapes
    Case("Reshape", IMAGE, {1: ints(0, -1)}),
    Case("Reshape", IMAGE, {1: ints(-1, 2, 2, 42)}),
    *[Case("Flatten", IMAGE, attributes={"axis": axis}) for axis in (1, 2, 3, -1)],
    Case("Squeeze", ((1, 4, 1),), {1: ints(1, 3)}),
    Case("Squeeze", ((1, 4),), attributes={"axes": [1]}, opset=11),
    Case("Unsqueeze", ROWS, {1: ints(1, -1)}),
    Case("Unsqueeze", ROWS, attributes={"axes": [2]}, opset=11),
    Case("Transpose", IMAGE, attributes={"perm": [0, 2, 3, 1]}),
    Case("Concat", ((4, 3), (4, 2)), attributes={"axis": -1}),
    Case("Concat", ((4, 3), (2, 3)), attributes={"axis": 1}),
    Case("Split", ((6, 3),), attributes={"axis": 1}, outputs=3, opset=13),
    Case("Split", ((7, 3),), attributes={"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Split", ((6, 3),), {1: ints(1, 2, 3)}, {"axis": 1}, outputs=3),
    Case("Split", ((6, 3),), attributes={"axis": 1, "split": [2, 4]}, outputs=2, opset=11),
    Case("Slice", IMAGE, {1: ints(1, -3), 2: ints(3, 2**62), 3: ints(1, 3), 4: ints(1, 2)}),
    Case("Slice", IMAGE, {1: ints(-1), 2: ints(-(2**62)), 3: ints(2), 4: ints(-1)}),
    Case("Slice", IMAGE, {1: ints(5), 2: ints(0), 3: ints(2), 4: ints(-2)}),
    Case("Slice", IMAGE, attributes={"starts": [1], "ends": [-1], "axes": [2]}, opset=9),
    Case("Expand", ((1, 4),), {1: ints(1, 3, 1)}),
    Case("Tile", SEQUENCE, {1: ints(1, 2, 3)}),
    *[Case("Pad", IMAGE, {1: ints(0, 0, 1, 2, 0, 0, 2, 1)}, {"mode": mode}) for mode in ("reflect", "edge", "wrap")],
    Case("Pad", IMAGE, {1: ints(0, 1, 1, 2, 0, 0, 2, 1)}, {"mode": "reflect"}),
    Case("Pad", IMAGE, {1: ints(0, 0, 1, 2, 0, 0, 2, 1), 2: np.float32(1.5)}),
    Case("Pad", IMAGE, {1: ints(1, 2), 3: ints(2)}),
    Case("Pad", IMAGE, attributes={"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 2.0}, opset=9),
    Case("Gather", IMAGE, {1: ints(1, -1)}, {"axis": 2}),
    Case("Gather", IMAGE, {1: np.int64(1)}, {"axis": 1}),
    Case("Gather", IMAGE, {1: np.array([[0, 1], [2, 3]])}, {"axis": 3}),
    Case("Gather", ROWS, {0: normal(3, 8)}, kind=I),
    Case("GatherElements", ((4,), (4,)), {}, {"axis": 1}, kind=I),
    Case("GatherND", ((3, 4),), {1: np.array([[0, 1], [1, 2]])}),
    Case("OneHot", ROWS, {1: np.int64(3), 2: np.array([0, 1], np.float32)}, kind=I),
    Case("OneHot", ROWS, {1: np.int64(3), 2: np.array([2, 5], np.float32)}, {"axis": 1}, kind=I),
    *[Case("Trilu", ((4, 4),), {1: np.int64(k)}, {"upper": upper}) for k in (-1, 1) for upper in (0, 1)],
    *[Case("DepthToSpace", ((8, 3, 2),), attributes={"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")],
    Case("SpaceToDepth", ((3, 4, 6),), attributes={"blocksize": 2}),
    Case("Shape", IMAGE, attributes={"start": 1, "end": 3}),
    Case("EyeLike", ROWS, attributes={"k": 1}),
    # reductions
    *[Case(f"Reduce{name}", IMAGE, {1: ints(2, -1)}, {"keepdims": keep}, positive=True)
      for name in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
      for keep in (0, 1)],
    *[Case(f"Reduce{name}", IMAGE, attributes={"axes": [1, 2], "keepdims": 0}, opset=11)
      for name in ("Sum", "Mean", "Max", "L2")],
    *[Case(name, SEQUENCE, attributes={"axis": axis, "keepdims": keep, "select_last_index": last})
      for name in ("ArgMax", "ArgMin") for axis, keep, last in ((1, 0, 0), (-1, 1, 1))],
    Case("TopK", SEQUENCE, {1: ints(3)}, {"axis": 1}, outputs=2),
    Case("TopK", SEQUENCE, {1: ints(2)}, {"largest": 0}, outputs=2),
    *[Case("CumSum", SEQUENCE, {1: np.int64(1)}, {"exclusive": exclusive, "reverse": reverse})
      for exclusive in (0, 1) for reverse in (0, 1)],
    # layers
    Case("Conv", IMAGE, {1: normal(6, 4, 3, 3), 2: normal(6)}, {"pads": [1, 0, 1, 0], "strides": [2, 1]}),
    Case("Conv", IMAGE, {1: normal(6, 2, 3, 3)}, {"group": 2, "dilations": [2, 1]}),
    Case("Conv", IMAGE, {1: normal(6, 4, 3, 2)}, {"pads": [0, 1, 2, 0]}),
    *[Case("Conv", IMAGE, {1: normal(6, 4, 3, 2)}, {"auto_pad": pad, "strides": [2, 3]})
      for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")],
    Case("Conv", ((4, 9),), {1: normal(6, 4, 3)}, {"pads": [1, 1]}),
    Case("Conv", ((2, 5, 5, 4),), {1: normal(3, 2, 3, 2, 2)}),
    Case("ConvTranspose", IMAGE, {1: normal(4, 5, 3, 3), 2: normal(5)}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", IMAGE, {1: normal(4, 5, 3, 3)}, {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    Case("ConvTranspose", IMAGE, {1: normal(4, 3, 3, 3)}, {"strides": [2, 2], "output_padding": [1, 1], "group": 2}),
    Case("ConvTranspose", IMAGE, {1: normal(4, 5, 3, 3)}, {"strides": [2, 2], "output_shape": [14, 12]}),
    Case("ConvTranspose", IMAGE, {1: normal(4, 5, 3, 3)}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", ((4, 9),), {1: normal(4, 5, 3)}, {"dilations": [2]}),
    Case("Gemm", ROWS, {1: normal(5, 3), 2: normal(3)}),
    Case("Gemm", ROWS, {1: normal(3, 5), 2: normal(1, 3)}, {"transB": 1}),
    Case("Gemm", ROWS, {1: normal(3, 5), 2: normal(3)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ROWS, {1: normal(5, 3), 2: np.float32(0.5)}),
    Case("MatMul", SEQUENCE, {1: normal(4, 3)}),
    Case("MatMul", SEQUENCE, {0: normal(3, 6)}),
    Case("MatMul", ((2, 3, 4), (2, 4, 5))),
    Case("Einsum", ((2, 3, 4), (2, 5, 4)), attributes={"equation": "b h t c, b h s c -> b h t s"}),
    Case("BatchNormalization", IMAGE, {place: np.abs(normal(4, seed=place)) + 0.1 for place in (1, 2, 3, 4)}),
    Case("BatchNormalization", IMAGE, {place: np.abs(normal(4, seed=place)) + 0.1 for place in (1, 2, 3, 4)}, opset=9),
    Case("InstanceNormalization", IMAGE, {1: normal(4), 2: normal(4, seed=1)}),
    Case("LayerNormalization", SEQUENCE, {1: normal(4), 2: normal(4, seed=1)}),
    Case("LayerNormalization", SEQUENCE, {1: normal(6, 4)}, {"axis": 1}),
    Case("LayerNormalization", SEQUENCE, {1: normal(4)}, {"axis": 1}),
    Case("GroupNormalization", IMAGE, {1: normal(4), 2: normal(4, seed=1)}, {"num_groups": 2}, opset=21),
    Case("GroupNormalization", IMAGE, {1: normal(2), 2: normal(2, seed=1)}, {"num_groups": 2}, opset=18),
    Case("RMSNormalization", SEQUENCE, {1: normal(4)}, opset=23),
    *[Case("LpNormalization", SEQUENCE, attributes={"p": p, "axis": 1}) for p in (1, 2)],
    Case("LRN", IMAGE, attributes={"size": 3}),
    Case("Attention", ((2, 6, 4), (2, 5, 4), (2, 5, 4)), opset=23),
    Case("Attention", ((4, 6, 4), (2, 6, 4), (2, 6, 4)), attributes={"is_causal": 1}, opset=23),
    Case("Attention", ((6, 8), (5, 8), (5, 8)), attributes={"q_num_heads": 2, "kv_num_heads": 2}, opset=23),
    # pools
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [2, 3], "strides": [2, 2]}),
    Case("MaxPool", IMAGE, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    Case("MaxPool", IMAGE, attributes={"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("MaxPool", ((4, 9),), attributes={"kernel_shape": [3], "dilations": [2]}),
    *[Case(name, IMAGE, {}, {"kernel_shape": [3, 3], "pads": pads, "strides": [3, 3], "ceil_mode": 1})
      for name in ("MaxPool", "AveragePool") for pads in ([1, 0, 0, 1], [2, 1, 2, 1])],
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [2, 3], "strides": [2, 2]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}),
    Case("AveragePool", IMAGE, attributes={"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    *each("GlobalAveragePool GlobalMaxPool", IMAGE),
    Case("MeanVarianceNormalization", IMAGE, attributes={"axes": [1, 2, 3]}),
    Case("GlobalAveragePool", ((4, 9),)),
    *[Case("Resize", IMAGE, {2: np.array([1, 1, 2, 1.5], np.float32)},
           {"mode": mode, "coordinate_transformation_mode": at, "nearest_mode": near})
      for mode, at, near in (
          ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
          ("nearest", "half_pixel", "round_prefer_ceil"), ("nearest", "align_corners", "round_prefer_ceil"),
          ("linear", "half_pixel", "floor"), ("linear", "asymmetric", "floor"), ("linear", "align_corners", "floor"),
          ("linear", "pytorch_half_pixel", "floor"), ("cubic", "half_pixel", "floor"),
      )],
    *[Case("Resize", IMAGE, {2: np.array([1, 1, 1 / 7, 1.5], np.float32)},
           {"mode": mode, "coordinate_transformation_mode": at, "nearest_mode": near})
      for mode, at, near in (
          ("nearest", "half_pixel", "floor"), ("nearest", "pytorch_half_pixel", "round_prefer_ceil"),
          ("nearest", "half_pixel_symmetric", "floor"), ("linear", "pytorch_half_pixel", "floor"),
      )],
    Case("Upsample", IMAGE, {1: np.array([1, 1, 2, 2], np.float32)}, opset=9),
    *[Case("GridSample", ((3, 5, 6), (4, 4, 2)), attributes={"padding_mode": pad, "align_corners": aligned})
      for pad in ("zeros", "border", "reflection") for aligned in (0, 1)],
]  # fmt: skip


def made(case: Case, rows: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of the case by name."""
    generator, inputs = np.random.default_rng(seed), {}
    for number, shape in enumerate(case.shapes):
        size = (rows, *shape)
        if case.kind == F:
            value = generator.standard_normal(size).astype(np.float32)
            value = np.abs(value) + 1.1 if case.positive else value
        elif case.kind == I:
            value = generator.integers(1 if case.positive else 0, 3, size)
        else:
            value = generator.integers(0, 2, size).astype(bool)
        inputs[f"x{number}"] = value
    return inputs


def file_of(case: Case, path: Any) -> Any:
    """The file of that one operator."""
    names = iter([f"x{number}" for number in range(len(case.shapes))])
    count = len(case.shapes) + len(case.constants)
    last = max([count - 1, *case.constants])
    places = [f"c{place}" if place in case.constants else next(names, "") for place in range(last + 1)]
    outputs = [f"y{number}" for number in range(case.outputs)]
    node = helper.make_node(case.name, places, outputs, "node", **case.attributes)
    shapes = {f"x{number}": ["batch", *shape] for number, shape in enumerate(case.shapes)}
    constants = {f"c{place}": value for place, value in case.constants.items()}
    kinds = dict.fromkeys(shapes, case.kind)
    return saved(path, [node], shapes, outputs, constants, opset=case.opset, kinds=kinds)


def assert_same(got: Any, want: Any) -> None:
    want = np.asarray(want)
    assert tuple(got.shape) == want.shape
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=2e-4, atol=2e-5)
    assert got.is_floating_point() == (want.dtype.kind == "f")


#: Operators that onnx's reference computes otherwise than the standard says, or not at all; before an opset, or ever.
REFERENCE_LACKS = dict.fromkeys(
    ("Upsample", "GridSample", "Attention", "Resize", "MaxPool", "AveragePool", "LpNormalization", "ConvTranspose"), 99
) | {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "BatchNormalization": 14}  # fmt: skip


#: Two of three are left to `make slow`.
GATED = [case if number % 3 == 0 else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", GATED, ids=str)
def test_operator_is_that_of_the_standard(case, tmp_path):
    path = file_of(case, tmp_path / "net.onnx")
    module = load_model(str(path)).module  # which compares with onnxruntime
    inputs = made(case, 4)
    got = list(module(*map(torch.from_numpy, inputs.values())).values())
    if case.opset < REFERENCE_LACKS.get(case.name, 0):
        import onnxruntime

        want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    else:
        want = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
    assert len(got) == case.outputs
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
    if any(case is first for first in FIRST):
        program = torch.export.export(
            module, tuple(map(torch.from_numpy, inputs.values())), dynamic_shapes=_free(inputs)
        )
        more = made(case, 7, seed=1)
        given = tuple(map(torch.from_numpy, more.values()))
        for a, b in zip(program.module()(*given).values(), module(*given).values(), strict=True):
            assert torch.equal(a, b)


def _free(inputs: dict[str, Any]) -> tuple[dict[int, Any], ...]:
    return tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)


#: One case of each operator whose shapes matter: torch.export follows it with a batch of any size.
FIRST = [
    next(case for case in CASES if case.name == name)
    for name in {case.name: None for case in CASES if case.shapes not in (ROWS, ((5,), (5,)))}
]


def test_table_is_covered():
    from mixbit.models._onnx_operators import OPERATORS

    untested = {
        "CastLike", "ConstantOfShape", "Dropout", "Range", "Size", "SequenceConstruct", "SplitToSequence", "SequenceAt",
        "ConcatFromSequence", "Scatter", "ScatterElements", "ScatterND", "LSTM", "GRU", "RNN", "Asin", "Acos", "Atanh",
        "Swish", "LpPool", "GlobalLpPool",
    }  # fmt: skip # these have tests of their own below, or in other files
    assert {case.name for case in CASES} | untested == set(OPERATORS)


@settings(max_examples=25)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    groups=st.sampled_from([1, 2]),
)
def test_convolutions_of_any_form(kernel, strides, dilations, pads, groups, tmp_path_factory):
    weight = normal(4, 4 // groups, *kernel)
    options = {"strides": strides, "dilations": dilations, "pads": pads, "group": groups}
    assert_standard(Case("Conv", IMAGE, {1: weight, 2: normal(4)}, options), tmp_path_factory.mktemp("net"))


@settings(max_examples=25)
@given(
    starts=st.integers(-9, 9),
    ends=st.integers(-9, 9),
    step=st.sampled_from([-3, -2, -1, 1, 2, 3]),
    axis=st.sampled_from([1, -1]),
)
def test_slices_of_any_form(starts, ends, step, axis, tmp_path_factory):
    case = Case("Slice", IMAGE, {1: ints(starts), 2: ints(ends), 3: ints(axis), 4: ints(step)})
    if range(*slice(starts, ends, step).indices((4, 7, 6)[axis - 1 if axis > 0 else axis])):
        assert_standard(case, tmp_path_factory.mktemp("net"))


def assert_standard(case: Case, folder: Any) -> None:
    path, inputs = file_of(case, folder / "net.onnx"), made(case, 3)
    got = load_model(str(path)).module(*map(torch.from_numpy, inputs.values()))["y0"]
    assert_same(got, ReferenceEvaluator(onnx.load(path)).run(None, inputs)[0])
