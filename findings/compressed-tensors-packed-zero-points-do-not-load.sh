#!/usr/bin/env bash
# compressed-tensors 0.20.1 writes pack-quantized weights with zero points, and transformers 5.23.0 does not load them again
# by that library.
#
# The compressor packs the zero points of 4 bits into words of 32 bits. The same library, asked by transformers for an empty
# model to load into, makes `weight_zero_point` of the unpacked size there, so the sizes differ and loading fails. Without
# zero points the same folder loads.
#
# Seen (CPU, a Llama of random weights, each Linear quantized by a scale a channel):
#   4 bits symmetric, packed: loads; 4 bits with zero points, packed: sizes of weight_zero_point differ
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.1
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - 2> "$work/log" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import sys
from importlib.metadata import version

shown, sys.stdout = sys.stdout, sys.stderr

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus, apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import LlamaConfig, LlamaForCausalLM


def written(symmetric):
    """A folder with every Linear but the head in 4 bits, as the library packs it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    args = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            low, high = module.weight.amin(1, keepdim=True), module.weight.amax(1, keepdim=True)
            scale, zero_point = calculate_qparams(low, high, args)
            module.weight_scale.data = scale
            if not symmetric:
                module.weight_zero_point.data = zero_point.to(module.weight_zero_point.dtype)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    folder = "symmetric" if symmetric else "zero_points"
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder


print("compressed-tensors", version("compressed-tensors"), "transformers", version("transformers"), file=shown)
for symmetric in (True, False):
    folder = written(symmetric)
    try:
        _, told = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
        wrong = sorted(str(name) for name in told["mismatched_keys"])
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    print(f"{folder}: {'loads' if not wrong else wrong[0][:160]}", file=shown)
    assert bool(wrong) != symmetric, "zero points load now" if not wrong else wrong
    assert symmetric or all("zero_point" in each for each in wrong), wrong
print("as described", file=shown)
PYTHON
