"""Intel's AutoRound on language models: `AutoScheme` gives each layer 2, 3, 4 or 8 bits in groups of 64.

`rtn` rounds to the nearest on scales that it searches (`iters=0`); `signround` learns roundings and ranges, as its
recipe "light" does. AutoRound takes networks of transformers alone, so that SmolLM2 is made into transformers' Llama,
and their answers are compared first.

It does not quantize a table of tokens that is the head's weight too. It gets the head as a weight of its own therefore,
and what it makes of that is the table's weight as well. `avg_bits` is that of weights without scales, as budgets are.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contest_tools._tool import Job, Method, Quantized, Stored

REQUIREMENTS = ("auto-round==0.16.1",)
METHODS = {name: Method((8, 4.5, 4, 3), weights_only=True) for name in ("rtn", "signround")}
WIDTHS, GROUP = (2, 3, 4, 8), 64
#: Of the recipe "light".
LEARNING = {"iters": 50, "lr": 5e-3}
#: The calibration data's name.
DATA = "contest"
#: Part of SmolLM2's layer -> that of Llama's.
PARTS = {
    "attn_norm": "input_layernorm", "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj", "attn.output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def quantize(job: Job, method: str) -> Quantized:
    """The network as transformers' Llama, with weights as AutoRound rounds them."""
    os.environ |= {"AR_AUTO_SCHEME_CACHE": str(job.folder), "AR_DISABLE_DATASET_SUBPROCESS": "1", "HF_HUB_OFFLINE": "1"}
    from auto_round import AutoRound, AutoScheme
    from auto_round.schemes import QuantizationScheme
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model, (batch, *_) = llama(job.model), job.inputs
    with torch.no_grad():
        torch.testing.assert_close(model(batch).logits, job.model(batch), atol=1e-2, rtol=1e-3)
    _register(job.inputs)
    length = batch.shape[1]
    schemes = [QuantizationScheme(bits=bits, group_size=GROUP, sym=True, data_type="int") for bits in WIDTHS]
    scheme = schemes[-1]
    if job.mean_bits < scheme.bits:  # its model lies in no file from which it could be loaded again
        options = {"ignore_scale_zp_bits": True, "low_cpu_mem_usage": False}
        scheme = AutoScheme(avg_bits=job.mean_bits, options=schemes, seqlen=length, **options)
    tool = AutoRound(
        model,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),  # the data is numbers already
        scheme=scheme,
        dataset=DATA,
        nsamples=sum(map(len, job.inputs)),
        seqlen=length,
        quant_lm_head=True,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
        **LEARNING if method == "signround" else {"iters": 0},
    )
    model, layers = tool.quantize()
    model = model.float().eval()
    model.model.embed_tokens.weight = model.lm_head.weight
    weights = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and layers[name]["bits"] in WIDTHS:
            numel = module.weight.numel()
            weights.append(Stored(numel, layers[name]["bits"], numel // GROUP))
    return Quantized(lambda tokens: model(tokens).logits, weights)


def llama(model: nn.Module) -> Any:
    """SmolLM2 as transformers' Llama, which turns the halves of a head where SmolLM2's file has pairs turned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.networks import smollm2

    config = LlamaConfig(
        vocab_size=smollm2.WORDS,
        hidden_size=smollm2.WIDTH,
        intermediate_size=smollm2.HIDDEN,
        num_hidden_layers=smollm2.LAYERS,
        num_attention_heads=smollm2.HEADS,
        num_key_value_heads=smollm2.GROUPS,
        max_position_embeddings=smollm2.LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": smollm2.BASE},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    state = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.embed.weight,
    }
    for number, layer in enumerate(model.layers):
        for part, name in PARTS.items():
            weight = layer.get_submodule(part).weight
            if part in {"attn.q", "attn.k"}:
                weight = weight.unflatten(0, (-1, smollm2.HEAD // 2, 2)).transpose(1, 2).flatten(0, 2)
            state[f"model.layers.{number}.{name}.weight"] = weight
    made = LlamaForCausalLM(config).float().eval()
    made.load_state_dict(state)
    return made


def _register(inputs: Sequence[Tensor]) -> None:
    """Let AutoRound know the calibration data by its name."""
    from auto_round.calib_dataset import register_dataset
    from datasets import Dataset

    @register_dataset(DATA)
    def data(*_: Any, **__: Any) -> Dataset:
        rows = [row.tolist() for batch in inputs for row in batch]
        return Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
