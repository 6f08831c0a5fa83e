#!/usr/bin/env bash
# Inputs that lie on a grid of 4 bits, rounded to 8 bits at run time: onnxruntime 1.31.1 (MatMulNBits, accuracy_level 4),
# OpenVINO 2026.4.1 (DYNAMIC_QUANTIZATION_GROUP_SIZE 32) and the formula round(x / scale), scale = max |x| / 127, of
# ONNX's DynamicQuantizeLinear each give other integers for some 3 % of the numbers, a whole step apart.
#
# On a grid of 4 bits whose largest number is 8 steps, as rows of a table of 4 bits are, 4 steps are 63.5 of 127: half
# between two integers. Which one it becomes hangs on the last bit of the factor: onnxruntime multiplies by 127 / max,
# OpenVINO by 1 / (max / 127), and the formula divides by max / 127. Each runtime is exactly its own formula. A table of 4
# bits whose rows are read and multiplied by a matrix in 8 bits meets this in every second step of the network.
#
# The model: y = x @ 1 with the identity as the weight, so that y shows what became of x.
#
# Seen (x86-64), numbers of 51,200 that differ by a step:
#   onnxruntime: 0 from x * (127 / max), more than 500 from the two others
#   OpenVINO:    0 from x * (1 / (max / 127)), more than 500 from the two others
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1 openvino==2026.4.1
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from openvino import opset15 as ops

SIZE, GROUP, ROWS = 256, 32, 200
LAST = np.float32(127)
FORMULAS = {
    "x / (max / 127)": lambda x, largest: x / (largest / LAST),
    "x * (127 / max)": lambda x, largest: x * (LAST / largest),
    "x * (1 / (max / 127))": lambda x, largest: x * (np.float32(1) / (largest / LAST)),
}


def by_onnxruntime(x):
    integers = (np.eye(SIZE) + 8).astype(np.uint8).reshape(SIZE, SIZE // GROUP, GROUP // 2, 2)
    values = {
        "w": integers[..., 0] | integers[..., 1] << 4,
        "s": np.ones((SIZE, SIZE // GROUP), np.float32),
    }
    options = {"K": SIZE, "N": SIZE, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
    graph = helper.make_graph(
        [helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **options)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def by_openvino(x):
    read = ops.parameter([-1, SIZE], np.float32)
    weight = ops.convert(ops.constant(np.eye(SIZE, dtype=np.int8)), "f32")
    scaled = ops.multiply(weight, ops.constant(np.ones((SIZE, 1), np.float32)))
    model = openvino.Model([ops.matmul(read, scaled, False, True)], [read])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP)}
    return openvino.Core().compile_model(model, "CPU", settings)(x)[0]


random = np.random.default_rng(0)
x = random.integers(-8, 8, (ROWS, SIZE)).astype(np.float32)
x[:, ::GROUP] = -8
x *= random.uniform(0.01, 1, (ROWS, 1)).astype(np.float32)
groups = x.reshape(-1, GROUP)
largest = np.abs(groups).max(-1, keepdims=True)
own = {"onnxruntime": (by_onnxruntime, "x * (127 / max)"), "OpenVINO": (by_openvino, "x * (1 / (max / 127))")}
print("onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
for name, (run, formula) in own.items():
    steps = run(x).reshape(-1, GROUP) / (largest / LAST)
    for other, rounded in FORMULAS.items():
        apart = int((np.abs(np.rint(rounded(groups, largest)) - steps) > 0.3).sum())
        print(f"{name}: {apart} of {x.size} are not round({other})")
        assert apart == 0 if other == formula else apart > 500, apart
print("as described")
PYTHON
