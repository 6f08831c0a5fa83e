#!/usr/bin/env bash
# OpenVINO 2026.4.1, CPU plugin: an average pool of a quantized tensor returns values rounded to 8 bits as soon as a
# multiplication by a constant follows it, though nothing in the model quantizes what the pool returns.
#
# The model: y = AveragePool(DequantizeLinear(QuantizeLinear(x))) * m. The only quantizer is the one in front of the
# pool. If m is missing, the pool returns float32 and all is right. With m (one number, one for each channel, or a map
# of positions) OpenVINO runs the pool from int8 to int8, in steps of the input's scale, and multiplies afterwards; the
# precision hint f32 does not change that. A mean over nine values then errs by up to half an input step.
#
# Seen (openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1, x86-64 with AVX512-VNNI and AMX), error relative to the
# spread of y, against onnxruntime without graph optimization:
#   no factor: below 1e-5;  one number, a factor for each channel, a map: each above 0.01
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1
"$work/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 16, 8
random = np.random.default_rng(0)
FACTORS = {
    "no factor": None,
    "one number": np.array(0.7),
    "a factor for each channel": random.uniform(0.5, 1, (1, CHANNELS, 1, 1)),
    "a map": random.uniform(0.5, 1, (1, 1, SIZE, SIZE)),
}


def model(factor):
    pool = dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("AveragePool", ["d"], ["y" if factor is None else "p"], **pool),
    ]
    values = [numpy_helper.from_array(np.float32(0.05), "scale"), numpy_helper.from_array(np.uint8(20), "zero")]
    if factor is not None:
        nodes.append(helper.make_node("Mul", ["p", "m"], ["y"]))
        values.append(numpy_helper.from_array(factor.astype(np.float32), "m"))
    shape = ["rows", CHANNELS, SIZE, SIZE]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "average pool", tensors[:1], tensors[1:], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


x = random.uniform(-1, 6, (4, CHANNELS, SIZE, SIZE)).astype(np.float32)
print("openvino", openvino.__version__)
errors = {}
for name, factor in FACTORS.items():
    data, core = model(factor), openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    got = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings)({"x": x})[0]
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = onnxruntime.InferenceSession(data, plain).run(None, {"x": x})[0]
    errors[name] = float(np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std())
    print(f"{name}: {errors[name]:.6f}")
assert errors.pop("no factor") < 1e-5
assert min(errors.values()) > 0.01, errors
print("as described")
PYTHON
