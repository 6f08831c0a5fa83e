"""A small causal language model of characters, trained here on a text such as tinyshakespeare.

    python -m benchmarks.gpt out.safetensors      # trains for about ten minutes on two cores, seeded

Four blocks of width 128, four heads, 128 characters of context: 0.8 M parameters.
"""

import argparse
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import paths
from mixbit.core import track

WIDTH, HEADS, BLOCKS, CONTEXT = 128, 4, 4, 128
STEPS, BATCH, RATE, SEED = 1500, 32, 1e-3, 0
#: The last tenth of the text is never trained on.
HELD_OUT = 0.1


class Block(nn.Module):
    """Causal self-attention, then two linear layers, each after a layer norm and added to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map states [N, T, WIDTH] to states."""
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Network(nn.Module):
    """Logits of the next character [N, T, C] from characters [N, T]."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, WIDTH)
        self.positions = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_characters)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters [N, CONTEXT] to logits [N, CONTEXT, C]."""
        return self.head(self.norm(self.blocks(self.characters(x) + self.positions)))


def encoded(source: Path) -> tuple[Tensor, Tensor, int]:
    """Numbers of the text's characters, training and held-out part, and how many characters there are."""
    text = source.read_text("utf-8")
    characters = sorted(set(text))
    numbers = torch.tensor([characters.index(one) for one in text])
    cut = int(len(numbers) * (1 - HELD_OUT))
    return numbers[:cut], numbers[cut:], len(characters)


def windows(numbers: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Characters and the ones that follow them, [count, CONTEXT] each, from places drawn by the generator."""
    starts = torch.randint(0, len(numbers) - CONTEXT, (count,), generator=generator)
    rows = torch.stack([numbers[start : start + CONTEXT + 1] for start in starts.tolist()])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def train(source: Path) -> Network:
    """The network after STEPS steps of AdamW with a cosine schedule; seeded."""
    numbers, _, num_characters = encoded(source)
    torch.manual_seed(SEED)
    network = Network(num_characters)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(
                parameter, std=0.02 if "out" not in name and "down" not in name else 0.02 / (2 * BLOCKS) ** 0.5
            )
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.05)
    generator = torch.Generator().manual_seed(SEED)
    for _ in track(range(STEPS), "train"):
        inputs, targets = windows(numbers, BATCH, generator)
        loss = functional.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


def load(weights: Path, source: Path) -> Network:
    """The network with the weights that this script wrote."""
    network = Network(encoded(source)[2])
    network.load_state_dict(safetensors.torch.load_file(weights))
    return network.eval()


def held_out_batches(source: Path, count: int, size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Characters and the ones that follow them, from the held-out part: `count` windows in batches of `size`."""
    inputs, targets = windows(encoded(source)[1], count, torch.Generator().manual_seed(seed))
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def main() -> None:
    """Train, print the held-out loss, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    source = paths.require("MIXBIT_TEXT")
    network = train(source)
    with torch.no_grad():
        losses = [
            functional.cross_entropy(network(x).flatten(0, 1), y.flatten())
            for x, y in held_out_batches(source, 512, 64)
        ]
    print(f"held-out loss {torch.stack(losses).mean():.4f} nats")
    safetensors.torch.save_file(network.state_dict(), out)


if __name__ == "__main__":
    main()
