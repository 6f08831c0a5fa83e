#!/usr/bin/env bash
# OpenVINO 2026.4.1 (ONNX reader): a weight whose blocks of scales lie along the output axis of a MatMul does not
# compile; the message speaks of MatMul's own shapes, which are right.
#
# The model is valid ONNX (opset 21): y = x @ DequantizeLinear(w, s, axis=1, block_size=4), w int4 [4, 8], s [4, 2].
# onnx's reference evaluator and onnxruntime run it. The same weight added in place of multiplied is read and right in
# OpenVINO, and so are blocks along the summed axis (axis=0): only the two together fail. A writer that puts groups
# along the output axis gets a file that one runtime runs and the other refuses.
#
# Seen (openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1):
#   MatMul, axis 1: RuntimeError, "... COL_INDEX_DIM=1 doesn't match the second input dimension=8 at ROW_INDEX_DIM=0"
#   MatMul, axis 0: right;  Add, axis 1: right
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

ROWS, COLUMNS = 4, 8
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def model(operator, axis):
    random = np.random.default_rng(0)
    block = 4 if axis else 2
    shape = [ROWS, COLUMNS // block] if axis else [ROWS // block, COLUMNS]
    weight = helper.make_tensor("w", TensorProto.INT4, [ROWS, COLUMNS], random.integers(-8, 8, ROWS * COLUMNS).tolist())
    scales = numpy_helper.from_array(random.uniform(0.1, 1.0, shape).astype(np.float32), "s")
    width = ROWS if operator == "MatMul" else COLUMNS
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=axis, block_size=block),
            helper.make_node(operator, ["x", "d"], ["y"]),
        ],
        "blocks of scales",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, COLUMNS])],
        [weight, scales],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return made, random.normal(size=(ROWS, width)).astype(np.float32)


print("openvino", openvino.__version__)
seen = {}
for operator, axis in (("MatMul", 1), ("MatMul", 0), ("Add", 1)):
    made, x = model(operator, axis)
    data = made.SerializeToString()
    wanted = ReferenceEvaluator(made).run(None, {"x": x})[0]
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    np.testing.assert_allclose(onnxruntime.InferenceSession(data, plain).run(None, {"x": x})[0], wanted, rtol=1e-4)
    try:
        core = openvino.Core()
        got = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", SETTINGS)({"x": x})[0]
        seen[operator, axis] = "right" if np.allclose(got, wanted, rtol=1e-4, atol=1e-4) else "wrong"
    except RuntimeError as error:
        seen[operator, axis] = "refused"
        print(str(error).strip().splitlines()[-1])
    print(f"{operator}, blocks along axis {axis}: {seen[operator, axis]}")
assert seen == {("MatMul", 1): "refused", ("MatMul", 0): "right", ("Add", 1): "right"}, seen
print("as described")
PYTHON
