#!/usr/bin/env bash
# ethos-u-vela 5.2.0 does not compile a file that holds one HARD_SWISH of floats, though it leaves other operators of floats
# to the CPU.
#
# A network that is partly in float is usual for an NPU: what is not int8 falls to the CPU, and Vela compiles the rest. So it
# does with LOGISTIC, TANH and GELU of floats. HARD_SWISH of floats, as in MobileNetV3, is an error of the whole file:
# "Does not have valid TFLite Semantics. IFM has to be 8bit", though the format and LiteRT have that operator for floats. The
# last line of what Vela says, "Failed to parse TFLite file", sends one the wrong way. Written as x * relu6(x + 3) / 6, the
# same function is left to the CPU.
#
# Seen: LOGISTIC, TANH, GELU of floats: exit status 0, a file, the operator on the CPU; HARD_SWISH of floats: exit status 1.
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 flatbuffers==25.12.19 ai-edge-litert==2.3.0 ethos-u-vela==5.2.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

CODES = {name: getattr(schema.BuiltinOperator, name) for name in ("LOGISTIC", "TANH", "GELU", "HARD_SWISH")}
X = np.linspace(-4, 4, 16, dtype=np.float32).reshape(1, 16)


def file_of(name):
    """One operator from 16 floats to 16 floats."""
    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    graph.tensors = []
    for tensor_name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = tensor_name, [1, 16], schema.TensorType.FLOAT32, 0
        graph.tensors.append(tensor)
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    if name == "GELU":
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.GeluOptions, schema.GeluOptionsT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = CODES[name], min(CODES[name], 127), 1
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


print("ethos-u-vela", version("ethos-u-vela"), "ai-edge-litert", version("ai-edge-litert"))
for name in CODES:
    data = file_of(name)
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
    interpreter.invoke()
    assert np.isfinite(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])).all(), "LiteRT runs it"
    with open(f"{name}.tflite", "wb") as file:
        file.write(data)
    words = [sys.executable, "-m", "ethosu.vela", f"{name}.tflite", "--output-dir", "out", "--accelerator-config"]
    words += ["ethos-u55-128", "--config", "Arm/vela.ini", "--system-config", "Ethos_U55_High_End_Embedded"]
    done = subprocess.run([*words, "--memory-mode", "Shared_Sram"], capture_output=True, text=True, check=False)
    print(f"{name} of floats: LiteRT runs it, Vela's exit status {done.returncode}")
    assert (done.returncode == 0) == (name != "HARD_SWISH"), done.stderr[-500:]
    if done.returncode:
        assert "HARD_SWISH" in done.stderr and "IFM has to be 8bit" in done.stderr, done.stderr[-500:]
print("as described")
PYTHON
