#!/usr/bin/env bash
# torch 2.13.0's ONNX exporter and OpenVINO 2026.4.1's converter write a floor division of sizes as a division of integers,
# which rounds towards zero: -(-length // 2), the usual way to round up, becomes length // 2 for any odd length.
#
# The exported program is right, and the files are right at even lengths, the example's among them: a network with a dynamic
# length, checked at the length that it was exported with, returns a shorter tensor at every other one, without an error.
# A subtraction of the remainder (ONNX's Mod has the divisor's sign) before the division is right for all signs.
#
# Seen (torch 2.13.0, onnx 1.23.2, onnxruntime 1.31.1, openvino 2026.4.1), x[:, : -(-x.shape[1] // 2)] exported at length 12:
#   length 12: torch 6, onnxruntime 6, openvino 6; length 7: torch 4, onnxruntime 3, openvino 3
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 onnx==1.23.2 onnxscript onnxruntime==1.31.1 openvino==2026.4.1 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnxruntime
import openvino
import torch
from torch.export import Dim


class Half(torch.nn.Module):
    def forward(self, x):
        return x[:, : -(-x.shape[1] // 2)] * 1.0


program = torch.export.export(Half(), (torch.randn(2, 12),), dynamic_shapes=({1: Dim.DYNAMIC},))
torch.onnx.export(program, (), dynamo=True, verbose=False).save("half.onnx")
session = onnxruntime.InferenceSession("half.onnx")
(name,) = (port.name for port in session.get_inputs())
compiled = openvino.compile_model(openvino.convert_model(program), "CPU")
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__, "openvino", openvino.__version__)
for length, expected in ((12, (6, 6, 6)), (7, (4, 3, 3))):
    x = np.zeros((2, length), np.float32)
    found = (
        program.module()(torch.from_numpy(x)).shape[1],
        session.run(None, {name: x})[0].shape[1],
        compiled(x)[0].shape[1],
    )
    print(f"length {length}: torch {found[0]}, onnxruntime {found[1]}, openvino {found[2]}")
    assert found == expected, found
PYTHON
