#!/usr/bin/env bash
# OpenVINO 2026.4.1 cannot compile a GRUSequence with linear_before_reset, which is how torch defines a GRU, whose input,
# state and weights come from FakeQuantize: it takes its kernel in integers, and oneDNN has none of that kind.
#
# The same network without linear_before_reset, or without the FakeQuantize, compiles.
#
# Seen (openvino 2026.4.1):
#   linear_before_reset False: compiled
#   linear_before_reset True: could not create a primitive descriptor for the LBR GRU forward propagation primitive.
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 openvino==2026.4.1
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset15 as ops

INPUTS, WIDTH, STEPS = 4, 8, 3


def quantized(x, size, levels):
    low, high = np.float32(-size), np.float32(size)
    return ops.fake_quantize(x, low, high, low, high, levels)


def compiled(linear_before_reset):
    rng = np.random.default_rng(0)
    x, state = ops.parameter([1, STEPS, INPUTS], np.float32), ops.parameter([1, 1, WIDTH], np.float32)
    weights = [
        quantized(ops.constant(rng.normal(size=(1, 3 * WIDTH, columns)).astype(np.float32)), 4, 255)
        for columns in (INPUTS, WIDTH)
    ]
    bias = np.zeros((1, (4 if linear_before_reset else 3) * WIDTH), np.float32)
    gru = ops.gru_sequence(
        quantized(x, 4, 256), quantized(state, 1, 256), np.array([STEPS], np.int32), *weights, bias, WIDTH, "forward",
        linear_before_reset=linear_before_reset,
    )
    try:
        openvino.Core().compile_model(openvino.Model([gru.output(0)], [x, state]), "CPU")
    except RuntimeError as error:
        return next(line for line in str(error).splitlines() if "GRU" in line)
    return "compiled"


told = {flag: compiled(flag) for flag in (False, True)}
for flag, text in told.items():
    print(f"linear_before_reset {flag}: {text}")
assert told[False] == "compiled" != told[True]
PYTHON
