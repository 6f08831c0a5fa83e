#!/usr/bin/env bash
# onnxruntime 1.31.1 on an x86 processor without VNNI adds pairs of products of 8-bit integers in 16 bits, which overflow.
# session.x64quantprecision=1 makes it exact, but it then cannot load a file in which two products read one int8 weight:
# it converts the weight to uint8 once for each reader, under one name. With a copy of the weight for each product it
# loads. Zero points are converted alike, and its optimizer lets layers share equal ones of up to eight numbers.
#
# Seen (onnxruntime 1.31.1, onnx 1.23.2, an AMD EPYC with AVX2 alone), two products of 255 and 127, 16 numbers each:
#   default settings: 262136 in place of 518160
#   exact, a weight for each product: 518160
#   exact, one weight for both: AddInitializedOrtValue Attempt to replace the existing tensor
# Processors with VNNI add exactly, and the setting does nothing there. Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxruntime==1.31.1
cd "$work"
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

COUNT, OUTPUTS = 16, 16
TOTAL = 255 * 127 * COUNT


def model(weights):
    tensors = {"scale": np.float32(1), "zero": np.uint8(0), "scales": np.ones(OUTPUTS, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["steps"]),
    ]
    for number in range(2):
        weight = f"weight{number % weights}"
        tensors[weight] = np.full((COUNT, OUTPUTS), 127, np.int8)
        tensors[f"zeros{number}"] = np.zeros(OUTPUTS, np.int8)
        inputs = [weight, "scales", f"zeros{number}"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"restored{number}"], axis=1))
        nodes.append(helper.make_node("MatMul", ["steps", f"restored{number}"], [f"y{number}"]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in
             (("x", COUNT), ("y0", OUTPUTS), ("y1", OUTPUTS))]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "two products", ports[:1], ports[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def result(weights, exact):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    try:
        session = ort.InferenceSession(model(weights), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error).split("graph.cc:")[-1].split(" ", 1)[-1].strip()
    return int(session.run(None, {"x": np.full((1, COUNT), 255, np.float32)})[0][0, 0])


default, apart, shared = result(2, False), result(2, True), result(1, True)
print(f"default settings: {default} in place of {TOTAL}")
print(f"exact, a weight for each product: {apart}")
print(f"exact, one weight for both: {shared}")
if default == TOTAL:
    print("this processor adds exactly: nothing to be seen here")
else:
    assert apart == TOTAL
    assert "Attempt to replace the existing tensor" in str(shared)
PYTHON
echo "as described"
