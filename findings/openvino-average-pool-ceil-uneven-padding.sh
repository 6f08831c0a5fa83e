#!/usr/bin/env bash
# OpenVINO 2026.4.1 (ONNX reader, CPU, float32): AveragePool with ceil_mode=1, count_include_pad=1 and more padding at
# one side than at the other differs from onnxruntime and from onnx's reference; with even padding it agrees.
#
# Uneven padding comes from TensorFlow's SAME and from exporters that fold a Pad into the pooling. The windows at the
# lower and right border, which ceil_mode adds, are divided by another number of elements.
#
# Seen (openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.31.1), kernel 3, stride 2, 7x7 inputs of 1.0, largest difference:
#   pads 0 0 1 1 and 1 0 0 1: openvino differs from the others by 0.1 and more; onnxruntime = reference
#   pads 1 1 1 1, or ceil_mode=0, or count_include_pad=0: all three agree
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
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

x = np.ones((1, 1, 7, 7), np.float32)
print("openvino", openvino.__version__)
for pads in ([0, 0, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]):
    for ceil in (1, 0):
        for include in (1, 0):
            pool = dict(
                kernel_shape=[3, 3], strides=[2, 2], pads=pads, ceil_mode=ceil, count_include_pad=include
            )
            graph = helper.make_graph(
                [helper.make_node("AveragePool", ["x"], ["y"], **pool)],
                "average pool",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
            data = model.SerializeToString()
            core = openvino.Core()
            settings = {"INFERENCE_PRECISION_HINT": "f32"}
            got = core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings)({"x": x})[0]
            wanted = onnxruntime.InferenceSession(data).run(None, {"x": x})[0]
            np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted, rtol=1e-5)
            difference = float(np.abs(got - wanted).max())
            print(f"pads {pads}, ceil_mode {ceil}, count_include_pad {include}: {difference:.3f}")
            uneven = pads[:2] != pads[2:]
            assert difference > 0.1 if uneven and ceil and include else difference < 1e-5, difference
print("as described")
PYTHON
