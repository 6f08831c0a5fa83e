"""What studies in tests are about: small enough to make again in every process, and importable there."""

import functools
import itertools

import numpy as np
import torch
from torch import nn

from mixbit.core.errors import InvalidInput
from mixbit.core.task import Loss, Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.metrics import Estimate, MetricInput


@functools.cache
def small_subject(labelled: bool = True, seed: int = 0, loss: Loss | None = None) -> tuple[Graph, list, list, Task]:
    """Five layers, the labels what the network answers, so that its accuracy is 1; made once, since none changes it."""
    torch.manual_seed(seed)
    sizes = (6, 10, 9, 8, 7, 4)
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (nn.Tanh(), layer)]).eval()
    x = torch.randn(96, 6)
    with torch.no_grad():
        layers[-1].bias -= model(x).mean(0)  # so that every class is the answer to some
        labels = model(x).argmax(1)
    evaluation = [(x[i : i + 33], labels[i : i + 33]) if labelled else x[i : i + 33] for i in (0, 33, 66)]
    task = Task.classification() if loss is None else Task.classification().with_loss(loss)
    return capture(model, x[:2]), [x[:32], x[32:64]], evaluation, task


def few_bits(inputs: MetricInput) -> Estimate:
    """A metric: the error variance of each width, times the number of weights."""
    loss = np.array([[layer.numel * 4.0**-scheme.weight_bits for scheme in inputs.schemes] for layer in inputs.layers])
    return Estimate(loss, np.zeros_like(loss), 1)


def constant(inputs: MetricInput) -> Estimate:
    """A metric that tells no choices apart."""
    loss = np.full((len(inputs.layers), len(inputs.schemes)), 0.1)
    return Estimate(loss, np.zeros_like(loss), 1)


def needs_labels(inputs: MetricInput) -> Estimate:
    """A metric that cannot do without labels."""
    if any(labels is None for _, labels in inputs.batches):
        raise InvalidInput("this metric needs labels: give batches that end with them")
    return constant(inputs)
