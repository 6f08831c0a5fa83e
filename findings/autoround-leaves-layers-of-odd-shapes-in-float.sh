#!/usr/bin/env bash
# AutoRound 0.16.1: an entry of `layer_config` that asks for 4 bits is replaced by one of 16 bits, without a warning, where
# a side of the layer's weight is no multiple of 32 and the default scheme leaves activations in float, as W4A16 does.
#
# `apply_layer_config_special_cases` (compressors/layer_config_resolver.py) writes bits=16 into the entry of every such layer,
# whatever its own scheme and whoever wrote it. The same entry is kept under a default scheme with quantized activations
# (INT8), though the layer's own activations are in float in both runs. The only trace is the list of layers that are not
# quantized, in the last line of the log.
#
# Seen (auto-round 0.16.1, transformers 5.24.0, torch 2.13.0, CPU), Llama of hidden size 64, intermediate size 80, entries of
# 4 bits, group_size -1, act_bits 16:
#   default W4A16: q_proj 4 bits, 16 values a row; up_proj 16 bits, 64 values a row (it has 64 inputs: float)
#   default INT8:  q_proj 4 bits, 16 values a row; up_proj  4 bits, 16 values a row
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==5.24.0 auto-round==0.16.1
cd "$work"
"$work/venv/bin/python" - 2> "$work/log" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import os
import sys
import warnings

warnings.simplefilter("ignore")
os.environ |= {"AR_DISABLE_DATASET_SUBPROCESS": "1", "HF_HUB_OFFLINE": "1"}
from importlib.metadata import version

shown, sys.stdout = sys.stdout, sys.stderr

import torch
from auto_round import AutoRound
from auto_round.calib_dataset import register_dataset
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(0)).tolist()
ENTRY = {
    "bits": 4, "group_size": -1, "sym": True, "data_type": "int", "act_bits": 16, "act_data_type": "float",
}
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")


@register_dataset("tokens")
def tokens(*_, **__):
    return Dataset.from_list([{"input_ids": row, "attention_mask": [1] * 32} for row in ROWS])


def quantized(scheme):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=80, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )
    tool = AutoRound(
        LlamaForCausalLM(config).float().eval(),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        scheme=scheme,
        layer_config={name: dict(ENTRY) for name in LAYERS},
        dataset="tokens",
        nsamples=8,
        seqlen=32,
        iters=0,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    model, _ = tool.quantize()
    read = {}
    for name in LAYERS:
        layer = model.get_submodule(name)
        layer = getattr(layer, "orig_layer", layer)
        read[name.rpartition(".")[2]] = layer.bits, max(len(row.unique()) for row in layer.weight)
    return read


print("auto-round", version("auto-round"), "transformers", version("transformers"), "torch", torch.__version__, file=shown)
for scheme, expected in (("W4A16", 16), ("INT8", 4)):
    read = quantized(scheme)
    print(f"default {scheme}:", *(f"{name} {bits} bits, {values} values a row;" for name, (bits, values) in read.items()), file=shown)
    assert read["q_proj"] == (4, 16), read
    assert read["up_proj"] == (expected, 64 if expected == 16 else 16), read
print("as described", file=shown)
PYTHON
