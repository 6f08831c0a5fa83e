"""What a file of this folder loads: a network, its data, and the measure that its users use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixbit.core.task import Task

SEED = 0
#: (outputs, those of the float network, labels or None) -> a value for each sample [N], float64.
Values = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Measure:
    """What users of a network look at: the mean of a value of each sample, or the exponential of that mean.

    Attributes:
        name: Of the measure, with its unit.
        values: The value of each sample.
        higher_is_better: Whether a network with more of it is better.
        exponential: Whether the measure is the exponential of the mean, as perplexity is.
    """

    name: str
    values: Values
    higher_is_better: bool = True
    exponential: bool = False


@dataclass(frozen=True)
class Network:
    """A trained network with data.

    Attributes:
        name: That of its file.
        model: In eval mode; it returns one tensor.
        calibration: Batches as `mixbit.auto_quantize` takes them, with labels where there are any.
        evaluation: The same, of other samples; the measure's labels are these.
        task: What the outputs mean.
        measure: What its users look at.
    """

    name: str
    model: nn.Module
    calibration: Sequence[Any]
    evaluation: Sequence[Any]
    task: Task
    measure: Measure


def batches(size: int, *parts: Tensor) -> list[Any]:
    """Samples in batches of that size: tensors, or tuples of inputs and labels."""
    cut = [part.split(size) for part in parts]
    return list(cut[0]) if len(cut) == 1 else list(zip(*cut, strict=True))


def shuffled(count: int) -> Tensor:
    """The numbers of so many samples, in an order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED))


def _agreement(outputs: Tensor, floats: Tensor, _: None) -> Tensor:
    return (outputs.argmax(1) == floats.argmax(1)).double()


def _accuracy(outputs: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).double()


def _nats(outputs: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none").double().mean(1)


def _cosine(outputs: Tensor, floats: Tensor, _: None) -> Tensor:
    return functional.cosine_similarity(outputs.double(), floats.double(), dim=1)


#: Share of samples whose top answer is that of the float network.
AGREEMENT = Measure("agreement with float", _agreement)
#: Share of samples whose top answer is right.
ACCURACY = Measure("accuracy", _accuracy)
#: Exponential of the mean loss of the next token, in nats.
PERPLEXITY = Measure("perplexity", _nats, higher_is_better=False, exponential=True)
#: Cosine of an embedding with that of the float network.
COSINE = Measure("cosine with float", _cosine)
