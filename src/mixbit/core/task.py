"""Tasks: what the output of the model means."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from mixbit.core.errors import InvalidInput, pick
from mixbit.core.io.user_code import users_code

Loss = Callable[[Tensor, Tensor], Tensor]
#: (model, batches) -> a number, the higher the better: the user's own evaluation. A batch is as `as_given` makes it.
Score = Callable[[nn.Module, Sequence[Any]], float]


@dataclass(frozen=True)
class Task:
    """What the output of the model means.

    Attributes:
        name: A key of TASKS.
        draw: (outputs [N, ..., C], generator) -> scalar whose gradient by output n is a random vector with mean 0 and
            the Fisher information of sample n as covariance, averaged over the sample's positions.
        divergence: (reference [N, ..., C], outputs [N, ..., C]) -> [N] KL divergence in nats, the mean of positions.
        has_accuracy: Whether "the top answer" and labels make sense.
        own_loss: (the model's output as it returns it, labels) -> mean loss of the batch; the task's own where None.
    """

    name: str
    draw: Callable[[Tensor, torch.Generator], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    has_accuracy: bool
    own_loss: Loss | None = None

    @classmethod
    def classification(cls) -> "Task":
        """Outputs are logits [N, C] of a categorical distribution; labels are class numbers [N]."""
        return cls("classification", _draw_categorical, _divergence_categorical, has_accuracy=True)

    @classmethod
    def segmentation(cls) -> "Task":
        """Outputs are logits [N, C, ...] of every position; labels are class numbers [N, ...], IGNORED where none."""
        return cls("segmentation", _draw_categorical, _divergence_categorical, has_accuracy=True)

    @classmethod
    def language(cls) -> "Task":
        """Outputs are logits [N, T, C] of every token; labels are token numbers [N, T], IGNORED where none."""
        return cls("language", _draw_categorical, _divergence_categorical, has_accuracy=True)

    @classmethod
    def regression(cls) -> "Task":
        """Outputs, embeddings among them, are means of Gaussians with variance 1, flattened to [N, C]."""
        return cls("regression", _draw_gaussian, _divergence_gaussian, has_accuracy=False)

    @classmethod
    def named(cls, name: str) -> "Task":
        """The task of that name; raises InvalidInput for an unknown one."""
        return getattr(cls, pick("task", name, TASKS))()

    def with_loss(self, loss: Loss) -> "Task":
        """The same task under the user's own mean loss of (output, labels); metrics then need labels."""
        return dataclasses.replace(self, own_loss=loss)

    def outputs(self, returned: Any) -> Tensor:
        """The output [N, ..., C] in what the model returned: a tensor, the entry `logits`, or the first tensor.

        Raises InvalidInput where there is none, it does not have that shape, or it holds NaN or inf.
        """
        output = _output(returned)
        if self.name == "regression":
            return output.flatten(1) if output.ndim > 1 else output.unsqueeze(1)
        wanted, axis = _SHAPES[self.name]
        fits = output.ndim == 2 if self.name == "classification" else output.ndim >= 3
        if not fits or output.shape[axis] < 2:
            raise InvalidInput(
                f"{self.name} needs outputs {wanted} with two classes or more, the model returns "
                f"{list(output.shape)}; other tasks are {', '.join(name for name in TASKS if name != self.name)}"
            )
        return output if output.ndim == 2 else output.movedim(axis, -1)

    def loss(self, returned: Any, labels: Tensor | None) -> Tensor:
        """The mean loss of a batch in nats: the user's own, cross-entropy, or half the squared distance.

        Raises InvalidInput where labels are missing or do not fit, or the loss is not one finite number.
        """
        if labels is None:
            wants = "this metric" if self.own_loss is None else "a loss of your own"
            raise InvalidInput(f"{wants} needs labels, and a batch has none: give batches that end with them")
        outputs = self.outputs(returned)
        labels = labels.to(outputs.device)
        if self.own_loss is not None:
            return _own_loss(self.own_loss, _output(returned), labels)
        if not self.has_accuracy:
            if labels.shape[:1] != outputs.shape[:1] or labels.numel() != outputs.numel():
                raise InvalidInput(f"labels: {list(labels.shape)} for outputs {list(outputs.shape)}")
            if labels.is_complex() or not torch.isfinite(labels).all():
                raise InvalidInput("labels: complex numbers, NaN or inf; regression needs finite real ones")
            labels = labels.to(outputs)
            return 0.5 * (outputs - labels.reshape(outputs.shape)).square().sum(1).mean()
        self.check_labels(labels, outputs)
        if (labels == IGNORED).all():
            raise InvalidInput(f"labels: a batch with none but {IGNORED}, which has no loss; leave it out")
        return functional.cross_entropy(outputs.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)

    def information(self, returned: Any, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """A scalar whose gradient g_i by what belongs to sample i has the Fisher information as E[g_i g_i'].

        Drawn from the model; with the user's own loss, the sum of the samples' losses: the empirical information.
        """
        if self.own_loss is None:
            return self.draw(self.outputs(returned), generator)
        return self.loss(returned, labels) * len(self.outputs(returned))

    def right_answers(self, outputs: Tensor, labels: Tensor) -> tuple[int, int]:
        """How many top answers are right, of how many labels; raises InvalidInput for labels that are no classes."""
        labels = labels.to(outputs.device)
        self.check_labels(labels, outputs)
        return int((outputs.argmax(-1) == labels).sum()), int((labels != IGNORED).sum())

    def check_labels(self, labels: Tensor, outputs: Tensor) -> None:
        """Raise InvalidInput unless there is a class number, or IGNORED, for every position of the outputs."""
        wanted, num_classes = outputs.shape[:-1], outputs.shape[-1]
        if labels.is_floating_point() or labels.is_complex() or labels.shape != wanted:
            given = f"{labels.dtype} {list(labels.shape)}"
            raise InvalidInput(f"labels: {given}; give whole class numbers {list(wanted)}, one a position")
        counted = labels[labels != IGNORED]
        low, high = (int(end) for end in counted.aminmax()) if counted.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            raise InvalidInput(f"labels: {low}..{high} found, but the model has classes 0..{num_classes - 1}")


def _own_loss(loss: Loss, output: Tensor, labels: Tensor) -> Tensor:
    """The user's own loss, of a copy of the output, which it may change."""
    with users_code("the loss fails"):
        value = loss(output.clone(), labels)
    if not isinstance(value, Tensor):
        raise InvalidInput(f"the loss returns a {type(value).__name__}; return a tensor, without .item()")
    if value.numel() != 1 or not torch.isfinite(value).all():
        text = f"{list(value.shape)}" if value.numel() != 1 else f"{value.item()}"
        raise InvalidInput(f"the loss must be one finite number, the mean of the batch; it is {text}")
    if output.requires_grad and not value.requires_grad:
        raise InvalidInput(
            "the loss has no gradient by the output: it is detached, or made of argmax, rounding or new tensors; "
            "return one that can be differentiated"
        )
    return value.reshape(())


def _output(returned: Any) -> Tensor:
    output = output_of(returned)
    if output is None or not output.is_floating_point() or output.ndim == 0:
        raise InvalidInput("the model returns no floating-point tensor with a batch dimension")
    if not torch.isfinite(output).all():
        raise InvalidInput("the model returns NaN or inf; leave out samples it cannot handle, mask with finite numbers")
    return output


def output_of(returned: Any) -> Tensor | None:
    """Of what the model returned, the tensor that a task is about: the entry `logits`, else the first one."""
    if isinstance(returned, Mapping) and "logits" in returned:
        returned = returned["logits"]
    return next((leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)), None)


TASKS = ("classification", "segmentation", "language", "regression")
#: Task -> shape of its outputs, and where the classes are.
_SHAPES = {"classification": ("[N, C]", 1), "segmentation": ("[N, C, ...]", 1), "language": ("[N, T, C]", -1)}
#: Class number of a position without a label, as in torch's cross-entropy.
IGNORED = -100


def _draw_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, logits> with random v, E[v] = 0 and E[v v'] = diag(p) - p p', the Fisher information of the logits.

    That is the covariance of the gradient of -log p(y) when y is drawn from the model. With t the top class, r the
    other probabilities, s their sum, and random signs e, f,
    v = sum_k e_k sqrt(p_t p_k) (1_t - 1_k) + sqrt(s) sqrt(r) f - r <sqrt(r), f> / sqrt(s): first the pairs of the top
    class with each other one, then all pairs of the others. Signs reach every class with every draw, where a drawn
    label of a confident network is nearly always the top class and carries no gradient; and since one pair outweighs
    the others, the square of <v, x> varies little with the signs, for any x.
    Over P positions, whose draws are independent, v / sqrt(P): the mean of the positions' information.
    """
    p = logits.detach().softmax(-1)
    e, f = (torch.randint(0, 2, (2, *p.shape), generator=generator).to(p) * 2 - 1).unbind()
    top = p.argmax(-1, keepdim=True)
    rest = p.scatter(-1, top, 0)
    total = rest.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    with_top = e * (p.gather(-1, top) * rest).sqrt()
    v = -with_top + total.sqrt() * rest.sqrt() * f - rest * (rest.sqrt() * f).sum(-1, keepdim=True) / total.sqrt()
    v = v.scatter_add(-1, top, with_top.sum(-1, keepdim=True))
    return (v * logits).sum() / math.prod(logits.shape[1:-1]) ** 0.5


def _divergence_categorical(reference: Tensor, outputs: Tensor) -> Tensor:
    p, q = reference.log_softmax(-1), outputs.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).flatten(1).mean(1) if p.ndim > 2 else (p.exp() * (p - q)).sum(-1)


def _draw_gaussian(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of <v, outputs> with random signs v: E[v v'] = 1 is the Fisher information of a unit Gaussian's mean."""
    signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
    return (signs * outputs).sum()


def _divergence_gaussian(reference: Tensor, outputs: Tensor) -> Tensor:
    return 0.5 * (reference - outputs).square().sum(1)
