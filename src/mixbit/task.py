"""Tasks: how to run the model on a batch, and what its output means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.errors import InvalidInput


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call: positional or by keyword."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> "Inputs":
        """From a tensor, a tuple or list, or a dict of keyword arguments; inputs themselves stay as they are.

        Raises:
            InvalidInput: for anything else.
        """
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return cls((), dict(inputs))
        if isinstance(inputs, tuple | list):
            return cls(tuple(inputs), {})
        if isinstance(inputs, Tensor):
            return cls((inputs,), {})
        raise InvalidInput(f"inputs: a {type(inputs).__name__}; give a tensor, a tuple or a dict of tensors")

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same inputs with the function applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def to(self, device: torch.device) -> "Inputs":
        """The same inputs on that device."""
        return self.map(lambda leaf: leaf.to(device))

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of the call."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def rows(self, index: Any) -> "Inputs":
        """The same inputs with these samples of every tensor that has samples."""
        return self.map(lambda leaf: leaf[index] if leaf.ndim > 0 else leaf)

    @property
    def batch_size(self) -> int:
        """Size of the first dimension, which all tensors share; raises InvalidInput where they do not."""
        sizes = {leaf.shape[0] for leaf in self.tensors if leaf.ndim > 0}
        if len(sizes) != 1:
            raise InvalidInput(f"inputs {self.describe()}: the first dimensions must be one batch size, found {sizes}")
        return sizes.pop()

    def describe(self) -> str:
        """Shapes and names, for messages."""
        tree = pytree.tree_map_only(Tensor, lambda leaf: tuple(leaf.shape), (self.args, dict(self.kwargs)))
        return " ".join(str(part) for part in tree if part) or "()"


@dataclass(frozen=True)
class Task:
    """What the output of the model means.

    Attributes:
        name: `classification` or `regression`.
        draw: (outputs [N, C], generator) -> scalar whose gradient by output n is a random vector with mean 0 and the
            Fisher information of sample n as covariance.
        divergence: (reference [N, C], outputs [N, C]) -> [N] Kullback-Leibler divergence in nats.
        has_accuracy: Whether "the top answer" and labels make sense.
    """

    name: str
    draw: Callable[[Tensor, torch.Generator], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    has_accuracy: bool

    @classmethod
    def classification(cls) -> "Task":
        """Outputs are logits [N, C] of a categorical distribution; labels are class numbers [N]."""
        return cls("classification", _draw_categorical, _divergence_categorical, has_accuracy=True)

    @classmethod
    def regression(cls) -> "Task":
        """Outputs are means of Gaussians with variance 1, flattened to [N, C]; labels are not used."""
        return cls("regression", _draw_gaussian, _divergence_gaussian, has_accuracy=False)

    @classmethod
    def named(cls, name: str) -> "Task":
        """The task of that name; raises InvalidInput for an unknown one."""
        if name not in TASKS:
            raise InvalidInput(f"task {name!r} is unknown; known: {', '.join(TASKS)}")
        return TASKS[name]()

    def outputs(self, returned: Any) -> Tensor:
        """The output [N, C] in what the model returned: a tensor, the entry `logits`, or the first tensor.

        Raises:
            InvalidInput: there is none, it does not have that shape, or it holds NaN or inf.
        """
        output = output_of(returned)
        if output is None or not output.is_floating_point() or output.ndim == 0:
            raise InvalidInput("the model returns no floating-point tensor with a batch dimension")
        if not torch.isfinite(output).all():
            raise InvalidInput(
                "the model returns NaN or inf; leave out samples that it cannot handle, mask with finite numbers"
            )
        if self.name == "regression":
            return output.flatten(1) if output.ndim > 1 else output.unsqueeze(1)
        if output.ndim != 2 or output.shape[1] < 2:
            raise InvalidInput(
                f"classification needs outputs [N, C] with two classes or more, the model returns "
                f"{list(output.shape)}; use task regression for anything else"
            )
        return output

    def check_labels(self, labels: Tensor, num_outputs: int) -> None:
        """Raise InvalidInput unless the labels are class numbers from 0 to num_outputs - 1."""
        if not self.has_accuracy:
            return
        if not isinstance(labels, Tensor):
            raise InvalidInput(f"labels: a {type(labels).__name__}; give a tensor of whole class numbers [N]")
        if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
            raise InvalidInput(f"labels: {labels.dtype} {list(labels.shape)}; give whole class numbers [N]")
        if labels.numel() == 0:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_outputs:
            raise InvalidInput(f"labels: {low}..{high} found, but the model has classes 0..{num_outputs - 1}")


def output_of(returned: Any) -> Tensor | None:
    """Of what the model returned, the tensor that a task is about: the entry `logits`, else the first one."""
    if isinstance(returned, Mapping) and "logits" in returned:
        returned = returned["logits"]
    return next((leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)), None)


TASKS: dict[str, Callable[[], Task]] = {"classification": Task.classification, "regression": Task.regression}


def _draw_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, logits>, v = sqrt(p) e - p <sqrt(p), e> with random signs e, so that E[v v'] = diag(p) - p p'.

    That is the covariance of the gradient of -log p(y) when y is drawn from the model. Signs reach every class with
    every draw, where a drawn label of a confident network is nearly always the top class and carries no gradient.
    """
    p = logits.detach().softmax(1)
    root = p.sqrt()
    signs = torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1
    v = root * signs - p * (root * signs).sum(1, keepdim=True)
    return (v * logits).sum()


def _divergence_categorical(reference: Tensor, outputs: Tensor) -> Tensor:
    p, q = reference.log_softmax(1), outputs.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _draw_gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, outputs> with random signs v: E[v v'] = 1 is the Fisher information of a unit Gaussian's mean."""
    signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
    return (signs * outputs).sum()


def _divergence_gaussian(reference: Tensor, outputs: Tensor) -> Tensor:
    return 0.5 * (reference - outputs).square().sum(1)
