"""The user's data: inputs of one call, batches with their labels, and what is held out."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core.errors import InvalidInput
from mixbit.core.io.spill import Spill
from mixbit.core.io.terminal import track
from mixbit.core.io.user_code import no_batches, users_code
from mixbit.core.structures import is_key_values, plain, unwrapped, with_caches, without_caches


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call: positional or by keyword."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> "Inputs":
        """From a tensor, a tuple or list, or a dict of keyword arguments; raises InvalidInput for anything else."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return cls((), without_caches(dict(inputs)))
        if isinstance(inputs, tuple | list):
            return cls(without_caches(tuple(inputs)), {})
        if isinstance(inputs, Tensor):
            return cls((inputs,), {})
        given = f"inputs: a {type(inputs).__name__}"
        raise InvalidInput(f"{given}; give a tensor, a tuple or a dict of tensors, as torch.from_numpy makes them")

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same inputs with the function applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def call(self, model: Callable[..., Any]) -> Any:
        """What the model, or another function, returns for the inputs, in plain containers: see `plain`."""
        caches = any(map(is_key_values, pytree.tree_leaves((self.args, dict(self.kwargs)), is_leaf=is_key_values)))
        args, kwargs = with_caches((self.args, dict(self.kwargs)))
        return plain(model(*args, **kwargs), caches=caches)

    def to(self, device: torch.device) -> "Inputs":
        """The same inputs on that device."""
        return self.map(lambda leaf: leaf.to(device))

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of the call."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def leaves(self) -> list[Any]:
        """Every value, in the order of the call."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    def rows(self, index: Any) -> "Inputs":
        """The same inputs with these samples of every tensor that has samples."""
        return self.map(lambda leaf: leaf[index] if leaf.ndim > 0 else leaf)

    @property
    def batch_size(self) -> int:
        """Size of the first dimension, which all tensors share; raises InvalidInput where they do not."""
        tensors = self.tensors
        sizes = {leaf.shape[0] for leaf in tensors if leaf.ndim > 0}
        if not tensors:
            raise InvalidInput(f"inputs {self.describe()}: no tensor; give tensors, as torch.from_numpy makes them")
        if len(sizes) != 1:
            raise InvalidInput(
                f"inputs {self.describe()}: the first dimensions must be one batch size, found {sizes}; keep what all "
                "samples share in the model as a buffer, and wrap a model that takes samples in another dimension: its "
                "forward(x) returns model(x.transpose(0, 1))"
            )
        return sizes.pop()

    def describe(self) -> str:
        """Shapes and names, for messages."""

        def described(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return tuple(leaf.shape)
            return leaf if isinstance(leaf, int | float | str | None) else type(leaf).__name__

        tree = pytree.tree_map(described, (self.args, dict(self.kwargs)))
        return " ".join(str(part) for part in tree if part) or "()"


def differing(batches: Sequence[Inputs]) -> dict[str | int, tuple[int, ...]]:
    """Name or position of an input -> the dimensions beside the first in which the batches differ."""

    def sizes(value: Any) -> list[tuple[int, ...]]:
        return [tuple(leaf.shape) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]

    dims: dict[str | int, set[int]] = {}
    first = batches[0]
    for batch in batches[1:]:
        if len(batch.args) != len(first.args) or batch.kwargs.keys() != first.kwargs.keys():
            continue  # which the graph refuses
        pairs: list[tuple[str | int, Any, Any]] = [
            (i, *pair) for i, pair in enumerate(zip(first.args, batch.args, strict=True))
        ]
        pairs += [(name, value, batch.kwargs[name]) for name, value in first.kwargs.items()]
        for key, one, other in pairs:
            for a, b in zip(sizes(one), sizes(other), strict=False):  # where there are more, the graph refuses it
                if len(a) == len(b):
                    dims.setdefault(key, set()).update(axis for axis in range(1, len(a)) if a[axis] != b[axis])
    return {key: tuple(sorted(axes)) for key, axes in dims.items() if axes}


#: Of one batch: a tensor with an entry for each sample, a dict or tuple of such tensors, or a list of other entries.
Labels = Any
#: Inputs and, where the data has them, labels.
Batch = tuple[Inputs, Labels | None]
#: One batch (or sample, of a single batch) in so many is held out of calibration, to compare plans on.
HELD_OUT = 4
#: Data that does not say how long it is ends within so many samples, or is taken to be endless.
MOST_SAMPLES = 2**18
#: What must hold activations of the whole data takes about so many samples of it.
FEW_SAMPLES = 2048
Item_co = TypeVar("Item_co", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Item_co], Generic[Item_co]):
    """Batches in order, each read when it is asked for: from a list in memory, or from a file.

    Attributes:
        read: The batch at a place.
        counts: Samples at each place.
        places: Those of the batches, in order.
        split: Whether each is a `Batch`, as `split_all` makes them.
    """

    read: Callable[[int], Item_co]
    counts: Sequence[int]
    places: Sequence[int]
    split: bool = False

    @classmethod
    def of(cls, pairs: Sequence[Batch]) -> "Batches[Batch]":
        """Those of a list, or these themselves."""
        if isinstance(pairs, Batches):
            return pairs
        return Batches(pairs.__getitem__, [inputs.batch_size for inputs, _ in pairs], range(len(pairs)), split=True)

    @property
    def sizes(self) -> list[int]:
        """Samples in each."""
        return [self.counts[place] for place in self.places]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Item_co: ...
    @overload
    def __getitem__(self, index: slice) -> "Batches[Item_co]": ...
    def __getitem__(self, index: int | slice) -> "Item_co | Batches[Item_co]":
        if isinstance(index, slice):
            return replace(self, places=self.places[index])
        return self.read(self.places[index])

    def at(self, numbers: Iterable[int]) -> "Batches[Item_co]":
        """Those of these numbers, in this order."""
        return replace(self, places=[self.places[number] for number in numbers])

    def map(self, function: Callable[[Item_co], Other], *, split: bool = False) -> "Batches[Other]":
        """What the function makes of each, when it is read."""
        return Batches(lambda place: function(self.read(place)), self.counts, self.places, split)

    def few(self) -> "Batches[Item_co]":
        """These; of more than FEW_SAMPLES samples, about as many in whole batches from all over the data."""
        total, count = sum(self.sizes), len(self)
        if total <= FEW_SAMPLES:
            return self
        some = max(1, count * FEW_SAMPLES // total)
        return self.at(number * count // some for number in range(some))


def split_batch(batch: Any, num_inputs: int | None = None) -> Batch:
    """Inputs and labels of one batch: a tensor, a tuple or list, a dict, or what this function returned.

    Labels are the entry `labels` of a dict, or last in a tuple of one more than the `num_inputs` that the model takes;
    where that is None, in a tuple of two or more.

    Raises:
        InvalidInput: it is none of these, tensors differ in their number of samples, or labels are not one a sample.
    """
    try:
        return _inputs_and_labels(batch, num_inputs)
    except RecursionError:
        raise InvalidInput("nested too deep, or in a circle; give a tensor, a tuple or a dict of tensors") from None


def _inputs_and_labels(batch: Any, num_inputs: int | None) -> Batch:
    labels = None
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], Inputs):
        inputs, labels = batch
    elif isinstance(batch, Mapping):
        inputs = Inputs.of({name: value for name, value in batch.items() if name != "labels"})
        labels = batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) == 1 + (num_inputs or max(1, len(batch) - 1)):
        inputs, labels = Inputs.of(tuple(batch[:-1])), batch[-1]
    else:
        inputs = Inputs.of(batch)
    inputs = inputs.map(_usable)
    count = inputs.batch_size
    if count == 0:
        raise InvalidInput(f"inputs {inputs.describe()}: no sample; leave such batches out")
    _check_labels(labels, count)
    return inputs, labels


def _usable(leaf: Tensor) -> Tensor:
    """The tensor for any use; raises InvalidInput for one whose numbers are nowhere, or not side by side."""
    if leaf.is_nested or leaf.layout != torch.strided or leaf.is_quantized:
        raise InvalidInput("inputs: a sparse, nested or quantized tensor; give dense ones, as to_dense() makes them")
    if leaf.is_meta:
        raise InvalidInput("inputs: a tensor on device meta, which holds no numbers; make it on another device")
    leaf = leaf.detach() if leaf.requires_grad else leaf
    return leaf.clone() if leaf.is_inference() else leaf  # which no gradient passes


def _check_labels(labels: Labels | None, count: int) -> None:
    """Raise InvalidInput unless there is an entry for every sample."""
    parts = list(labels.values()) if isinstance(labels, Mapping) else labels
    if isinstance(parts, Tensor):
        parts = [parts]
    elif isinstance(parts, list | tuple) and parts and all(isinstance(part, Mapping | list) for part in parts):
        parts = [torch.empty(len(parts))]  # one a sample, as the boxes of an image
    elif not isinstance(parts, list | tuple | None) or not all(isinstance(part, Tensor) for part in parts or ()):
        raise InvalidInput(f"labels: a {type(labels).__name__}; give a tensor with one entry a sample")
    for part in parts or ():
        if part.shape[:1] != (count,):
            raise InvalidInput(f"labels: {list(part.shape)} for a batch of {count} samples; give one entry a sample")


def labels_at(labels: Labels | None, rows: Any) -> Labels | None:
    """The labels of those samples, a slice or their numbers; None where there are none."""
    if labels is None or isinstance(labels, Tensor):
        return None if labels is None else labels[rows]
    if isinstance(labels, Mapping):
        return {name: part[rows] for name, part in labels.items()}
    if all(isinstance(part, Tensor) for part in labels):
        return type(labels)(part[rows] for part in labels)
    return labels[rows] if isinstance(rows, slice) else [labels[row] for row in rows]


def unlabelled(model: nn.Module, batch: Any) -> Inputs:
    """Inputs of one batch as the model's forward takes them: what `split_batches` takes for labels is left out."""
    if isinstance(batch, Mapping):
        return Inputs.of({name: value for name, value in batch.items() if name != "labels"})
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return Inputs.of(tuple(batch[: _num_inputs(model, batch)]))
    return Inputs.of(batch)


def loaded(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches in order; raises InvalidInput where they are no iterable of batches, or yielding one fails."""
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise InvalidInput(f"data: {no_batches(batches)}")
    with users_code("the data fails while iterated"):
        yield from batches


def split_all(
    batches: Iterable[Any], num_inputs: int | None, *, samples: int | None = None, folder: Path | None = None
) -> Batches[Batch]:
    """Inputs and labels of every batch, or of the first so many samples.

    A list or tuple stays where it is. Anything else is gone through once and written to a file in the folder, or in
    that for temporary files: what a loader shuffles or augments anew in each pass is then the same in all passes, and
    what a generator yields once can be read again.

    Raises:
        InvalidInput: there is no batch, one is wrong (the first is named), samples are no whole number from 1, or the
            data has no end within MOST_SAMPLES and no length.
    """
    return _split(batches, lambda _: num_inputs, samples, folder)


def split_batches(
    model: nn.Module, batches: Iterable[Any], *, samples: int | None = None, folder: Path | None = None
) -> Batches[Batch]:
    """As `split_all`, of batches as the model's forward takes them.

    A tuple ends with labels where it holds more than forward takes, or ends with integers [N] that it can do without;
    the first tuple shows it for all.
    """
    known: list[int] = []

    def num_inputs(batch: Any) -> int | None:
        if not known and isinstance(batch, tuple | list) and len(batch) > 0:
            known.append(_num_inputs(model, batch))
        return known[0] if known else None

    return _split(batches, num_inputs, samples, folder)


def _split(
    batches: Iterable[Any], num_inputs: Callable[[Any], int | None], samples: int | None, folder: Path | None
) -> Batches[Batch]:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise InvalidInput(f"samples={samples!r}: give a whole number from 1")
    if isinstance(batches, Batches) and batches.split and samples is None:
        return batches
    in_memory = isinstance(batches, list | tuple)
    pairs, counts = [] if in_memory else Spill(folder), list[int]()
    for inputs, labels in _pairs(batches, num_inputs, samples):
        counts.append(inputs.batch_size)
        if isinstance(pairs, list):
            pairs.append((inputs, labels))
        else:
            pairs.put((inputs.args, dict(inputs.kwargs), labels))
    if not counts:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    read = pairs.__getitem__ if isinstance(pairs, list) else lambda place: _joined(*pairs[place])
    return Batches(read, counts, range(len(counts)), split=True)


def _joined(args: tuple[Any, ...], kwargs: dict[str, Any], labels: Labels | None) -> Batch:
    return Inputs(args, kwargs), labels


def _pairs(batches: Iterable[Any], num_inputs: Callable[[Any], int | None], samples: int | None) -> Iterator[Batch]:
    """Inputs and labels of one batch after the other, until there are so many samples."""
    endless, seen = MOST_SAMPLES, 0
    with users_code("the length of the data fails"):
        length = length_hint(batches)
    read = loaded(batches)
    for number, batch in enumerate(read if isinstance(batches, list | tuple) else track(read, "read data", length)):
        try:
            inputs, labels = split_batch(batch, num_inputs(batch))
        except InvalidInput as error:
            raise InvalidInput(f"batch {number}: {error}") from None
        left = inputs.batch_size if samples is None else samples - seen
        if left < inputs.batch_size:
            inputs, labels = inputs.rows(slice(left)), labels_at(labels, slice(left))
        yield inputs, labels
        seen += inputs.batch_size
        if seen == samples:
            return
        if samples is None and not length and seen >= endless:
            raise InvalidInput(
                f"the data does not end: {seen:,} samples so far, and it has no length; take the first N samples by "
                "--samples N (samples=N in Python), or let it end"
            )


def _num_inputs(model: nn.Module, batch: Sequence[Any]) -> int:
    parameters = list(inspect.signature(unwrapped(model).forward).parameters.values())
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    required = sum(each.default is each.empty for each in positional)
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    last, others = batch[-1], len(batch) - 1
    looks_like_labels = isinstance(last, Tensor) and last.ndim == 1 and not last.is_floating_point()
    if (not takes_any and len(batch) > len(positional)) or (others >= max(1, required) and looks_like_labels):
        return others
    return len(batch)


def as_given(batch: Batch) -> Any:
    """The batch as a user would write it: what the model takes, with labels, if any, last or under `labels`."""
    inputs, labels = batch
    if inputs.kwargs:
        return dict(inputs.kwargs) if labels is None else {**inputs.kwargs, "labels": labels}
    if labels is not None:
        return (*inputs.args, labels)
    return inputs.args if len(inputs.args) != 1 else inputs.args[0]


def hold_out(pairs: Sequence[Batch]) -> tuple[Batches[Batch], Batches[Batch]]:
    """Held-out data, every HELD_OUT-th batch or sample of a single batch, and the rest; a single sample is both."""
    pairs = Batches.of(pairs)
    count = len(pairs) if len(pairs) > 1 else pairs.sizes[0]
    if count == 1:
        return pairs, pairs
    every = min(HELD_OUT, count)
    out = range(every - 1, count, every)
    rest = [place for place in range(count) if place not in out]
    if len(pairs) > 1:
        return pairs.at(out), pairs.at(rest)
    inputs, labels = pairs[0]
    held_out, others = ((inputs.rows(rows), labels_at(labels, rows)) for rows in (out, rest))
    return Batches.of([held_out]), Batches.of([others])
