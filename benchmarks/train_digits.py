"""Train DigitsNet again: `python -m benchmarks.train_digits --out DIR` writes DIR/digits_net.safetensors.

The same release of torch on the same kind of processor gives the shipped file bit for bit.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core import track
from mixbit.demo import data
from mixbit.demo.network import DigitsNet

NUM_EPOCHS = 30
LEARNING_RATE = 0.005
WEIGHT_DECAY = 0.05


def train(*, num_epochs: int = NUM_EPOCHS, seed: int = 0) -> DigitsNet:
    """Train on the 1,000 training images, each shifted by up to one pixel: AdamW, cosine rate, one thread.

    Equal arguments give equal weights. Returns the network in eval mode.
    """
    images, labels = data.split()[0]
    generator = torch.Generator().manual_seed(seed)
    with reproducible(seed):
        network = DigitsNet()
        num_steps = num_epochs * -(-len(images) // data.BATCH_SIZE)
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for _ in track(range(num_epochs), "training on the digits"):
            for drawn in torch.randperm(len(images), generator=generator).split(data.BATCH_SIZE):
                logits = network(data.normalise(shift(images[drawn], generator)))
                optimizer.zero_grad()
                F.cross_entropy(logits, labels[drawn].to(torch.int64)).backward()
                optimizer.step()
                schedule.step()
    return network.eval()


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run the block on one thread with deterministic kernels and this seed; put torch's settings back after."""
    num_threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(deterministic)


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image of [N, 8, 8] by -1, 0 or 1 pixel in both directions; background (0) fills what is uncovered."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(1, 8, 1).unfold(2, 8, 1)  # [N, 3, 3, 8, 8]
    down, right = torch.randint(3, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), down, right]


@torch.no_grad()
def accuracy(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Share of the labels in 0..1 that the network, as it is (eval mode or not), gives the largest logit."""
    correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)
    return correct / sum(len(labels) for _, labels in batches)


def main() -> None:
    """Train, write the weights and say how accurate they are on the test images."""
    parser = argparse.ArgumentParser(description="Train DigitsNet and write DIR/digits_net.safetensors.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help=f"default {NUM_EPOCHS}, as shipped")
    arguments = parser.parse_args()
    network = train(num_epochs=arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "digits_net.safetensors"
    path.write_bytes(safetensors.torch.save(network.state_dict()))
    print(f"{path}: test accuracy {accuracy(network, data.test_batches()):.2%}")


if __name__ == "__main__":
    main()
