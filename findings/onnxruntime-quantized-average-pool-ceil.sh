#!/usr/bin/env bash
# onnxruntime 1.31.1: a quantized AveragePool with ceil_mode=1 and count_include_pad=1 divides its last windows by the
# whole kernel; the same operator in float, torch and OpenVINO divide by the elements that lie inside.
#
# torch.nn.AvgPool2d(3, stride=3, ceil_mode=True) exports to exactly these attributes (count_include_pad is torch's
# default) and needs no padding for it: 7 rows give windows of 3, 3 and 1. Between QuantizeLinear and DequantizeLinear
# onnxruntime turns the pooling into QLinearAveragePool, whose last row and column come out at a third of their value,
# and the corner at a ninth. With graph optimization off, or with count_include_pad=0, the result is right.
#
# Seen (onnxruntime 1.31.1, onnx 1.23.2, torch 2.13.0), all inputs 1.0, the corner window of AvgPool2d(3, 3) on 7x7:
#   torch 1.0, float 1.0, quantized without optimization 1.0, quantized 0.11
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

SCALE, ZERO = 1 / 128, 0


def model(quantized, count_include_pad):
    pool = dict(kernel_shape=[3, 3], strides=[3, 3], ceil_mode=1, count_include_pad=count_include_pad)
    nodes, source = [], "x"
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        ]
        source = "xd"
    nodes.append(helper.make_node("AveragePool", [source], ["p" if quantized else "y"], **pool))
    if quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["pq"]),
            helper.make_node("DequantizeLinear", ["pq", "scale", "zero"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "average pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 7, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 3])],
        [numpy_helper.from_array(np.float32(SCALE), "scale"), numpy_helper.from_array(np.uint8(ZERO), "zero")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return made.SerializeToString()


def corner(quantized, *, optimized=True, count_include_pad=1):
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model(quantized, count_include_pad), options)
    return float(session.run(None, {"x": np.ones((1, 1, 7, 7), np.float32)})[0][0, 0, 2, 2])


print("onnxruntime", onnxruntime.__version__)
seen = {
    "torch": float(torch.nn.AvgPool2d(3, 3, ceil_mode=True)(torch.ones(1, 1, 7, 7))[0, 0, 2, 2]),
    "float": corner(False),
    "quantized, not optimized": corner(True, optimized=False),
    "quantized, count_include_pad=0": corner(True, count_include_pad=0),
    "quantized": corner(True),
}
for name, value in seen.items():
    print(f"{name}: {value:.3f}")
wrong = seen.pop("quantized")
assert all(abs(value - 1) < 0.01 for value in seen.values()), seen
assert abs(wrong - 1 / 9) < 0.01, wrong
print("as described")
PYTHON
