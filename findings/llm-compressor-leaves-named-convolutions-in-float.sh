#!/usr/bin/env bash
# compressed-tensors 0.19.0, by which llm-compressor 0.14.0.1 applies its recipes: a convolution that `config_groups` names
# stays in float, without an error or a warning, and counts as matched.
#
# A target that matches no module is answered with a warning ("Could not match"). One that matches a module of another kind
# than Linear, Embedding or attention is passed over in `apply_quantization_config` (quantization/lifecycle/apply.py), so a
# network with a patch embedding, say, is compressed with fewer layers than its recipe says.
#
# Seen (compressed-tensors 0.19.0, torch 2.13.0), targets 0, 2 and nothing:
#   0 (Conv2d): no scheme; 2 (Linear): 4 bits; warned of: nothing
# Fails when this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
from importlib.metadata import version

import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from torch import nn

warned = []
handler = logging.Handler()
handler.emit = lambda record: warned.append(record.getMessage())
logging.getLogger("compressed_tensors").addHandler(handler)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4))
group = {"targets": ["0", "2", "nothing"], "weights": {"num_bits": 4, "strategy": "channel"}}
apply_quantization_config(net, QuantizationConfig(config_groups={"group": group}), show_progress=False)
print("compressed-tensors", version("compressed-tensors"), "torch", torch.__version__)
schemes = {name: getattr(net[int(name)], "quantization_scheme", None) for name in ("0", "2")}
for name, scheme in schemes.items():
    kind = type(net[int(name)]).__name__
    print(f"{name} ({kind}): {f'{scheme.weights.num_bits} bits' if scheme else 'no scheme'}")
print("warned of:", *warned)
assert schemes["0"] is None, "the convolution is quantized now"
assert schemes["2"].weights.num_bits == 4
assert any("nothing" in text for text in warned)
assert not any("`0`" in text for text in warned), "it warns now"
print("as described")
PYTHON
