"""A network of five layers on noise, as the command line takes it: a run takes seconds."""

import torch
from torch import nn


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    network, generator = model(), torch.Generator().manual_seed(1)
    images = torch.randn(6, 16, 1, 6, 6, generator=generator)
    with torch.no_grad():
        return [(batch, network(batch).argmax(1)) for batch in images]
