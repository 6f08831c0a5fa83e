#!/usr/bin/env bash
# llm-compressor 0.14.0.1: where a recipe needs calibration data, the scales of an embedding that it names are never set. They
# hold whatever the memory held, the module is marked as frozen, nothing is said, and the network's answers are noise.
#
# A recipe needs data where any layer has static activations, or by GPTQ. Then the sequential pipeline tells modifiers the
# modules of each subgraph (pipelines/sequential), and the embedding is not among them: QuantizationModifier does not observe
# its weight. The same group in a recipe without data is right. A modifier of its own for the embedding, with weights alone
# ("ignore: [Linear]"), is right too, as it takes the pipeline without data.
#
# Seen (llmcompressor 0.14.0.1, compressed-tensors 0.19.0, torch 2.13.0, CPU), Llama of random weights, embedding of 8 bits with
# a scale a row; error of the table / its norm:
#   alone: 0.006; beside a layer with 8-bit static activations, and by GPTQ: 0.9 to 1, or NaN (scales such as 1e-37, -6e25)
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 llmcompressor==0.14.0.1
cd "$work"
HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false "$work/venv/bin/python" -W ignore - 2> "$work/log" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import sys
from importlib.metadata import version

shown, sys.stdout = sys.stdout, sys.stderr

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )
).save_pretrained("model")
ROWS = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(0)).tolist()
DATA = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * 32} for row in ROWS])
WEIGHTS = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
TABLE = {"targets": ["model.embed_tokens"], "weights": WEIGHTS}
LINEAR = {"targets": ["model.layers.0.self_attn.q_proj"], "weights": WEIGHTS}
STATIC = LINEAR | {"input_activations": {"num_bits": 8, "symmetric": False, "strategy": "tensor", "dynamic": False}}


def error(modifier):
    model = LlamaForCausalLM.from_pretrained("model").float().eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="pad")
    oneshot(
        model=model, recipe=modifier, dataset=DATA, tokenizer=tokenizer, max_seq_length=32, num_calibration_samples=8
    )
    table = model.model.embed_tokens
    rounded = fake_quantize(table.weight, table.weight_scale, table.weight_zero_point, table.quantization_scheme.weights)
    return float((rounded - table.weight).norm() / table.weight.norm()), table.weight_scale.flatten()[:3].tolist()


print("llmcompressor", version("llmcompressor"), "compressed-tensors", version("compressed-tensors"), "torch", torch.__version__, file=shown)
for name, modifier, right in (
    ("alone", QuantizationModifier(config_groups={"a": TABLE, "b": LINEAR}), True),
    ("beside static activations", QuantizationModifier(config_groups={"a": TABLE, "b": STATIC}), False),
    ("by GPTQ", GPTQModifier(config_groups={"a": TABLE, "b": LINEAR}), False),
):
    found, scales = error(modifier)
    print(f"{name}: error {found:.3f}, scales {scales}", file=shown)
    assert (found < 0.02) == right, f"{name}: the scales are {'wrong' if right else 'set'} now"
print("as described", file=shown)
PYTHON
