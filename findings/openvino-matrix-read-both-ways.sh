#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU plugin: where one square constant W is multiplied by as it is and again transposed, the second
# product is computed with W too, as if the transposition were not there. The results are silently another function.
#
# The model: h = x @ W; y = tanh(h) @ W.T, as encoders and decoders with shared weights have it, and tables that are
# also heads. A matrix that is not square is right, and so are two constants of equal values, until the model is saved
# and read: the file holds equal constants once, after which they are treated as one. The scale is one number here, so
# this is not what scales along the summed axis do. A float W is wrong only in float32, where h is an output too; in
# bfloat16, the default on this machine, it is right: the setting meant to make results exact breaks them.
#
# Seen (openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1, x86-64 with AVX512-VNNI and AMX), error in norm relative to
# y, 3 and 40 rows, exact settings and default ones:
#   32x32, W int8, one constant: above 1 under both; with two, saved and read: above 1 under exact settings
#   32x32, W int8, inputs quantized to 8 bits: above 1 under both with one constant, and with two, saved and read
#   32x32, W float, one constant, or two, saved and read: above 1 under exact settings
#   without quantized inputs the wrong y is tanh(h) @ W; all others, and 32x16, are below 0.05
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1
"$work/venv/bin/python" - "$work" <<'PYTHON'
import io
import itertools
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

STEP = 0.06
SETTINGS = {"exact": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}, "default": {}}
# The cases that are wrong if the matrix is square: settings, number of constants, whether saved and read.
ONE = {(settings, 1, saved) for settings in SETTINGS for saved in (False, True)}
WRONG = {
    "float": {("exact", 1, False), ("exact", 1, True), ("exact", 2, True)},
    "int8": ONE | {("exact", 2, True)},
    "int8, quantized inputs": ONE | {("exact", 2, True), ("default", 2, True)},
}


def model(kind, integers, constants):
    width, middle = integers.shape
    nodes = []
    values = [numpy_helper.from_array(np.float32(value), name) for name, value in (("step", STEP), ("scale", 0.04))]
    values.append(numpy_helper.from_array(np.uint8(128), "zero"))

    def quantize(name):
        if kind != "int8, quantized inputs":
            return name
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [name + "q"]))
        nodes.append(helper.make_node("DequantizeLinear", [name + "q", "scale", "zero"], [name + "d"]))
        return name + "d"

    names = ["w0", "w1"][:constants]
    for name in names:
        if kind == "float":
            values.append(numpy_helper.from_array(integers.astype(np.float32) * np.float32(STEP), name))
        else:
            values.append(numpy_helper.from_array(integers, name + "i"))
            nodes.append(helper.make_node("DequantizeLinear", [name + "i", "step"], [name]))
    nodes.append(helper.make_node("Transpose", [names[-1]], ["wt"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", [quantize("x"), names[0]], ["h"]))
    nodes.append(helper.make_node("Tanh", ["h"], ["t"]))
    nodes.append(helper.make_node("MatMul", [quantize("t"), "wt"], ["y"]))
    sizes = {"x": width, "y": width, "h": middle}
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", sizes[name]]) for name in sizes]
    graph = helper.make_graph(nodes, "one matrix, two ways", tensors[:1], tensors[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def error(got, wanted):
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


print("openvino", openvino.__version__)
random = np.random.default_rng(0)
core = openvino.Core()
plain = onnxruntime.SessionOptions()
plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
plain.log_severity_level = 3
cases = itertools.product((32, 16), WRONG, SETTINGS, (1, 2), (False, True))
for middle, kind, settings, constants, saved in cases:
    integers = random.integers(-8, 8, (32, middle)).astype(np.int8)
    data = model(kind, integers, constants)
    read = core.read_model(io.BytesIO(data))
    if saved:
        openvino.save_model(read, sys.argv[1] + "/model.xml", compress_to_fp16=False)
        read = core.read_model(sys.argv[1] + "/model.xml")
    compiled = core.compile_model(read, "CPU", SETTINGS[settings])
    name = f"32x{middle}, {kind}, {settings} settings, constants {constants}{', saved and read' if saved else ''}"
    errors = []
    for rows in (3, 40):
        x = random.normal(size=(rows, 32)).astype(np.float32)
        wanted = onnxruntime.InferenceSession(data, plain).run(["y"], {"x": x})[0]
        got = compiled({"x": x})[0]
        errors.append(error(got, wanted))
        if middle == 32 and (settings, constants, saved) in WRONG[kind]:
            assert errors[-1] > 1, "the transposition is seen now"
            if kind != "int8, quantized inputs":
                w = integers * STEP
                assert error(got, np.tanh(x @ w) @ w) < 0.01
        else:
            assert errors[-1] < 0.05, errors
    print(f"{name}: {errors[0]:.4f} for 3 rows, {errors[1]:.4f} for 40")
print("as described")
PYTHON
