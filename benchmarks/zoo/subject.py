"""What the zoo holds: a trained network with data, and how one is trained in a few seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEED, BATCH = 0, 16
#: Share of the steps that a subject is trained for; tests need fewer.
EFFORT = 1.0
#: Batches to calibrate on, and to compare outputs on.
CALIBRATION, TEST = 8, 4

#: (samples, generator) -> the inputs, and the target last.
Draw = Callable[[int, torch.Generator], tuple[Any, ...]]


@dataclass(frozen=True)
class Subject:
    """A network with data.

    Attributes:
        model: Trained, in eval mode.
        calibration: Batches as `mixbit.auto_quantize` takes them.
        test: The same, not calibrated on.
        task: The task, as `Task.named` reads it.
    """

    model: nn.Module
    calibration: list[Any]
    test: list[Any]
    task: str


def trained(
    build: Callable[[], nn.Module],
    draw: Draw,
    loss: Callable[[Any, Any], Tensor],
    task: str,
    *,
    steps: int = 120,
    rate: float = 3e-3,
    labelled: bool = True,
) -> Subject:
    """A network after some steps of AdamW on fresh data; seeded, and the caller's random numbers stay as they are.

    Args:
        build: Makes the network, with random weights.
        draw: Makes data.
        loss: Of what the network returns and the target.
        task: What the outputs mean.
        steps: Of BATCH samples each.
        rate: Largest learning rate; it falls to 0 along a cosine.
        labelled: Whether the batches end with the target.
    """
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network, generator = build().train(), torch.Generator().manual_seed(SEED + 1)
        optimizer = torch.optim.AdamW(network.parameters(), rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(round(EFFORT * steps)):
            *inputs, target = draw(BATCH, generator)
            optimizer.zero_grad()
            loss(network(*inputs), target).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)
    batches = [
        batch if labelled else batch[:-1] for batch in (draw(BATCH, generator) for _ in range(CALIBRATION + TEST))
    ]
    return Subject(network, batches[:CALIBRATION], batches[CALIBRATION:], task)
