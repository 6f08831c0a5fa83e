#!/usr/bin/env bash
# OpenVINO 2026.4.1 (ONNX reader, CPU, float32): QuantizeLinear with an odd zero point rounds every tie the other way
# than the ONNX specification, onnx's reference evaluator and onnxruntime, which agree with one another.
#
# ONNX rounds x / scale to the nearest integer, halves to even, and adds the zero point then. OpenVINO reads the
# operator as FakeQuantize, which rounds the distance from the lower bound, x / scale + zero point for uint8: where the
# zero point is odd, an even sum is an odd integer before it. Each such value comes out one step away. Ties are not
# rare where scales are powers of two and values are integers or sums of them: pixels at scale 2 are ties every other
# time. For int8 the same holds, as its lower bound is even.
#
# Seen (openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1), scale 0.25, x = (k + 0.5) * scale for all 255 k in range,
# QuantizeLinear then DequantizeLinear, number of values that differ from the reference:
#   zero points 0, 8, 128 (uint8), 0, -128 (int8): onnxruntime 0, openvino 0
#   zero points 7, 127 (uint8), -1, 5 (int8):      onnxruntime 0, openvino 255, each by one step
#   a quarter above the ties, every zero point:    onnxruntime 0, openvino 0
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
from onnx.reference import ReferenceEvaluator

SCALE = 0.25
ZERO_POINTS = {np.uint8: (0, 8, 128, 7, 127), np.int8: (0, -128, -1, 5)}


def model(zero):
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "quantizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32(SCALE), "scale"), numpy_helper.from_array(zero, "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


print("openvino", openvino.__version__)
core = openvino.Core()
for integer, zero_points in ZERO_POINTS.items():
    for zero in zero_points:
        made = model(integer(zero))
        data = made.SerializeToString()
        compiled = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        session = onnxruntime.InferenceSession(data)
        lowest = np.iinfo(integer).min - zero
        for part, tie in ((0.5, True), (0.75, False)):
            x = ((np.arange(lowest, lowest + 255) + part) * SCALE).astype(np.float32)
            wanted = ReferenceEvaluator(made).run(None, {"x": x})[0]
            np.testing.assert_array_equal(wanted, (np.round(x / SCALE) * SCALE).clip(lowest * SCALE, None))
            np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)
            steps = np.abs(compiled({"x": x})[0] - wanted) / SCALE
            name = f"{integer.__name__}, zero point {zero}, {'ties' if tie else 'no ties'}"
            print(f"{name}: {np.count_nonzero(steps)} of {len(x)} differ")
            assert np.all(steps == (1 if tie and zero % 2 else 0)), steps
print("as described")
PYTHON
