"""llm-compressor on a small Llama: `oneshot` reads the file, and the schemes and scales stand on its modules."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.recipe_tools._llama import LENGTH, data, saved, tokenizer
from benchmarks.recipe_tools._read import TORCH, Read, levels

REQUIREMENTS, ALONE = (TORCH, "llmcompressor==0.14.0.1"), ()
FLOAT = "float32"
PLAN = {
    "model.embed_tokens.weight": "w8",
    "model.layers.0.self_attn.q_proj.weight": "w4g32",
    "model.layers.0.self_attn.k_proj.weight": "w3",
    "model.layers.0.self_attn.v_proj.weight": "w8a8",
    "model.layers.0.self_attn.o_proj.weight": "w5",
    "model.layers.0.mlp.gate_proj.weight": "w4g64z",
    "model.layers.0.mlp.up_proj.weight": "w2a8dr",
    "model.layers.0.mlp.down_proj.weight": "float",
    "model.layers.1.self_attn.q_proj.weight": "w4a4dg32",
    "model.layers.1.self_attn.k_proj.weight": "w8t",
    "model.layers.1.self_attn.v_proj.weight": "w6a16d",
    "model.layers.1.self_attn.o_proj.weight": "w7z",
    "model.layers.1.mlp.gate_proj.weight": "w8a8d",
    "model.layers.1.mlp.up_proj.weight": "w4a6",
    "model.layers.1.mlp.down_proj.weight": "w3g128",
    "lm_head.weight": "w6",
}


def apply(recipe: Path) -> dict[str, Read]:
    """Quantize by the file, and read the modules back."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor import oneshot

    with TemporaryDirectory() as folder:
        model = saved(Path(folder))
        options = {"max_seq_length": LENGTH, "num_calibration_samples": 8}
        oneshot(model=model, recipe=str(recipe), dataset=data(), tokenizer=tokenizer(), **options)
    read = {}
    for layer in PLAN:
        module = model.get_submodule(layer.removesuffix(".weight"))
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            read[layer] = Read(FLOAT, FLOAT, levels(module.weight))
            continue
        weight = fake_quantize(module.weight, module.weight_scale, module.weight_zero_point, scheme.weights)
        inputs = scheme.input_activations
        groups = module.weight.shape[1] // (scheme.weights.group_size or module.weight.shape[1])
        read[layer] = Read(scheme.weights.num_bits, inputs.num_bits if inputs else FLOAT, levels(weight, groups))
    return read
