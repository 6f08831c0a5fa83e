#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator computes AveragePool with ceil_mode=1 wrongly where the last window begins inside
# the input and ends beyond it: it does not agree with torch, onnxruntime or OpenVINO, which agree with one another.
#
# A check of an exported network against onnx's reference, instead of against torch, then reports a fault that the file
# does not have (or hides one that it has). No padding is needed: AvgPool2d(3, 3, ceil_mode=True) on 7x7.
# A stride smaller than the overhang allows, AvgPool2d(3, 2, ceil_mode=True), is right.
#
# Seen (onnx 1.23.2, onnxruntime 1.31.1, openvino 2026.4.1, torch 2.13.0), inputs 0..48, largest difference from torch:
#   stride 3: onnxruntime 0, openvino 0, onnx.reference above 1, with count_include_pad 0 and 1
#   stride 2: all below 1e-5
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1 torch==2.13.0
"$work/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

x = np.arange(49, dtype=np.float32).reshape(1, 1, 7, 7)
print("onnx", onnx.__version__)
for stride in (3, 2):
    for include in (0, 1):
        pool = dict(kernel_shape=[3, 3], strides=[stride, stride], ceil_mode=1, count_include_pad=include)
        graph = helper.make_graph(
            [helper.make_node("AveragePool", ["x"], ["y"], **pool)],
            "average pool",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 7, 7])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 3])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        data = model.SerializeToString()
        pooled = torch.nn.AvgPool2d(3, stride, ceil_mode=True, count_include_pad=bool(include))(torch.from_numpy(x))
        core = openvino.Core()
        results = {
            "onnxruntime": onnxruntime.InferenceSession(data).run(None, {"x": x})[0],
            "openvino": core.compile_model(core.read_model(io.BytesIO(data)), "CPU")({"x": x})[0],
            "onnx.reference": ReferenceEvaluator(model).run(None, {"x": x})[0],
        }
        errors = {name: float(np.abs(result - pooled.numpy()).max()) for name, result in results.items()}
        print(f"stride {stride}, count_include_pad {include}:", errors)
        reference = errors.pop("onnx.reference")
        assert max(errors.values()) < 0.2, errors  # OpenVINO may compute in bfloat16
        assert reference > 1 if stride == 3 else reference < 1e-5, reference
print("as described")
PYTHON
