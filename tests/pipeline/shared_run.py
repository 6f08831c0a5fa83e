"""A run to share out: small enough to make again in every process, and importable there."""

import functools
import itertools
import multiprocessing
import time

import torch
from torch import Tensor, nn

from mixbit.core import Task, split_batches
from mixbit.graph import Graph
from mixbit.graph.capture import capture
from mixbit.targets.verify import Artefact


@functools.cache
def given() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Four layers, calibration batches and data to report on, with labels that are the network's own answers."""
    torch.manual_seed(0)
    sizes = (6, 24, 16, 12, 4)
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (nn.Tanh(), layer)]).eval()
    x = torch.randn(192, 6)
    with torch.no_grad():
        layers[-1].bias -= model(x).mean(0)
        labels = model(x).argmax(1)
    pairs = list(zip(x.split(16), labels.split(16), strict=True))
    return model, pairs[:8], pairs[8:]


def setup(moved: float = 0.0, task: Task | None = None) -> tuple:
    """What processes make again; other weights where they are moved."""
    model, calibration, evaluation = given()
    if moved:
        torch.manual_seed(0)
        model = nn.Sequential(*model).eval()
        next(iter(model.parameters())).data.add_(moved)
    return (model, calibration, evaluation) if task is None else (model, calibration, evaluation, task)


def score(model: nn.Module, batches) -> float:
    """Minus the mean square of what the network returns."""
    return -sum(float(model(x).square().mean()) for x, _ in batches)


@functools.cache
def case() -> tuple[Graph, list, list, Task]:
    """The captured network, with data to calibrate and to evaluate on, and its task."""
    model, calibration, evaluation = given()
    graph = capture(model, calibration[0][0])
    return graph, split_batches(model, calibration), split_batches(model, evaluation), Task.classification()


def agreeing(model: nn.Module, batches) -> float:
    """The share of right answers; never ends on a simulation in another process."""
    while multiprocessing.parent_process() is not None and not isinstance(model, Artefact):
        time.sleep(1)
    return torch.cat([model(x).argmax(1) == labels for x, labels in batches]).double().mean().item()
