"""Batches of the user's data: inputs apart from labels, and what is held out of calibration."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mixbit.errors import InvalidInput
from mixbit.task import Inputs

#: Inputs and, where the data has them, labels.
Batch = tuple[Inputs, Tensor | None]
#: One batch (or sample, of a single batch) in so many is held out of calibration, to compare plans on.
HELD_OUT = 4


def split_batch(batch: Any, num_inputs: int | None = None) -> Batch:
    """Inputs and labels of one batch: labels are the entry `labels` of a dict, or last in a tuple.

    Args:
        batch: A tensor, a tuple or list, or a dict.
        num_inputs: How many positional inputs the model takes; a tuple of one more ends with labels. Where None, a
            tuple of two or more ends with labels.
    """
    if isinstance(batch, Mapping):
        rest = {name: value for name, value in batch.items() if name != "labels"}
        return Inputs.of(rest), batch.get("labels")
    if isinstance(batch, tuple | list):
        wanted = num_inputs if num_inputs is not None else max(1, len(batch) - 1)
        if len(batch) == wanted + 1:
            return Inputs.of(tuple(batch[:-1])), batch[-1]
    return Inputs.of(batch), None


def split_batches(model: nn.Module, batches: Iterable[Any]) -> list[Batch]:
    """Inputs and labels of every batch, as the model's forward takes them.

    A tuple ends with labels where it holds more than forward takes, or where forward can do without its last entry
    and that is a vector of whole numbers.
    """
    pairs = []
    num_inputs: int | None = None
    for batch in batches:
        if isinstance(batch, tuple | list) and num_inputs is None:
            num_inputs = _num_inputs(model, batch)
        pairs.append(split_batch(batch, num_inputs))
    if not pairs:
        raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")
    return pairs


def _num_inputs(model: nn.Module, batch: Sequence[Any]) -> int:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = sum(one.default is one.empty for one in positional)
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    last, others = batch[-1], len(batch) - 1
    looks_like_labels = isinstance(last, Tensor) and last.ndim == 1 and not last.is_floating_point()
    if (not takes_any and len(batch) > len(positional)) or (others >= max(1, required) and looks_like_labels):
        return others
    return len(batch)


def hold_out(pairs: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Held-out and kept data: every HELD_OUT-th batch, or of a single batch every HELD_OUT-th sample.

    One sample alone serves as both.
    """
    if len(pairs) > 1:
        held_out = pairs[HELD_OUT - 1 :: HELD_OUT] or pairs[-1:]
        return held_out, [pair for pair in pairs if not any(pair is one for one in held_out)]
    inputs, labels = pairs[0]
    count = inputs.batch_size
    if count == 1:
        return pairs, pairs
    every = min(HELD_OUT, count)
    out = [index for index in range(count) if index % every == every - 1]
    kept = [index for index in range(count) if index % every != every - 1]
    return [_rows(inputs, labels, out)], [_rows(inputs, labels, kept)]


def _rows(inputs: Inputs, labels: Tensor | None, rows: list[int]) -> Batch:
    return inputs.map(lambda leaf: leaf[rows] if leaf.ndim else leaf), None if labels is None else labels[rows]
