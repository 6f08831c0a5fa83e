#!/usr/bin/env bash
# NVIDIA ModelOpt 0.47.0: auto_quantize keeps its effective_bits over the layers that it quantizes alone. An embedding
# stays in float and is not counted, even where allow_no_quant is False for every module.
#
# Its documentation calls effective_bits "the effective number of bits for the quantized model". A network for which 4 are
# asked takes more by as much as its tables are large: ModelOpt says 4.00 bits, and the weights of the network below have
# a mean of 23; with an embedding of half a percent of the weights it would be 4.14.
#
# Seen (nvidia-modelopt 0.47.0, torch 2.13.0, CPU), effective_bits 4, every module of 2, 3, 4, 6 or 8 bits:
#   embedding of 65,536 numbers: 32 bits; two linear layers of 16,384: 4 bits each; said: 4.0; mean of all: 22.7
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 nvidia-modelopt==0.47.0 requests==2.34.2 huggingface_hub==2.4.0
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import os
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")

import torch
from modelopt.torch import quantization
from torch import nn
from torch.nn import functional

WORDS, WIDTH, HIDDEN, ASKED = 1024, 64, 256, 4.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, words):
        return self.head(functional.relu(self.body(self.table(words).mean(1))))


def recipe(bits):
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        ],
        "algorithm": "max",
    }


torch.manual_seed(0)
batches = [(torch.randint(0, WORDS, (16, 20)), torch.randint(0, WIDTH, (16,))) for _ in range(4)]
formats = [recipe(bits) for bits in (2, 3, 4, 6, 8)]
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    small, state = quantization.auto_quantize(
        Net().eval(),
        {"effective_bits": ASKED},
        module_search_spaces=[
            {"module_name_patterns": ["*"], "quantization_formats": formats, "allow_no_quant": False}
        ],
        data_loader=batches,
        forward_step=lambda model, batch: model(batch[0]),
        loss_func=lambda output, batch: functional.cross_entropy(output, batch[1]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
    )
print("nvidia-modelopt", version("nvidia-modelopt"), "torch", torch.__version__)
stored = {}
for name in ("table", "body", "head"):
    layer = getattr(small, name)
    bits = layer.weight_quantizer.num_bits if layer.weight_quantizer.is_enabled else 32
    stored[name] = layer.weight.numel(), bits
    print(f"{name}: {layer.weight.numel():,} numbers of {bits} bits")
said = float(state["best"]["constraints"]["effective_bits"])
mean = sum(numel * bits for numel, bits in stored.values()) / sum(numel for numel, _ in stored.values())
print(f"asked {ASKED}, said {said:.2f}, mean of all weights {mean:.2f}")
assert said <= ASKED
assert stored["table"][1] == 32, "the embedding is quantized now"
assert mean > 5 * ASKED
print("as described")
PYTHON
