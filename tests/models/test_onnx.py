"""ONNX files as MODEL: what becomes of whole files, of one batch size too, and what is refused."""

import os
import re
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import mixbit as mb
from mixbit.core import InvalidInput, UnsupportedModel, split_batches
from mixbit.datasets.load import load_data
from mixbit.graph import returned_by
from mixbit.graph.capture import capture_all
from mixbit.models._onnx_names import clean_name, free_name, identifier
from mixbit.models.load import load_model
from tests.models.onnx_files import assert_same_for, normal, ran, saved, small_network

make = helper.make_node


def assert_refused(path, *texts, error=UnsupportedModel):
    with pytest.raises(error) as caught:
        load_model(str(path))
    for text in texts:
        assert text in str(caught.value)


# whole files


@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_network_has_the_files_names_and_folds_its_batch_norm(tmp_path, opset):
    path = small_network(tmp_path / "net.onnx", opset=opset)
    loaded = load_model(str(path))
    assert {name for name, _ in loaded.module.named_parameters()} == {
        "conv1.weight", "bn.weight", "bn.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert loaded.example["image"].shape[1:] == (3, 8, 8)
    graph = mb.capture(loaded.module, loaded.example)
    assert [layer.name for layer in graph.layers] == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert not any("batch_norm" in str(node.target) for node in graph.module.graph.nodes)
    image = normal(5, 3, 8, 8, seed=3)
    np.testing.assert_allclose(
        graph(image=torch.from_numpy(image))["logits"].detach().numpy(),
        ran(path, {"image": image})["logits"],
        rtol=1e-3,
        atol=1e-4,
    )


def test_products_are_linear_layers_with_their_biases(tmp_path):
    constants = {
        "onnx::MatMul_12": normal(6, 4), "b1": normal(4), "tied": normal(10, 4), "model/dense/kernel:0": normal(4, 3),
        "c": normal(3, 3), "c2": normal(1, 3),
    }  # fmt: skip
    nodes = [
        make("MatMul", ["x", "onnx::MatMul_12"], ["a"], "/encoder/query/MatMul"),
        make("Add", ["b1", "a"], ["b"], "/encoder/query/Add"),
        make("Transpose", ["tied"], ["turned"], "t", perm=[1, 0]),
        make("MatMul", ["b", "turned"], ["scores"], "scores"),
        make("MatMul", ["b", "model/dense/kernel:0"], ["d"], "dense"),
        make("Gemm", ["d", "c", "c2"], ["e"], "gemm", alpha=0.5),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["batch", 6]}, ["scores", "e"], constants)
    module = assert_same_for(path, {"x": normal(3, 6)})
    graph = mb.capture(module, {"x": torch.randn(4, 6)})
    assert [layer.name for layer in graph.layers] == ["encoder.query.weight", "tied", "model.dense.kernel", "c"]
    assert [tuple(layer.shape) for layer in graph.layers] == [(4, 6), (10, 4), (3, 4), (3, 3)]
    assert [layer.operations[0].takes_bias for layer in graph.layers[:2]] == [True, True]


def test_channels_last_file_of_tensorflow(tmp_path):
    kernel = "StatefulPartitionedCall/net/conv/Conv2D/ReadVariableOp:0"
    nodes = [
        make("Transpose", ["images:0"], ["a"], "net/conv/Conv2D__6", perm=[0, 3, 1, 2]),
        make("Conv", ["a", kernel], ["b"], "net/conv/Conv2D", auto_pad="SAME_UPPER", strides=[2, 2]),
        make("Add", ["b", "net/conv/BiasAdd/ReadVariableOp:0"], ["c"], "net/conv/BiasAdd"),
        make("Clip", ["c", "zero", "six"], ["d"], "net/relu6"),
        make("Transpose", ["d"], ["e"], "net/back", perm=[0, 2, 3, 1]),
        make("ReduceMean", ["e"], ["Identity:0"], "net/mean", axes=[1, 2], keepdims=0),
    ]
    constants = {
        kernel: normal(4, 3, 3, 3), "net/conv/BiasAdd/ReadVariableOp:0": normal(1, 4, 1, 1),
        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"images:0": ["n", 7, 7, 3]}, ["Identity:0"], constants, opset=13)
    loaded = load_model(str(path))
    image = normal(3, 7, 7, 3)
    got = loaded.module(images=torch.from_numpy(image))["Identity:0"]
    np.testing.assert_allclose(got.detach().numpy(), ran(path, {"images:0": image})["Identity:0"], rtol=1e-4, atol=1e-5)
    graph = mb.capture(loaded.module, torch.from_numpy(image))
    assert [layer.name for layer in graph.layers] == ["net.conv.Conv2D"]


def test_sizes_computed_in_the_file_follow_the_batch_and_the_length(tmp_path):
    nodes = [
        make("Shape", ["x"], ["shape"], "shape"),
        make("Gather", ["shape", "zero"], ["n"], "n"),
        make("Gather", ["shape", "one"], ["t"], "t"),
        make("Unsqueeze", ["n", "axes"], ["n1"], "n1"),
        make("Unsqueeze", ["t", "axes"], ["t1"], "t1"),
        make("Concat", ["n1", "t1", "heads"], ["split"], "split", axis=0),
        make("Reshape", ["x", "split"], ["y"], "reshape"),
        make("Range", ["zero", "t", "one"], ["places"], "range"),
        make("Cast", ["places"], ["at"], "cast", to=TensorProto.FLOAT),
        make("Unsqueeze", ["at", "back"], ["at2"], "at2"),
        make("Add", ["y", "at2"], ["z"], "add"),
        make("Concat", ["n1", "t1"], ["two"], "two", axis=0),
        make("ConstantOfShape", ["two"], ["ones"], "ones", value=numpy_helper.from_array(np.array([1.5], np.float32))),
        make("ReduceSum", ["z", "sums"], ["s"], "sum", keepdims=0),
        make("Mul", ["s", "ones"], ["out"], "mul"),
    ]
    constants = {
        "zero": np.int64(0), "one": np.int64(1), "axes": np.array([0]), "heads": np.array([2, 3]),
        "back": np.array([1, 2]), "sums": np.array([2, 3]),
    }  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["batch", "time", 6]}, ["out"], constants)
    module = assert_same_for(path, {"x": normal(3, 5, 6)})
    assert load_model(str(path)).example is None  # the file tells no length
    graph = mb.capture(module, {"x": torch.randn(4, 8, 6)}, {"x": [1]})
    x = normal(2, 11, 6)
    np.testing.assert_allclose(
        graph(x=torch.from_numpy(x))["out"].detach(), ran(path, {"x": x})["out"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scattered_numbers(tmp_path, reduction):
    nodes = [
        make("ScatterElements", ["x", "places", "values"], ["a"], "elements", axis=1, reduction=reduction),
        make("ScatterND", ["b", "nd", "updates"], ["c"], "nd", reduction=reduction),
        make("MatMul", ["a", "c"], ["y"], "product"),
    ]
    constants = {
        "b": normal(4, 3), "nd": np.array([[0], [2]]), "updates": normal(2, 3, seed=2),
    }  # fmt: skip
    inputs = {"x": ["n", 4], "places": ["n", 2], "values": ["n", 2]}
    path = saved(tmp_path / "net.onnx", nodes, inputs, ["y"], constants, kinds={"places": TensorProto.INT64})
    places = np.array([[0, 1], [3, 2], [1, 0]])
    assert_same_for(path, {"x": normal(3, 4), "places": places, "values": normal(3, 2, seed=1)})


def test_remaining_operators(tmp_path):
    nodes = [
        make("Size", ["x"], ["size"], "size"),
        make("Cast", ["size"], ["size_"], "cast", to=TensorProto.FLOAT),
        make("Div", ["x", "size_"], ["a"], "div"),
        make("Dropout", ["a"], ["b"], "dropout"),
        make("CastLike", ["b", "x"], ["c"], "like"),
        *[make(name, ["c"], [name], name) for name in ("Asin", "Acos", "Atanh")],
        make("Sum", ["Asin", "Acos", "Atanh"], ["d"], "sum"),
        make("SplitToSequence", ["d", "two"], ["parts"], "split", axis=1),
        make("SequenceAt", ["parts", "at"], ["last"], "last"),
        make("SequenceConstruct", ["last", "d"], ["both"], "both"),
        make("ConcatFromSequence", ["both"], ["e"], "join", axis=1),
        make("LpPool", ["e"], ["g"], "pool", kernel_shape=[2, 2], p=2),
        make("GlobalLpPool", ["g"], ["y"], "all", p=2),
    ]
    constants = {"two": np.int64(2), "at": np.int64(-1)}
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4, 5, 5]}, ["y"], constants)
    assert_same_for(path, {"x": normal(3, 4, 5, 5) * 0.1})


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_torchs_own(tmp_path, kind, both):
    gates, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if both else 1
    constants = {
        "w": normal(directions, gates * 5, 3) * 0.4, "r": normal(directions, gates * 5, 5, seed=1) * 0.4,
        "b": normal(directions, gates * 10, seed=2) * 0.4, "back": np.array([0, 0, -1]),
    }  # fmt: skip
    options = {"hidden_size": 5, "direction": "bidirectional" if both else "forward"}
    options |= {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        make("Transpose", ["x"], ["steps"], "t", perm=[1, 0, 2]),
        make(kind, ["steps", "w", "r", "b"], ["all", "last"], "/encoder/lstm/LSTM", **options),
        make("Transpose", ["all"], ["y1"], "t2", perm=[2, 0, 1, 3]),
        make("Reshape", ["y1", "back"], ["y"], "join"),
        make("Transpose", ["last"], ["h"], "t3", perm=[1, 0, 2]),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 6, 3]}, ["y", "h"], constants)
    module = assert_same_for(path, {"x": normal(4, 6, 3)})
    names = {name for name, _ in module.named_parameters()}
    assert names >= {"encoder.lstm.weight_ih_l0", "encoder.lstm.weight_hh_l0", "encoder.lstm.bias_ih_l0"}
    assert ("encoder.lstm.weight_hh_l0_reverse" in names) == both
    layers = {layer.name for layer in mb.capture(module, {"x": torch.randn(4, 6, 3)}).layers}
    assert len(layers) == 2 * directions


SPELT = {
    "silu": [make("Sigmoid", ["x"], ["s"], "s"), make("Mul", ["x", "s"], ["y"], "m")],
    "gelu": [
        make("Div", ["x", "root"], ["a"], "a"), make("Erf", ["a"], ["b"], "b"), make("Add", ["b", "one"], ["c"], "c"),
        make("Mul", ["x", "c"], ["d"], "d"), make("Mul", ["d", "half"], ["y"], "y"),
    ],
    "gelu.default": [
        make("Pow", ["x", "three"], ["a"], "a"), make("Mul", ["a", "small"], ["b"], "b"),
        make("Add", ["x", "b"], ["c"], "c"), make("Mul", ["c", "pi"], ["d"], "d"), make("Tanh", ["d"], ["e"], "e"),
        make("Add", ["e", "one"], ["f"], "f"), make("Mul", ["half", "x"], ["g"], "g"),
        make("Mul", ["g", "f"], ["y"], "y"),
    ],
    "hardswish": [
        make("HardSigmoid", ["x"], ["s"], "s", alpha=1 / 6, beta=0.5), make("Mul", ["s", "x"], ["y"], "m"),
    ],
    "mish": [
        make("Softplus", ["x"], ["a"], "a"), make("Tanh", ["a"], ["b"], "b"), make("Mul", ["x", "b"], ["y"], "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SPELT)
def test_functions_that_a_file_spells_out_are_one(tmp_path, name):
    constants = {
        "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "three": np.float32(3),
        "small": np.float32(0.044715), "pi": np.float32((2 / np.pi) ** 0.5),
    }  # fmt: skip
    path = saved(tmp_path / "net.onnx", SPELT[name], {"x": ["n", 5]}, ["y"], constants)
    module = assert_same_for(path, {"x": normal(4, 5) * 3})
    nodes = [
        node for node in torch.export.export(module, (torch.randn(2, 5),)).graph.nodes if node.op == "call_function"
    ]
    assert len(nodes) == 1
    assert name in str(nodes[0].target)


def test_function_with_another_factor_stays_spelt_out(tmp_path):
    constants = {"root": np.float32(1.5), "one": np.float32(1), "half": np.float32(0.5)}
    path = saved(tmp_path / "net.onnx", SPELT["gelu"], {"x": ["n", 5]}, ["y"], constants)
    module = assert_same_for(path, {"x": normal(4, 5) * 3})
    assert len(module.graph.nodes) > 3


# one batch size


def test_file_of_one_sample_takes_any_number(tmp_path):
    """Reshape, a token that all samples share, Resize and the state of an LSTM hold the batch size in constants."""
    constants = {
        "flat": np.array([1, 4, 16]), "token": normal(1, 4, 1), "rows": np.array([17, 4]), "w": normal(4, 3),
        "again": np.array([1, 17, 3]), "lw": normal(1, 8, 3), "lr": normal(1, 8, 2),
        "state": np.zeros((1, 1, 2), np.float32),
        "sizes": np.array([1, 4, 4, 4]), "end": np.array([1, -1]), "first": np.array([0]), "last": np.array([1]),
    }  # fmt: skip
    nodes = [
        make("Resize", ["x", "", "", "sizes"], ["big"], "resize", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        make("Reshape", ["big", "flat"], ["a"], "flatten"),
        make("Concat", ["token", "a"], ["b"], "concat", axis=2),
        make("Transpose", ["b"], ["c"], "turn", perm=[0, 2, 1]),
        make("Reshape", ["c", "rows"], ["d"], "rows"),
        make("MatMul", ["d", "w"], ["e"], "product"),
        make("Reshape", ["e", "again"], ["f"], "again"),
        make("Slice", ["f", "first", "last", "first"], ["f1"], "slice"),
        make("Transpose", ["f1"], ["g"], "steps", perm=[1, 0, 2]),
        make("LSTM", ["g", "lw", "lr", "", "", "state", "state"], ["h"], "lstm", hidden_size=2),
        make("Transpose", ["h"], ["i"], "samples", perm=[2, 0, 1, 3]),
        make("Reshape", ["i", "end"], ["y"], "end"),
    ]  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"x": [1, 4, 2, 2]}, ["y"], constants)
    module = assert_same_for(path, {"x": normal(5, 4, 2, 2)}, one_by_one=True)
    graph = mb.capture(module, load_model(str(path)).example)
    assert graph(torch.randn(3, 4, 2, 2))["y"].shape == (3, 34)


def test_file_of_eight_samples_takes_any_number(tmp_path):
    constants = {
        "shape": np.array([8, 6]),
        "token": np.ones((1, 6), np.float32),
        "many": np.array([8, 6]),
        "w": normal(12, 3),
    }
    nodes = [
        make("Reshape", ["x", "shape"], ["a"], "flatten"),
        make("Expand", ["token", "many"], ["tokens"], "expand"),
        make("Concat", ["a", "tokens"], ["b"], "concat", axis=1),
        make("MatMul", ["b", "w"], ["y"], "product"),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"x": [8, 2, 3]}, ["y"], constants)
    module, x = load_model(str(path)).module, normal(16, 2, 3)
    want = np.concatenate([ran(path, {"x": part})["y"] for part in (x[:8], x[8:])])
    np.testing.assert_allclose(module(torch.from_numpy(x))["y"].detach().numpy(), want, rtol=1e-4, atol=1e-5)
    assert module(torch.from_numpy(x[:3]))["y"].shape == (3, 3)


def test_samples_that_touch_one_another_are_refused(tmp_path):
    nodes = [make("Softmax", ["x"], ["y"], "mix", axis=0)]
    path = saved(tmp_path / "net.onnx", nodes, {"x": [4, 6]}, ["y"], {})
    assert_refused(path, "'y'", "samples touch one another", "batch of any size")


def test_batch_that_cannot_be_freed_is_refused_by_its_node(tmp_path):
    nodes = [
        make("Squeeze", ["x", "axis"], ["a"], "drop"),
        make("Relu", ["a"], ["b"], "r"),
        make("Unsqueeze", ["b", "axis"], ["y"], "u"),
    ]
    path = saved(tmp_path / "net.onnx", nodes, {"x": [1, 6]}, ["y"], {"axis": np.array([0])})
    assert_refused(path, "'y'", "batch of any size")


# structure


def branches(condition):
    then = helper.make_graph([make("Relu", ["x"], ["t"], "relu")], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([make("Neg", ["x"], ["e"], "neg")], "else", [], [onnx.ValueInfoProto(name="e")])
    return make("If", [condition], ["y"], "if", then_branch=then, else_branch=other)


def test_branch_of_a_constant_or_a_shape_is_taken(tmp_path):
    for value, constants, nodes in (
        ("flag", {"flag": np.array(False)}, []),
        ("same", {"five": np.array([5]), "at": np.array([1])}, [
            make("Shape", ["x"], ["s"], "s"), make("Gather", ["s", "at"], ["d"], "d"),
            make("Equal", ["d", "five"], ["same"], "e"),
        ]),
    ):  # fmt: skip
        path = saved(tmp_path / "net.onnx", [*nodes, branches(value)], {"x": ["n", 5]}, ["y"], constants)
        assert_same_for(path, {"x": normal(3, 5)})


def test_branch_of_data_is_refused(tmp_path):
    nodes = [
        make("ReduceMax", ["x"], ["m"], "max", keepdims=0), make("Greater", ["m", "zero"], ["flag"], "g"),
        branches("flag"),
    ]  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 5]}, ["y"], {"zero": np.float32(0)})
    assert_refused(path, "If ('if')", "which way it goes", "'flag'")


def loop(rounds):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [make("MatMul", ["h", "w"], ["a"], "product"), make("Tanh", ["a"], ["h2"], "tanh"),
         make("Identity", ["go"], ["go2"], "i"), make("Identity", ["h2"], ["scan"], "s")],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("h", TensorProto.FLOAT, ["n", 4])],
        [onnx.ValueInfoProto(name=name) for name in ("go2", "h2", "scan")],
    )  # fmt: skip
    return make("Loop", [rounds, "", "x"], ["y", "all"], "loop", body=body)


def test_loop_of_a_fixed_number_of_rounds_is_unrolled(tmp_path):
    nodes = [loop("three"), make("Transpose", ["all"], ["z"], "t", perm=[1, 0, 2])]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y", "z"], {"three": np.int64(3), "w": normal(4, 4)})
    module = assert_same_for(path, {"x": normal(3, 4)})
    graph = mb.capture(module, {"x": torch.randn(2, 4)})
    assert [(layer.name, len(layer.operations)) for layer in graph.layers] == [("w", 3)]


def test_loop_over_the_samples_is_refused(tmp_path):
    nodes = [
        make("Shape", ["x"], ["s"], "s"), make("Gather", ["s", "zero"], ["n"], "n"), loop("n"),
    ]  # fmt: skip
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {"zero": np.int64(0), "w": normal(4, 4)})
    assert_refused(path, "'loop'", "how often it runs")


def test_functions_of_the_file_are_inlined(tmp_path):
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [make("Add", ["a", "a"], ["c"], "add"), make("Relu", ["c"], ["b"], "r")],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    nodes = [make("Twice", ["x"], ["y"], "twice", domain="mine")]
    path = saved(tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y"], {}, functions=[function], domains={"mine": 1})
    assert_same_for(path, {"x": normal(3, 4)})


# what is refused


def test_operators_that_cannot_be_followed_are_named_all_at_once(tmp_path):
    nodes = [
        make("NonZero", ["x"], ["a"], "count"),
        make("NonZero", ["x"], ["a2"], ""),
        make("Scaler", ["x"], ["b"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[1.0]),
        make("FusedMatMul", ["x", "x"], ["c"], "fused", domain="com.microsoft"),
        make("Mine", ["x"], ["d"], "own", domain="my.company"),
        make("QuantizeLinear", ["x", "scale", "point"], ["e"], "q"),
        make("RandomNormalLike", ["x"], ["f"], "noise"),
        make("Det", ["x"], ["g"], "det"),
        make("MaxPool", ["x"], ["h", "places"], "pool", kernel_shape=[2, 2]),
        make("Cast", ["x"], ["size"], "cast", to=TensorProto.INT64),
        make("Reshape", ["x", "size"], ["y"], "reshape"),
        make("GRU", ["x", "w", "w"], ["i"], "gru", hidden_size=2),
        make("Add", ["h", "places"], ["z"], "add"),
    ]
    path = saved(
        tmp_path / "net.onnx", nodes, {"x": ["n", 4]}, ["y", "z"],
        {"scale": np.float32(1), "point": np.int8(0), "w": normal(2)},
        domains={"ai.onnx.ml": 3, "com.microsoft": 1, "my.company": 1},
    )  # fmt: skip
    assert_refused(
        path, "NonZero ('count', 'a2')", "how much it returns depends on the data", "ai.onnx.ml.Scaler ('scaler')",
        "com.microsoft.FusedMatMul ('fused')", "my.company.Mine ('own')", "QuantizeLinear ('q')", "quantized already",
        "RandomNormalLike ('noise')", "Det ('det')", "MaxPool ('pool')", "'places'", "Reshape ('reshape')", "'size'",
        "GRU ('gru')", "linear_before_reset",
    )  # fmt: skip


def test_file_that_is_none(tmp_path):
    assert_refused(tmp_path / "net.onnx", "net.onnx", error=InvalidInput)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no model")
    assert_refused(path, "is no ONNX file", error=InvalidInput)
    path.write_bytes(b"")
    assert_refused(path, "is no ONNX file", error=InvalidInput)
    content = small_network(tmp_path / "whole.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert_refused(path, "net.onnx", error=InvalidInput)


def test_file_that_onnxruntime_refuses(tmp_path):
    path = saved(tmp_path / "net.onnx", [make("Relu", ["nothing"], ["y"], "relu")], {"x": ["n", 4]}, ["y"], {})
    assert_refused(path, "onnxruntime refuses it", error=InvalidInput)


def test_dimensions_without_a_name_are_named_where_no_size_fits(tmp_path):
    nodes = [make("MatMul", ["x", "y"], ["a"], "product"), make("Reshape", ["a", "shape"], ["b"], "reshape")]
    path = saved(
        tmp_path / "net.onnx",
        nodes,
        {"x": ["n", None, 7], "y": ["n", 7, None]},
        ["b"],
        {"shape": np.array([-1, 17, 19])},
    )
    assert_refused(path, "'x':1, 'y':2", "neither a size nor a name", error=InvalidInput)


def with_external(path, tmp_path):
    model = onnx.load(small_network(tmp_path / "whole.onnx"))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return model


def test_data_beside_the_file_is_read(tmp_path):
    path = tmp_path / "net.onnx"
    with_external(path, tmp_path)
    image = {"image": normal(3, 3, 8, 8)}
    module = assert_same_for(path, image)
    np.testing.assert_allclose(
        module(torch.from_numpy(image["image"]))["logits"].detach(),
        ran(tmp_path / "whole.onnx", image)["logits"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_data_that_is_missing_short_or_elsewhere(tmp_path):
    path = tmp_path / "net.onnx"
    with_external(path, tmp_path)
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:100])
    assert_refused(path, "'conv1.weight'", "weights.bin", "has 100", error=InvalidInput)
    (tmp_path / "weights.bin").unlink()
    assert_refused(path, "'conv1.weight'", "is missing", error=InvalidInput)
    (tmp_path / "weights.bin").symlink_to("/dev/zero")
    assert_refused(path, "'conv1.weight'", "outside of its folder", error=InvalidInput)
    for place in ("../weights.bin", "/etc/passwd"):
        model = onnx.load(path, load_external_data=False)
        for each in model.graph.initializer:
            next(entry for entry in each.external_data if entry.key == "location").value = place
        (tmp_path / "elsewhere.onnx").write_bytes(model.SerializeToString())
        assert_refused(tmp_path / "elsewhere.onnx", "outside of its folder", error=InvalidInput)


def test_a_file_longer_than_a_message_is_told_before_it_is_read(tmp_path):
    path = tmp_path / "net.onnx"
    path.touch()
    os.truncate(path, 2**31)  # takes no room on the disk
    assert_refused(path, "2,147,483,648 bytes", "end at 2 GB", "external data", error=InvalidInput)


def test_functions_and_their_weights_beside_the_file(tmp_path):
    function = helper.make_function(
        "mine", "Twice", ["a", "b"], ["y"], [make("Mul", ["a", "b"], ["y"])], [helper.make_opsetid("", 20)]
    )
    nodes, weights = [make("Twice", ["x", "w"], ["y"], domain="mine")], {"w": normal(4)}
    path = saved(
        tmp_path / "whole.onnx", nodes, {"x": ["n", 4]}, ["y"], weights, functions=[function], domains={"mine": 1}
    )
    whole = onnx.load(path)
    onnx.save(whole, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == 16
    assert_same_for(tmp_path / "net.onnx", {"x": normal(3, 4)})


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_computed_in_float32(tmp_path, kind, capsys, monkeypatch):
    model = onnx.load(small_network(tmp_path / "net.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    for each in model.graph.initializer:
        array = numpy_helper.to_array(each)
        each.CopyFrom(helper.make_tensor(each.name, kind, array.shape, array.ravel().tolist()))
    del model.graph.value_info[:]
    path = tmp_path / "half.onnx"
    path.write_bytes(model.SerializeToString())
    module = load_model(str(path)).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert "half precision" in capsys.readouterr().err
    image = normal(3, 3, 8, 8)
    want = ran(tmp_path / "net.onnx", {"image": image})["logits"]
    np.testing.assert_allclose(module(torch.from_numpy(image))["logits"].detach(), want, rtol=0.05, atol=0.1)
    monkeypatch.setattr("mixbit.models._onnx_file._MOST_WEIGHTS", 1000)
    assert_refused(path, "more than 2 GB in half precision", error=InvalidInput)


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    path = small_network(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert_refused(path, "pip install 'mixbit[onnxruntime]'", error=InvalidInput)


def test_difference_from_onnxruntime_is_told_with_its_node(tmp_path, monkeypatch):
    from mixbit.models import _onnx_operators

    path = small_network(tmp_path / "net.onnx")
    monkeypatch.setitem(_onnx_operators.OPERATORS, "Relu", lambda x: torch.relu(x) * 1.1)
    with pytest.raises(UnsupportedModel, match=re.escape("first at node 'relu1'")) as caught:
        load_model(str(path))
    assert "'logits' differs from onnxruntime's for 'image' [2, 3, 8, 8]: by" in str(caught.value)


# names


@pytest.mark.parametrize("ending", [".npz", ".npy", ".csv"])
@pytest.mark.parametrize("name", ["input.1", "x:0", "import"])
def test_inputs_whose_names_python_does_not_allow_are_given_by_those_of_the_file(name, ending, tmp_path):
    shape, constants = ("batch", 3, 4, 4), {"weight": normal(2, 3, 1, 1)}
    path = saved(tmp_path / "net.onnx", [make("Conv", [name, "weight"], ["y"])], {name: shape}, ["y"], constants)
    pixels = (np.arange(6 * 48) % 256).astype(np.uint8).reshape(6, 4, 4, 3)
    images = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    data = tmp_path / f"data{ending}"
    if ending == ".csv":
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
        data.write_text("path\n" + "".join(f"{number}.png\n" for number in range(6)))
    elif ending == ".npz":
        np.savez(data, **{name: images})
    else:
        np.save(data, images)
    loaded = load_model(str(path))
    batches = split_batches(loaded.module, load_data(str(data), loaded).batches)
    graph = capture_all(loaded.module, [inputs for inputs, _ in batches], {})
    got = [dict(returned_by(graph, inputs))["y"].sum((1, 2, 3)) for inputs, _ in batches]
    want = ran(path, {name: images})["y"].sum((1, 2, 3))
    np.testing.assert_allclose(np.sort(torch.cat(got).detach().numpy()), np.sort(want), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("conv1.weight", "conv1.weight"),
        ("/layer/Conv_output_0", "layer.Conv_output_0"),
        ("StatefulPartitionedCall/net/dense/MatMul/ReadVariableOp:0", "net.dense.MatMul"),
        ("onnx::Conv_12", "Conv_12"),
        ("a..b c", "a.b_c"),
        (":", "_"),
        ("...", "parameter"),
    ],
)
def test_names_are_ones_that_torch_holds(name, wanted):
    assert clean_name(name) == wanted


def test_names_do_not_meet_others():
    assert free_name("a.b", {"a"}, set()) == "a_.b"
    assert free_name("a", {"a.b"}, {"a"}) == "a_"
    assert free_name("forward.weight", set(), set()) == "forward_.weight"
    assert [identifier(name, {"x"}) for name in ("x", "in", "1", "input.1", "ids:0")] == [
        "x_",
        "_in",
        "_1",
        "input_1",
        "ids",
    ]
