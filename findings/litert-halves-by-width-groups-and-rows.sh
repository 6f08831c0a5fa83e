#!/usr/bin/env bash
# ai-edge-litert 2.3.0 (LiteRT, with its own delegate XNNPACK) rounds halves of int8 results in three ways within one file,
# by the width of the weights, by groups, and by whether a row of a matrix fills whole bytes.
#
# XNNPACK takes convolutions of 8 bits and products of 4 bits, and rounds to the even integer. It leaves convolutions of 4
# bits, and products of 4 bits whose rows end within a byte, to the runtime's own kernels, which round halves up; and of
# those with groups to another one, which rounds them away from zero. Nothing in the file says which. One more channel, or
# 4 bits for 8, so moves results of the same integers by a step, and a simulation has to know the kernel.
#
# The models: y = x / 4 of whole numbers, by a kernel with a single 1.
#
# Seen (x86-64):
#   convolution, 8 bits: halves to even
#   convolution, 4 bits: halves up
#   convolution of 2 groups, 8 bits: halves to even
#   convolution of 2 groups, 4 bits: halves away from zero
#   rows of 8, 4 bits: halves to even
#   rows of 7, 4 bits: halves up
#   rows of 7, 8 bits: halves to even
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 flatbuffers==25.12.19 ai-edge-litert==2.3.0
"$work/venv/bin/python" - <<'PYTHON'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

CONV_2D, FULLY_CONNECTED, FLOAT32, INT32, INT8, INT4 = 3, 9, 0, 2, 9, 17
X = np.arange(-128, 128, 2)  # halves of them are whole, so that factors in fixed point round once
ROUNDED = {
    "to even": np.rint(X / 4),
    "up": np.floor(X / 4 + 0.5),
    "away from zero": np.sign(X) * np.floor(np.abs(X) / 4 + 0.5),
}


def packed(integers, bits):
    flat = np.asarray(integers, np.int64).reshape(-1)
    if bits == 8:
        return flat.astype(np.int8).tobytes()
    flat = np.pad(flat, (0, len(flat) % 2)) & 15
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


def file_of(kernel, bits, x_shape, y_shape):
    """One operator: x of scale 1, a kernel of ones and zeros of scale 1, y of scale 4."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []

    def tensor(name, shape, kind, scales=None, data=None):
        one = schema.TensorT()
        one.name, one.shape, one.type, one.buffer = name, list(shape), kind, 0
        one.quantization = schema.QuantizationParametersT()
        one.quantization.scale, one.quantization.zeroPoint = list(scales), [0] * len(scales)
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = list(data)
            one.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(one)
        return len(graph.tensors) - 1

    count = kernel.shape[0]
    x = tensor("x", x_shape, INT8, [1.0])
    w = tensor("w", kernel.shape, INT8 if bits == 8 else INT4, [1.0] * count, packed(kernel, bits))
    b = tensor("b", [count], INT32, [1.0] * count, np.zeros(count, np.int32).tobytes())
    y = tensor("y", y_shape, INT8, [4.0])
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    is_convolution = kernel.ndim == 4
    code.builtinCode = code.deprecatedBuiltinCode = CONV_2D if is_convolution else FULLY_CONNECTED
    code.version = 1
    options = schema.Conv2DOptionsT() if is_convolution else schema.FullyConnectedOptionsT()
    if is_convolution:
        options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
    operator.builtinOptions = options
    operator.builtinOptionsType = 1 if is_convolution else 8
    operator.inputs, operator.outputs = [x, w, b], [y]
    graph.inputs, graph.outputs, graph.operators = [x], [y], [operator]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def rounding_of(kernel, bits):
    """How y = x / 4 is rounded, x in the first place that the kernel reads."""
    read = np.zeros((len(X), kernel.shape[-1] * (kernel.shape[0] if kernel.ndim == 4 and kernel.shape[-1] > 1 else 1)))
    read[:, 0] = X
    shapes = [(len(X), read.shape[1]), (len(X), kernel.shape[0])]
    if kernel.ndim == 4:
        shapes = [(1, 1, *shape) for shape in shapes]
    interpreter = Interpreter(model_content=file_of(kernel, bits, *shapes))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], read.reshape(shapes[0]).astype(np.int8))
    interpreter.invoke()
    y = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(len(X), -1)[:, 0]
    return [name for name, wanted in ROUNDED.items() if np.array_equal(y, wanted)]


def first(*shape):
    kernel = np.zeros(shape, np.int64)
    kernel[:, ..., 0] = 1
    return kernel


CASES = {
    "convolution, 8 bits": (first(2, 1, 1, 1), 8, "to even"),
    "convolution, 4 bits": (first(2, 1, 1, 1), 4, "up"),
    "convolution of 2 groups, 8 bits": (first(2, 1, 1, 2), 8, "to even"),
    "convolution of 2 groups, 4 bits": (first(2, 1, 1, 2), 4, "away from zero"),
    "rows of 8, 4 bits": (first(2, 8), 4, "to even"),
    "rows of 7, 4 bits": (first(2, 7), 4, "up"),
    "rows of 7, 8 bits": (first(2, 7), 8, "to even"),
}
for name, (kernel, bits, wanted) in CASES.items():
    found = rounding_of(kernel, bits)
    print(f"{name}: halves {' or '.join(found)}")
    assert found == [wanted], (name, found)
PYTHON
