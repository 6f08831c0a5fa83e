"""Tasks: what the outputs of a model mean."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core.arguments import checked, checked_class
from mixbit.core.batches import Batch, Batches, Inputs, Labels
from mixbit.core.errors import InvalidInput, did_you_mean, pick
from mixbit.core.heads import (
    IGNORED,
    Head,
    are_probabilities,
    classes,
    decided,
    feature_maps,
    few_per_place,
    first,
    fixed,
    moments,
    numbers,
    regression,
    sequences,
    spread,
    whole_numbers,
    yes_or_no,
)
from mixbit.core.io.user_code import users_code

Loss = Callable[[Any, Any], Tensor]
#: (model, batches) -> a number, the higher the better: the user's own evaluation. A batch is as `as_given` makes it.
Score = Callable[[nn.Module, Sequence[Any]], float]
#: Name of an output -> its tensor: as the model returns it, or in the form of its head.
Outputs = Mapping[str, Tensor]

#: Task -> what it says of the output that it knows; None where it knows none by itself.
_KNOWN: dict[str, Head | None] = {
    "classification": classes("classification", "[N, C]", 1, positions=False),
    "segmentation": classes("segmentation", "[N, C, ...]", 1, positions=True),
    "language": classes("language", "[N, T, C]", -1, positions=True),
    "regression": regression(),
    "multilabel": yes_or_no(),
    "ctc": sequences(),
    "detection": None,
    "multi": None,
}
TASKS = tuple(_KNOWN)
#: Task -> the dimension of its other outputs along which their scale may differ; `feature_maps` elsewhere.
_CHANNELS = {"segmentation": first, "detection": few_per_place}
#: Kinds of heads whose meaning the data completes.
_COMPLETED = ("numbers", "yes or no")
#: Name of an output that is not in a structure, and the name by which others are known as the main one.
ONLY, MAIN = "output", "logits"


@checked_class
@dataclass(frozen=True)
class Task:
    """What the outputs of the model mean.

    A task knows one output: the entry `logits`, or else the first one; `multi` knows those that it names, and
    `detection` the entry `logits` where there is one. All other floating-point outputs count too: as probabilities of
    classes where every row of them sums to 1, else as numbers, see `mixbit.core.heads.numbers`. The costs of all
    outputs, in nats, add up with their weights.

    Attributes:
        name: One of TASKS.
        tasks: Name of an output -> its task, for `multi`.
        weights: Name of an output -> its weight where it is not 1; 0 leaves it out.
        own_loss: The user's own mean loss of (output, labels); of all that the model returns for detection and multi.
        heads: Name of an output -> what it means, once `fitted` to a network; else empty.
        batch_axes: Name of an output -> its dimension of samples where that is not the first, once fitted.
    """

    name: str
    tasks: Mapping[str, "Task"] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    own_loss: Loss | None = None
    heads: Mapping[str, Head] = field(default_factory=dict)
    batch_axes: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pick("task", self.name, TASKS)

    @classmethod
    def classification(cls) -> "Task":
        """Outputs are logits [N, C] of a categorical distribution; labels are class numbers [N]."""
        return cls("classification")

    @classmethod
    def segmentation(cls) -> "Task":
        """Outputs are logits [N, C, ...] of every position; labels are class numbers [N, ...], IGNORED where none."""
        return cls("segmentation")

    @classmethod
    def language(cls) -> "Task":
        """Outputs are logits [N, T, C] of every token; labels are token numbers [N, T], IGNORED where none.

        A position's label is what its output should be, the next token of a causal model; see also `aligned`.
        """
        return cls("language")

    @classmethod
    def regression(cls) -> "Task":
        """Outputs, embeddings among them, are means of Gaussians with variance 1; labels are numbers of their shape."""
        return cls("regression")

    @classmethod
    def multilabel(cls) -> "Task":
        """Outputs [N, ...] are logits or probabilities of independent answers yes; labels, as many, are 0 or 1."""
        return cls("multilabel")

    @classmethod
    def ctc(cls) -> "Task":
        """Outputs are logits [N, T, C] of steps, read by CTC with blank 0; labels [N, S] end with IGNORED."""
        return cls("ctc")

    @classmethod
    def detection(cls) -> "Task":
        """Outputs are boxes, scores or feature maps in units of their channels' spread; `logits` are of classes."""
        return cls("detection")

    @classmethod
    @checked
    def multi(cls, tasks: Mapping[str, "Task"]) -> "Task":
        """Several outputs, each with a task of its own; labels are a dict by these names, or a tuple in this order.

        Raises InvalidInput where none is named, or a task is itself of several outputs.
        """
        if not tasks or any(_KNOWN[task.name] is None for task in tasks.values()):
            known = ", ".join(name for name, head in _KNOWN.items() if head is not None)
            raise InvalidInput(f"task multi: name one or more outputs, each with a task of {known}")
        return cls("multi", tasks=dict(tasks))

    @classmethod
    @checked
    def named(cls, text: str) -> "Task":
        """The task of that text: a name of TASKS, or `multi:OUTPUT=TASK,...`; raises InvalidInput for any other."""
        name, colon, parts = text.partition(":")
        pick("task", name, TASKS)
        if name != "multi":
            if colon:
                raise InvalidInput(
                    f"task {text!r}: only multi names outputs, as in multi:0=classification,boxes=regression"
                )
            return cls(name)
        pairs = [part.strip().rpartition("=") for part in parts.split(",") if part.strip()]
        if not all(output for output, _, _ in pairs) or len({output for output, _, _ in pairs}) < len(pairs):
            raise InvalidInput(f"task {text!r}: write OUTPUT=TASK,..., each output once, as in boxes=regression")
        return cls.multi({output: cls(pick("task", task, TASKS)) for output, _, task in pairs})

    @classmethod
    def of(cls, task: "Task | str | None") -> "Task":
        """The task itself, that of a text as `named` reads it, or classification for None."""
        return cls.classification() if task is None else cls.named(task) if isinstance(task, str) else task

    def __str__(self) -> str:
        parts = ",".join(f"{output}={task.name}" for output, task in self.tasks.items())
        return f"{self.name}:{parts}" if parts else self.name

    @property
    def head(self) -> Head:
        """What it says of the output that it knows; raises InvalidInput for a task of several outputs."""
        head = _KNOWN[self.name]
        if head is None:
            raise InvalidInput(f"task {self}: of several outputs, each with a head of its own")
        return head

    @checked
    def with_loss(self, loss: Loss) -> "Task":
        """The same task under the user's own mean loss of (output, labels); metrics then need labels."""
        return dataclasses.replace(self, own_loss=loss)

    @checked
    def weighted(self, weights: Mapping[str, float]) -> "Task":
        """The same task with these weights of outputs; raises InvalidInput for a negative or infinite one."""
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise InvalidInput(f"weight {name}={weight}: give 0 or a positive number")
        return dataclasses.replace(self, weights=dict(weights))

    @property
    def unfitted(self) -> "Task":
        """The task as it was given: digests are of it, since what it was fitted to has its own, to the last bit."""
        return dataclasses.replace(self, heads={}, batch_axes={})

    @property
    def has_accuracy(self) -> bool:
        """Whether labels tell right answers from wrong ones."""
        tasks = self.tasks.values() if self.tasks else (self,)
        return any(head is not None and head.right is not None for head in (_KNOWN[task.name] for task in tasks))

    def fitted(
        self, example: Outputs, batch_axes: Mapping[str, int | None], outputs: Callable[[], Iterable[Outputs]]
    ) -> "Task":
        """The task for one network: what every output means, where its samples are, and the spread of its numbers.

        Args:
            example: What the network returns for one batch, by name.
            batch_axes: Name of each output -> its dimension of samples, None where it has none.
            outputs: Called where a spread is to be known: what the network returns for every batch.

        Raises:
            InvalidInput: the task names an output that is not there.
        """
        odd = {name: axis for name, axis in batch_axes.items() if axis != 0}
        task = dataclasses.replace(self, batch_axes=odd)
        read = task.read(example)
        for name in (*self.tasks, *self.weights):
            if name not in read:
                near = did_you_mean(name, read)
                raise InvalidInput(
                    f"task {self}: the model returns no output {name!r}{near}; it returns {', '.join(read)}"
                )
        if not task._costly(read):
            raise InvalidInput(f"task {self}: every output has weight 0; leave one that counts")
        heads = task.heads_of(read)
        axes = {name: head.channels(read[name]) for name, head in heads.items() if head.name in _COMPLETED}
        seen: dict[str, list[tuple[Tensor, bool, bool]]] = {name: [] for name in axes}
        for batch in map(task.read, outputs() if seen else ()):
            for name, looks in seen.items():
                looks.append(_look(batch[name], axes[name]))
        completed = {name: _completed(heads[name], axes[name], looks) for name, looks in seen.items()}
        tensors, known = outputs_of(example), task._known(read)
        for name in known:
            if heads[name].name in ("classes", "sequences"):
                completed[name] = decided(heads[name], tensors[name].movedim(batch_axes[name] or 0, 0))
        return dataclasses.replace(task, heads=heads | completed)

    def read(self, returned: Any) -> dict[str, Tensor]:
        """Name -> every output of samples, in the form of its head, that the task knows first.

        Raises InvalidInput where there is no floating-point one, or the one that the task knows does not fit or holds
        NaN or inf.
        """
        tensors = {}
        for name, tensor in outputs_of(returned).items():
            axis = self.batch_axes.get(name, 0)
            if axis is not None and tensor.ndim > 0:
                tensors[name] = tensor if axis == 0 else tensor.movedim(axis, 0)
        if not any(tensor.is_floating_point() for tensor in tensors.values()):
            raise InvalidInput("the model returns no floating-point tensor with a batch dimension")
        known, heads, formed = self._known(tensors), self.heads_of(tensors), {}
        for name in sorted(tensors, key=lambda name: name not in known):
            tensor, head = tensors[name], heads[name]
            if name in known and not torch.isfinite(tensor).all():
                raise InvalidInput(
                    "the model returns NaN or inf; leave out samples it cannot handle, mask with finite numbers"
                )
            try:
                formed[name] = head.form(tensor)
            except InvalidInput as error:
                others = ", ".join(other for other in TASKS if other != self.name)
                raise InvalidInput(f"{error}; other tasks are {others}") from None
        return formed

    def heads_of(self, outputs: Outputs) -> dict[str, Head]:
        """Name -> what each of the outputs means."""
        if self.heads:
            for name in outputs:
                pick("output", name, self.heads, "; give a network with the same outputs")
            return {name: self.heads[name] for name in outputs}
        other, known = numbers(_CHANNELS.get(self.name, feature_maps)), self._known(outputs)
        others = {name: other if tensor.is_floating_point() else whole_numbers() for name, tensor in outputs.items()}
        return others | known

    def _known(self, outputs: Outputs) -> dict[str, Head]:
        """Those among the outputs that the task knows."""
        if self.tasks:
            return {name: head for name, task in self.tasks.items() if name in outputs and (head := _KNOWN[task.name])}
        main = main_of([name for name, tensor in outputs.items() if tensor.is_floating_point()])
        head = _KNOWN[self.name]
        if self.name == "detection" and main.partition(".")[0] == MAIN:
            head = classes("detection", "[N, Q, C]", -1)
        return {main: head} if head is not None else {}

    def outputs(self, returned: Any) -> Tensor:
        """The first output that the task knows, in its form [N, ..., C]; raises InvalidInput as `read` does."""
        return next(iter(self.read(returned).values()))

    def aligned(self, batches: Sequence[Batch]) -> Batches[Batch]:
        """The batches with the labels that the task takes; a loss of the user's own gets them as they are.

        For `language`, labels that are the inputs' own tokens are moved to the position before: libraries of language
        models take such labels, and compare each output with the next one. For `classification`, labels [N, C] with
        one 1 in each row become class numbers [N].
        """
        align = {"language": _next_tokens, "classification": _class_numbers}.get(self.name)
        if align is None or self.own_loss is not None:
            return Batches.of(batches)
        return Batches.of(batches).map(lambda batch: (batch[0], align(*batch)), split=True)

    def loss(self, returned: Any, labels: Any) -> Tensor:
        """The mean loss of a batch on its labels: the user's own, or the sum over the outputs that have labels.

        Cross-entropy, CTC loss, or half the squared distance, in nats. Raises InvalidInput where labels are missing or
        do not fit, or the loss is not one finite number.
        """
        if labels is None:
            wants = "this metric" if self.own_loss is None else "a loss of your own"
            raise InvalidInput(f"{wants} needs labels, and a batch has none: give batches that end with them")
        outputs = self.read(returned)
        if self.own_loss is not None:
            labels = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(next(iter(outputs.values())).device), labels)
            main = outputs_of(returned)[next(iter(outputs))]
            return _own_loss(self.own_loss, returned if self._knows_many else main, labels)
        heads, parts = self.heads_of(outputs), []
        for name, wanted in self.labels_of(outputs, labels).items():
            parts.append(self.weights.get(name, 1.0) * heads[name].loss(outputs[name], wanted.to(outputs[name].device)))
        return torch.stack(parts).sum()

    def full_loss(self, returned: Any, labels: Any, generator: torch.Generator) -> Tensor:
        """As `loss`, and the loss of outputs without labels under labels that are drawn from the model itself.

        Such a part is 0; its gradient by the output has the Fisher information as covariance over samples, and its
        second derivative is that of the divergence.
        """
        outputs, loss = self.read(returned), self.loss(returned, labels)
        others = self.unlabelled(outputs)
        if not others:
            return loss
        drawn = self._drawn(outputs, others, generator)
        fixed = {name: output.detach() for name, output in outputs.items()}
        return loss + (drawn - drawn.detach()) / _count(outputs) + self._divergences(fixed, outputs, others).mean()

    def information(self, returned: Any, labels: Any, generator: torch.Generator) -> Tensor:
        """A scalar whose gradient g_i by what belongs to sample i has the Fisher information as E[g_i g_i'].

        Drawn from the model; with the user's own loss, the sum of the samples' losses: the empirical information.
        """
        outputs = self.read(returned)
        if self.own_loss is None:
            return self._drawn(outputs, self._costly(outputs), generator)
        value, others = self.loss(returned, labels) * _count(outputs), self.unlabelled(outputs)
        return value + self._drawn(outputs, others, generator) if others else value

    def divergences(self, reference: Outputs, outputs: Outputs, temperature: float = 1.0) -> Tensor:
        """[N] KL divergence of each sample in nats, summed over the outputs with their weights.

        At a temperature T it is T^2 KL(reference / T, outputs / T): Hinton et al. 2015. Both are as `read` returns
        them. Raises InvalidInput where their shapes differ.
        """
        return torch.stack([*self.divergence_of(reference, outputs, temperature).values()]).sum(0)

    def divergence_of(self, reference: Outputs, outputs: Outputs, temperature: float = 1.0) -> dict[str, Tensor]:
        """Name of each output that counts -> [N] its part of `divergences`, with its weight."""
        for name, wanted in reference.items():
            if name not in outputs or outputs[name].shape != wanted.shape:
                shapes = f"{list(outputs[name].shape) if name in outputs else None}, not {list(wanted.shape)}"
                raise InvalidInput(f"output {name}: {shapes} as in the other network; give that of the same model")
        return self._divergence_of(reference, outputs, self._costly(reference), temperature)

    def unlabelled_divergences(self, reference: Outputs, outputs: Outputs) -> Tensor:
        """[N] as `divergences`, of the outputs that have no labels alone."""
        others = self.unlabelled(reference)
        count = torch.zeros(_count(reference), dtype=torch.float64)
        return self._divergences(reference, outputs, others) if others else count

    def right_answers(self, outputs: Outputs, labels: Any) -> tuple[int, int]:
        """How many top answers are right, of how many labels; raises InvalidInput for labels that are no answers."""
        heads, right, counted = self.heads_of(outputs), 0, 0
        for name, wanted in self.labels_of(outputs, labels).items():
            judge = heads[name].right
            if judge is not None:
                some = judge(outputs[name], wanted)
                right, counted = right + some[0], counted + some[1]
        return right, counted

    def check_labels(self, outputs: Outputs, labels: Any) -> None:
        """Raise InvalidInput for labels that do not fit the shapes of the outputs, whatever the outputs' numbers."""
        heads = self.heads_of(outputs)
        for name, wanted in self.labels_of(outputs, labels).items():
            heads[name].fits(outputs[name], wanted)

    def labels_of(self, outputs: Outputs, labels: Any) -> dict[str, Tensor]:
        """Name of an output -> its labels; raises InvalidInput where they do not fit the outputs that have labels."""
        names = self._labelled(outputs)
        if not names:
            way_out = "give a loss of your own, or a metric that needs no labels"
            raise InvalidInput(f"task {self} knows no loss on labels; {way_out}")
        if self.name != "multi":
            if not isinstance(labels, Tensor):
                raise InvalidInput(f"labels: a {type(labels).__name__}; give a tensor with one entry a sample")
            return {names[0]: labels}
        if isinstance(labels, Mapping):
            given = dict(labels)
        elif isinstance(labels, Tensor):
            given = {names[0]: labels} if len(names) == 1 else {}
        else:
            given = dict(zip(names, labels, strict=False)) if len(labels) == len(names) else {}
        if given.keys() != set(names) or not all(isinstance(value, Tensor) for value in given.values()):
            raise InvalidInput(
                f"labels: give a dict of tensors for {', '.join(names)}, or a tuple in this order, in task {self}"
            )
        return {name: given[name] for name in names}

    @property
    def _knows_many(self) -> bool:
        return _KNOWN[self.name] is None

    def _labelled(self, outputs: Outputs) -> list[str]:
        return list(self.tasks) if self._knows_many else list(outputs)[:1]

    def _costly(self, outputs: Outputs) -> list[tuple[str, Head, float]]:
        """Name, head and weight of every output that counts."""
        rows = [(name, head, self.weights.get(name, 1.0)) for name, head in self.heads_of(outputs).items()]
        return [(name, head, weight) for name, head, weight in rows if head.costs and weight > 0]

    def unlabelled(self, outputs: Outputs) -> list[tuple[str, Head, float]]:
        """Name, head and weight of those without labels; a loss of all that the model returns leaves none."""
        if self.own_loss is not None and self._knows_many:
            return []
        labelled = self._labelled(outputs)
        return [row for row in self._costly(outputs) if row[0] not in labelled]

    @staticmethod
    def _drawn(outputs: Outputs, rows: Sequence[tuple[str, Head, float]], generator: torch.Generator) -> Tensor:
        return torch.stack([weight**0.5 * head.draw(outputs[name], generator) for name, head, weight in rows]).sum()

    @staticmethod
    def _divergence_of(
        reference: Outputs, outputs: Outputs, rows: Sequence[tuple[str, Head, float]], t: float = 1.0
    ) -> dict[str, Tensor]:
        return {
            name: weight * (t**2 * head.divergence(reference[name] / t, outputs[name] / t))
            for name, head, weight in rows
        }

    @classmethod
    def _divergences(cls, reference: Outputs, outputs: Outputs, rows: Sequence[tuple[str, Head, float]]) -> Tensor:
        return torch.stack([*cls._divergence_of(reference, outputs, rows).values()]).sum(0)


def _look(outputs: Tensor, axis: int) -> tuple[Tensor, bool, bool]:
    """Moments of the channels, whether all numbers are in 0..1, and whether they are probabilities of classes."""
    within = bool(((outputs >= 0) & (outputs <= 1)).all())
    return moments(outputs, axis).cpu(), within, within and are_probabilities(outputs.movedim(axis, -1))


def _completed(head: Head, axis: int, looks: Sequence[tuple[Tensor, bool, bool]]) -> Head:
    """The head of an output of numbers, or of answers yes, after looks at all its batches."""
    if head.name == "yes or no":
        return yes_or_no(probabilities=all(within for _, within, _ in looks))
    if all(of_classes for _, _, of_classes in looks):
        return classes("probabilities", "[N, ..., C]", axis)
    return numbers(partial(fixed, axis), spread(torch.stack([each for each, _, _ in looks]).sum(0)))


def outputs_of(returned: Any) -> dict[str, Tensor]:
    """Name -> tensor of all that the model returned, see `named_leaves`."""
    return {name: leaf for name, leaf in named_leaves(returned).items() if isinstance(leaf, Tensor)}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Name -> leaf of a structure: `logits`, `0`, `hidden.2`; `output` for a leaf that is alone."""
    return {_joined(path) or ONLY: leaf for path, leaf in pytree.tree_flatten_with_path(tree)[0]}


def _joined(path: Sequence[Any]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def _next_tokens(inputs: Inputs, labels: Labels | None) -> Labels | None:
    if not isinstance(labels, Tensor) or labels.ndim != 2 or (labels == IGNORED).all():
        return labels
    like = [leaf for leaf in inputs.tensors if leaf.shape == labels.shape and leaf.dtype == labels.dtype]
    if not any(((leaf == labels.to(leaf.device)) | (labels.to(leaf.device) == IGNORED)).all() for leaf in like):
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def _class_numbers(_: Inputs, labels: Labels | None) -> Labels | None:
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] < 2:
        return labels
    ones, zeros = (labels == 1).sum(1), (labels == 0).sum(1)
    return labels.long().argmax(1) if bool(((ones == 1) & (zeros == labels.shape[1] - 1)).all()) else labels


def main_of(names: Sequence[str]) -> str:
    """Of the names of floating-point outputs, the one that most tasks are about: `logits`, else the first one."""
    return next((name for name in names if name.partition(".")[0] == MAIN), names[0])


def _count(outputs: Outputs) -> int:
    return len(next(iter(outputs.values())))


def _own_loss(loss: Loss, output: Any, labels: Any) -> Tensor:
    """The user's own loss, of a copy of the output, which it may change."""
    with users_code("the loss fails"):
        value = loss(pytree.tree_map_only(Tensor, torch.clone, output), labels)
    if not isinstance(value, Tensor):
        raise InvalidInput(f"the loss returns a {type(value).__name__}; return a tensor, without .item()")
    if value.numel() != 1 or not torch.isfinite(value).all():
        text = f"{list(value.shape)}" if value.numel() != 1 else f"{value.item()}"
        raise InvalidInput(f"the loss must be one finite number, the mean of the batch; it is {text}")
    learns = any(leaf.requires_grad for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    if learns and not value.requires_grad:
        raise InvalidInput(
            "the loss has no gradient by the output: it is detached, or made of argmax, rounding or new tensors; "
            "return one that can be differentiated"
        )
    return value.reshape(())
