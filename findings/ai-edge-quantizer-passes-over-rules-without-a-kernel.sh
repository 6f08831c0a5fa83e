#!/usr/bin/env bash
# ai-edge-quantizer 0.10.0: a rule for all operators (`*`) that asks for a width which an operator's kernel does not take is
# skipped for that operator without a word, and it falls back to an earlier rule or to float.
#
# The same rule for the operator by name is refused with a ValueError. So a recipe of one rule, 4-bit weights everywhere,
# leaves a depthwise convolution in float32.
#
# Seen (ai-edge-quantizer 0.10.0, ai-edge-litert 2.3.0), a file of one depthwise convolution, static_wi4_ai8:
#   rule for *: the weight is FLOAT32; rule for DEPTHWISE_CONV_2D: ValueError; rule for * of 8 bits: INT8
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 ai-edge-quantizer==0.10.0 ai-edge-litert==2.3.0 litert-torch==0.10.0
cd "$work"
"$work/venv/bin/python" - 2> "$work/log" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
shown, sys.stdout = sys.stdout, sys.stderr

import litert_torch
import numpy as np
import torch
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer.quantizer import Quantizer
from torch import nn

torch.manual_seed(0)
litert_torch.convert(nn.Conv2d(8, 8, 3, padding=1, groups=8).eval(), (torch.randn(1, 8, 6, 6),)).export("float.tflite")
SAMPLES = {"serving_default": [{"args_0": np.random.default_rng(0).normal(size=(1, 8, 6, 6)).astype(np.float32)}]}


def stored(operation, bits):
    config = {
        "activation_tensor_config": {"num_bits": 8, "symmetric": False, "granularity": "TENSORWISE", "dtype": "INT"},
        "weight_tensor_config": {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"},
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
    }
    rule = {
        "regex": ".*", "operation": operation, "algorithm_key": "min_max_uniform_quantize", "op_config": config,
    }
    tool = Quantizer("float.tflite", [rule])
    done = tool.quantize(tool.calibrate(SAMPLES))
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(done.quantized_model))
    types = {number: name for name, number in vars(flatbuffer_utils.TensorType).items() if isinstance(number, int)}
    for operator in model.subgraphs[0].operators:
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) == "DEPTHWISE_CONV_2D":
            return types[model.subgraphs[0].tensors[operator.inputs[1]].type]
    raise RuntimeError("no depthwise convolution in the file")


print("ai-edge-quantizer", version("ai-edge-quantizer"), "ai-edge-litert", version("ai-edge-litert"), file=shown)
everywhere, eight = stored("*", 4), stored("*", 8)
print(f"rule for *, 4 bits: {everywhere}; rule for *, 8 bits: {eight}", file=shown)
try:
    named = stored("DEPTHWISE_CONV_2D", 4)
except ValueError as error:
    named = type(error).__name__
print(f"rule for DEPTHWISE_CONV_2D, 4 bits: {named}", file=shown)
assert (everywhere, eight, named) == ("FLOAT32", "INT8", "ValueError")
print("as described", file=shown)
PYTHON
