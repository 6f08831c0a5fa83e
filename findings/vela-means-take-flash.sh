#!/usr/bin/env bash
# ethos-u-vela 5.2.0 stores a kernel of ones for each MEAN over positions: the pool at the end of a small network takes as
# much flash as one of its layers, where AVERAGE_POOL_2D over the same window takes none.
#
# A MEAN over height and width has no numbers of its own, and converters write global average pooling as MEAN. Vela makes a
# depthwise convolution with ones of it, whose coded weights, biases and factors lie in flash, for each channel: on networks
# of some kilobytes, as keyword spotters are, a tenth of the whole. AVERAGE_POOL_2D has an operator on the NPU, but has to
# return the scale that it reads.
#
# Seen (int8 [1, 16, 16, 64] to [1, 1, 1, 64], ethos-u55-128): MEAN: 2720 bytes, 22536 cycles; AVERAGE_POOL_2D: 0, 10968.
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 flatbuffers==25.12.19 ai-edge-litert==2.3.0 ethos-u-vela==5.2.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import csv
import glob
import subprocess
import sys
from importlib.metadata import version

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SIZE, CHANNELS = 16, 64


def tensor(name, shape, kind, scale=None, buffer=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, getattr(schema.TensorType, kind), buffer
    if scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def file_of(kind):
    """The mean over all positions."""
    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    graph.tensors = [
        tensor("x", [1, SIZE, SIZE, CHANNELS], "INT8", 0.02), tensor("y", [1, 1, 1, CHANNELS], "INT8", 0.02),
        tensor("axes", [2], "INT32", None, 1),
    ]
    operator.opcodeIndex, operator.outputs = 0, [1]
    if kind == "MEAN":
        operator.inputs, operator.builtinOptionsType = [0, 2], schema.BuiltinOptions.ReducerOptions
        operator.builtinOptions = schema.ReducerOptionsT()
        operator.builtinOptions.keepDims = True
    else:
        operator.inputs, operator.builtinOptionsType = [0], schema.BuiltinOptions.Pool2DOptions
        options = operator.builtinOptions = schema.Pool2DOptionsT()
        options.padding, options.filterWidth, options.filterHeight, options.strideW, options.strideH = 1, SIZE, SIZE, 1, 1
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
    code.version = 2
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    axes = schema.BufferT()
    axes.data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT(), axes], [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


print("ethos-u-vela", version("ethos-u-vela"))
held = {}
for kind in ("MEAN", "AVERAGE_POOL_2D"):
    with open(f"{kind}.tflite", "wb") as file:
        file.write(file_of(kind))
    words = [sys.executable, "-m", "ethosu.vela", f"{kind}.tflite", "--output-dir", kind, "--accelerator-config"]
    words += ["ethos-u55-128", "--config", "Arm/vela.ini", "--system-config", "Ethos_U55_High_End_Embedded"]
    subprocess.run([*words, "--memory-mode", "Shared_Sram"], capture_output=True, check=True)
    with open(glob.glob(f"{kind}/*summary*.csv")[0], newline="") as file:
        (row,) = csv.DictReader(file)
    held[kind] = round(1024 * float(row["off_chip_flash_memory_used"]))
    print(f"{kind}: {held[kind]} bytes of flash, {float(row['cycles_total']):.0f} cycles")
assert held["AVERAGE_POOL_2D"] == 0 and held["MEAN"] > 500, held
print("as described")
PYTHON
