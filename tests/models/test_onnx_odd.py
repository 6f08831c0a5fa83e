"""ONNX files that are odd and legal: each is read as onnxruntime runs it, or refused; never as something else."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import mixbit as mb
from mixbit.core import UnsupportedModel
from mixbit.models.load import load_model
from tests.models.onnx_files import assert_same_for, normal, ran, saved, small_network

make = helper.make_node


def inner(nodes, outputs, inputs=(), stored=()):
    """The graph of a branch or a loop."""
    return helper.make_graph(
        nodes, "inner", [helper.make_tensor_value_info(*each) for each in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in dict(stored).items()],
    )  # fmt: skip


def refused(path, *texts):
    with pytest.raises(UnsupportedModel) as caught:
        load_model(str(path))
    for text in texts:
        assert text in str(caught.value)


# what the comparison with onnxruntime must see


def branch_of_size(tmp_path, axis, limit):
    """Takes one branch where that size is above the limit."""
    nodes = [
        make("Shape", ["x"], ["s"], start=axis, end=axis + 1),
        make("Squeeze", ["s"], ["size"]),
        make("Greater", ["size", "limit"], ["large"]),
        make("If", ["large"], ["y"], "which", then_branch=inner([make("Neg", ["x"], ["t"])], ["t"]),
             else_branch=inner([make("Relu", ["x"], ["e"])], ["e"])),
    ]  # fmt: skip
    return saved(tmp_path / "net.onnx", nodes, {"x": ["n", "time"]}, ["y"], {"limit": np.int64(limit)})


@pytest.mark.parametrize("limit", [2, 20, 200])
def test_branch_that_depends_on_a_free_size_is_refused(tmp_path, limit):
    refused(branch_of_size(tmp_path, 1, limit), "'which' (If)", "may depend on sizes")


def test_branch_that_depends_on_the_number_of_samples_is_refused(tmp_path):
    refused(branch_of_size(tmp_path, 0, 1), "'x' [1, 32]", "'which' (If)")


def test_branch_that_no_size_changes_is_taken(tmp_path):
    assert_same_for(branch_of_size(tmp_path, 1, 0), {"x": normal(3, 5)})


def test_small_numbers_beside_large_ones_are_compared(tmp_path, monkeypatch):
    from mixbit.models import _onnx_operators

    nodes = [
        make("Mul", ["x", "pixels"], ["boxes"], "boxes"), make("Sigmoid", ["x"], ["scores"], "scores"),
        make("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {"pixels": np.float32(640)})
    assert_same_for(path, {"x": normal(3, 4)})
    monkeypatch.setitem(_onnx_operators.OPERATORS, "Sigmoid", lambda x: torch.sigmoid(x) + 0.1)
    refused(path, "'scores'")


def test_outputs_without_a_finite_number_prove_nothing(tmp_path):
    nodes = [make("Sub", ["x", "far"], ["a"]), make("Log", ["a"], ["y"])]
    refused(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {"far": np.float32(100)}), "no finite number")


def test_numbers_that_only_positive_inputs_give_are_compared(tmp_path, monkeypatch):
    from mixbit.models import _onnx_operators

    nodes = [make("Log", ["x"], ["a"]), make("ReduceMin", ["a", "axes"], ["y"], keepdims=0)]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 40]}, ["y"], {"axes": np.array([1])})
    assert_same_for(path, {"x": np.abs(normal(3, 40)) + 1})
    monkeypatch.setitem(_onnx_operators.OPERATORS, "Log", lambda x: torch.log(x) * 1.1)
    refused(path, "differs from onnxruntime's")


def test_one_sample_of_a_file_for_several_is_compared(tmp_path):
    """The mean over all samples of three, twice, is what two batches of three make; one sample alone is not."""
    nodes = [
        make("Reshape", ["x", "groups"], ["g"]), make("ReduceMean", ["g", "axes"], ["m"], keepdims=1),
        make("Sub", ["g", "m"], ["d"]), make("Reshape", ["d", "back"], ["y"]),
    ]  # fmt: skip
    constants = {"groups": np.array([-1, 3, 4]), "axes": np.array([1]), "back": np.array([-1, 4])}
    refused(saved(tmp_path / "net.onnx", nodes, {"x": [3, 4]}, ["y"], constants), "samples touch one another")


def test_difference_is_told_where_tensors_of_a_loop_cannot_be_read(tmp_path, monkeypatch):
    from mixbit.models import _onnx_operators

    nodes = [loop([make("Identity", ["go"], ["go2"]), make("Relu", ["h"], ["h2"])])]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {"three": np.int64(3)})
    monkeypatch.setitem(_onnx_operators.OPERATORS, "Relu", lambda x: torch.relu(x) + 1)
    refused(path, "'y' differs from onnxruntime's")


# branches and loops


def loop(nodes, start="x"):
    """Three rounds that carry h; i is the number of the round."""
    carried = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("h", TensorProto.FLOAT, None)]
    return make("Loop", ["three", "", start], ["y"], "loop", body=inner(nodes, ["go2", "h2"], carried))


def test_branches_may_call_their_weights_alike(tmp_path):
    nodes = [
        make("If", ["yes"], [name], name,
             then_branch=inner([make("MatMul", ["x", "w"], ["t"])], ["t"], stored={"w": w}),
             else_branch=inner([make("Identity", ["x"], ["e"])], ["e"]))
        for name, w in (("a", normal(5, 3, seed=1)), ("b", normal(5, 3, seed=2)))
    ]  # fmt: skip
    nodes.append(make("Concat", ["a", "b"], ["y"], axis=1))
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 5]}, ["y"], {"yes": np.array(True)})
    module = assert_same_for(path, {"x": normal(3, 5)})
    assert [layer.name for layer in mb.capture(module, {"x": torch.randn(2, 5)}).layers] == ["w", "w_2"]


def test_constants_that_differ_from_round_to_round(tmp_path):
    nodes = [loop([
        make("Identity", ["go"], ["go2"]), make("Cast", ["i"], ["f"], to=1), make("Cast", ["c"], ["cf"], to=1),
        make("Mul", ["cf", "f"], ["ci"]), make("Add", ["h", "ci"], ["h2"]),
    ])]  # fmt: skip
    constants = {"three": np.int64(3), "c": np.arange(80)}
    assert_same_for(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 80]}, ["y"], constants), {"x": normal(3, 80)})


def test_product_before_a_loop_that_adds_a_bias_in_each_round(tmp_path):
    nodes = [
        make("MatMul", ["x", "w"], ["m"]),
        loop(
            [make("Identity", ["go"], ["go2"]), make("Add", ["m", "b"], ["a"]), make("Mul", ["h", "a"], ["h2"])], "m0"
        ),
    ]
    nodes.insert(1, make("MatMul", ["x", "w0"], ["m0"]))
    constants = {"three": np.int64(3), "w": normal(5, 3), "w0": normal(5, 3, seed=1), "b": normal(3)}
    assert_same_for(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 5]}, ["y"], constants), {"x": normal(3, 5)})


# names


@pytest.mark.parametrize("name", ["self", "torch", "input.1", "x y", "1", "class", "a/b:0", "None", "*x", "\u00e9"])
def test_inputs_of_any_name_are_called_as_the_example_says(tmp_path, name):
    path = saved(
        tmp_path / "net.onnx", [make("MatMul", [name, "w"], ["y"])], {name: ["n", 5]}, ["y"], {"w": normal(5, 3)}
    )
    loaded, x = load_model(str(path)), normal(3, 5)
    (called,) = loaded.example
    got = loaded.module(**{called: torch.from_numpy(x)})["y"]
    np.testing.assert_allclose(got.detach(), ran(path, {name: x})["y"], rtol=1e-4, atol=1e-5)
    assert mb.capture(loaded.module, {called: torch.randn(2, 5)}).layers[0].name == "w"


# types


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.int64])
@pytest.mark.parametrize("name", ["Add", "Sub", "Mul", "Max", "Mod"])
def test_integers_keep_their_type_beside_constants(tmp_path, name, kind):
    constants, x = {"c": np.array([1, 2, 3, 1, 2], kind)}, np.array([[0, 1, 2, 3, 120], [5, 1, 0, 2, 100]], kind)
    kinds = {"x": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    path = saved(tmp_path / "net.onnx", [make(name, ["x", "c"], ["y"])], {"x": ["n", 5]}, ["y"], constants, kinds=kinds)
    got = load_model(str(path)).module(torch.from_numpy(x))["y"].numpy()
    want = ran(path, {"x": x})["y"]
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["ReduceSum", "ReduceProd"])
def test_sums_of_integers_keep_their_type(tmp_path, name):
    kinds, x = {"x": TensorProto.INT32}, np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    nodes = [make(name, ["x", "axes"], ["y"])]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 3]}, ["y"], {"axes": np.array([1])}, kinds=kinds)
    got = load_model(str(path)).module(torch.from_numpy(x))["y"].numpy()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, ran(path, {"x": x})["y"])


CONSTANTS = {
    "split of a matrix": ([make("Split", ["c", "parts"], ["rest", "z"], axis=1)], {"parts": np.array([1, 2])}),
    "shape with a zero": ([make("Reshape", ["c", "shape"], ["z"])], {"shape": np.array([0, 3, 1])}),
    "cast that goes round": ([make("Add", ["c", "many"], ["m"]), make("Cast", ["m"], ["z"], to=TensorProto.UINT8)],
                             {"many": np.int64(300)}),
    "remainder": ([make("Mod", ["c", "three"], ["z"], fmod=1)], {"three": np.int64(-3)}),
    "power": ([make("Pow", ["c", "half"], ["z"])], {"half": np.float32(0.5)}),
    "cast like": ([make("Cast", ["c"], ["f"], to=1), make("Mul", ["f", "half"], ["h"]),
                   make("CastLike", ["h", "c"], ["z"])], {"half": np.float32(0.5)}),
    "product of no sizes": ([make("Shape", ["c"], ["s"], start=2), make("ReduceProd", ["s"], ["z"], keepdims=1)], {}),
    "largest of one": ([make("ReduceMax", ["seven"], ["z"], keepdims=0)], {"seven": np.int64(7)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_numbers_that_a_file_computes(tmp_path, name):
    """What is computed of constants becomes the shape of a tensor's values."""
    nodes, constants = CONSTANTS[name]
    nodes = [*nodes, make("Cast", ["z"], ["last"], to=1), make("ReduceSum", ["last"], ["total"], keepdims=0),
             make("Mul", ["x", "total"], ["y"])]  # fmt: skip
    constants = {"c": np.array([[1, 2, 3], [4, 5, 6]]), **constants}
    assert_same_for(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 3]}, ["y"], constants), {"x": normal(3, 3)})


def test_negative_places_that_the_network_computes(tmp_path):
    nodes = [
        make("GatherElements", ["x", "at"], ["a"], axis=1),
        make("ScatterElements", ["x", "at", "a"], ["y"], axis=1),
    ]
    path = saved(
        tmp_path / "net.onnx", nodes, {"x": ["n", 4], "at": ["n", 1]}, ["y"], {}, kinds={"at": TensorProto.INT64}
    )
    assert_same_for(path, {"x": normal(3, 4), "at": np.array([[-1], [0], [-4]])})


@pytest.mark.parametrize("name", ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean", "ReduceLogSumExp"])
def test_reduction_of_no_axes(tmp_path, name):
    nodes = [make(name, ["x"], ["y"], noop_with_empty_axes=1)]
    assert_same_for(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {}), {"x": normal(3, 4)})


def test_infinities_of_no_sign(tmp_path):
    nodes = [make("Div", ["x", "zero"], ["d"]), make("IsInf", ["d"], ["b"], detect_negative=0, detect_positive=0),
             make("Cast", ["b"], ["y"], to=1)]  # fmt: skip
    assert_same_for(
        saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {"zero": np.float32(0)}), {"x": normal(3, 4)}
    )


# what torch has no tensor for


@pytest.mark.parametrize(
    ("kind", "values"),
    [(TensorProto.STRING, [b"a"]), (TensorProto.INT4, [1, 2]), (TensorProto.FLOAT8E4M3FN, [1.0, 2.0])],
)
def test_constants_of_other_types(tmp_path, kind, values):
    model = onnx.load(small_network(tmp_path / "net.onnx", opset=21))
    model.graph.initializer.append(helper.make_tensor("odd", kind, [len(values)], values))
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    assert_same_for(path, {"image": normal(2, 3, 8, 8)})  # nothing reads it
    model.graph.node.append(make("Identity", ["odd"], ["same"], "same"))
    path.write_bytes(model.SerializeToString())
    refused(path, "'odd'", f"of type {TensorProto.DataType.Name(kind)}")


def test_sparse_weights_and_sequences_are_named(tmp_path):
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [0, 4]), [5, 3],
    )  # fmt: skip
    model = onnx.load(saved(tmp_path / "net.onnx", [make("MatMul", ["x", "w"], ["y"])], {"x": ["n", 5]}, ["y"], {}))
    model.graph.sparse_initializer.append(sparse)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "net.onnx", "'w' is stored as a sparse tensor")
    nodes = [make("SplitToSequence", ["x"], ["parts"], axis=1)]
    refused(saved(tmp_path / "net.onnx", nodes, {"x": ["n", 5]}, ["parts"], {}), "'parts' is a sequence")
