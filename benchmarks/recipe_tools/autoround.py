"""AutoRound on a small Llama: `layer_config` is the file, and `quantize` returns the layers and their settings."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.recipe_tools._llama import LENGTH, data, saved, tokenizer
from benchmarks.recipe_tools._read import TORCH, Read, levels

REQUIREMENTS, ALONE = (TORCH, "auto-round==0.16.1"), ()
FLOAT = "float32"
PLAN = {
    "model.layers.0.self_attn.q_proj.weight": "w4g32",
    "model.layers.0.self_attn.k_proj.weight": "w3",
    "model.layers.0.self_attn.v_proj.weight": "w8a8",
    "model.layers.0.self_attn.o_proj.weight": "w5",
    "model.layers.0.mlp.gate_proj.weight": "w4g64z",
    "model.layers.0.mlp.up_proj.weight": "w2a8dr",
    "model.layers.0.mlp.down_proj.weight": "float",
    "model.layers.1.self_attn.q_proj.weight": "w4a4dg32",
    "model.layers.1.self_attn.k_proj.weight": "w8t",
    "model.layers.1.self_attn.v_proj.weight": "w6a8d",
    "model.layers.1.self_attn.o_proj.weight": "w7z",
    "model.layers.1.mlp.gate_proj.weight": "w8",
    "model.layers.1.mlp.up_proj.weight": "w4a6",
    "model.layers.1.mlp.down_proj.weight": "w3g128",
    "lm_head.weight": "w8g32",
}


def apply(recipe: Path) -> dict[str, Read]:
    """Quantize by the file, and read the modules back."""
    os.environ |= {"AR_DISABLE_DATASET_SUBPROCESS": "1", "HF_HUB_OFFLINE": "1"}
    from auto_round import AutoRound
    from auto_round.calib_dataset import register_dataset

    register_dataset("recipe")(lambda *_, **__: data())
    with TemporaryDirectory() as folder:
        tool = AutoRound(
            saved(Path(folder)),
            tokenizer=tokenizer(),
            layer_config=json.loads(recipe.read_text()),
            dataset="recipe",
            nsamples=8,
            seqlen=LENGTH,
            iters=0,
            device_map="cpu",
            amp=False,
            enable_torch_compile=False,
        )
        model, _ = tool.quantize()
    read = {}
    for layer in PLAN:
        module = model.get_submodule(layer.removesuffix(".weight"))
        module = getattr(module, "orig_layer", module)
        weight = module.weight
        groups = weight.shape[1] // module.group_size if module.bits < 16 and module.group_size > 0 else 1
        bits = (bits if bits < 16 else FLOAT for bits in (module.bits, module.act_bits))
        read[layer] = Read(*bits, levels(weight, groups))
    return read
