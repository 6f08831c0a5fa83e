"""The search of HAWQ-V2, as NNCF had it: bits that never fall along layers in the order of their sensitivity.

1.  Layers are ordered by the average trace of their Hessian, ascending.
2.  Every sequence of weight bits that never falls in this order is a try: for G layers and m widths
    C(G + m - 1, m - 1). A layer that is not offered a width takes the nearest one that it is (the narrower of two);
    one that is offered a single width is left out.
3.  Bits of inputs follow from those of the weights, for each group of layers that read one tensor, with A the widths
    of inputs offered to all of them and S the widths of their weights: the smallest of A and S together, of A where
    they share none (`liberal`); or the same, where all weights of the group must be of one width (`strict`).
4.  Of all sequences within the limits, the one with the smallest loss.

Differences from NNCF 2, where they change a plan:

-   Where the table holds no trace, since its metric estimates none, layers are ordered by the loss of their narrowest
    choice. That is also the remedy for an order that ignores how large a layer's error is.
-   NNCF drops every sequence that uses, of the weight bits that no input is offered in, all; so 2 bits are never taken
    where inputs have 4 and 8. Here every width that is offered may be taken.
-   Limits are any that a budget knows, not bit complexity alone, and a plan over them is never returned: NNCF looks the
    smallest metric up by its value, and may find another sequence of equal value.
-   Traces start from zero, where NNCF starts from a random one, and are not made positive; see the metric `hawq`.

Source: Z. Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", NeurIPS 2020; NNCF 2,
`HAWQPrecisionInitializer`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from mixbit.core import InvalidInput, method
from mixbit.searches._problem import Integers, Problem, taken

Assignment = Literal["liberal", "strict"]
#: More sequences take minutes, and say that the method is the wrong one.
MOST_SEQUENCES = 3_000_000
CHUNK = 20_000


@method(rank=3)
def hawq(problem: Problem, *, assignment: Assignment = "liberal") -> Integers:
    """HAWQ-V2: bits that never fall along layers in the order of their Hessian's trace.

    Args:
        problem: With `trace` where the metric estimates it.
        assignment: How bits of inputs follow from those of weights.

    Raises:
        InfeasibleBudget: if no such sequence keeps within the limits.
        InvalidInput: an unknown assignment, or too many sequences.
    """
    widths = np.unique(problem.weight_bits)
    offered = np.stack([problem.offered[:, problem.weight_bits == width].any(axis=1) for width in widths], axis=1)
    free = np.flatnonzero(offered.sum(axis=1) > 1)
    tried = np.flatnonzero(offered[free].any(axis=0))
    count = num_sequences(len(free), max(len(tried), 1))
    if count > MOST_SEQUENCES:
        raise InvalidInput(
            f"search hawq: {count:,} sequences of {len(tried)} widths over {len(free)} layers, more than "
            f"{MOST_SEQUENCES:,}; offer fewer widths, or take ilp"
        )
    distance = np.abs(widths[:, None] - widths).astype(float)
    nearest = np.where(offered[:, None, :], distance, np.inf).argmin(axis=2)  # [L, m] index of an offered width
    columns = _Columns(problem, widths, assignment == "strict")
    best, smallest = None, math.inf
    sequences = _sequences([layer for layer in _order(problem).tolist() if layer in free], len(tried))
    while part := list(itertools.islice(sequences, CHUNK)):
        rows = np.tile(offered.argmax(axis=1), (len(part), 1))
        if len(free):
            rows[:, free] = nearest[free, tried[np.array(part)]]
        choice = _cheapest_within(problem, columns.of(rows))
        if choice is not None and (loss := taken(problem.loss, choice).sum()) < smallest:
            best, smallest = choice, loss
    if best is None:
        raise problem.none_found("no sequence of bits in the order of the layers' traces keeps within every limit")
    return best


def num_sequences(num_layers: int, num_widths: int) -> int:
    """How many sequences of that many widths never fall along the layers: C(L + m - 1, m - 1)."""
    return math.comb(num_layers + num_widths - 1, num_widths - 1)


def _sequences(order: Sequence[int], num_widths: int) -> Iterator[Integers]:
    """Index of the width of each layer, by ascending number, of all sequences that never fall in that order."""
    place = np.argsort(order)
    for cuts in itertools.combinations_with_replacement(range(len(order) + 1), max(num_widths - 1, 0)):
        yield np.searchsorted(cuts, place, side="right")


def _order(problem: Problem) -> Integers:
    """[L] layers by ascending trace; where there is none, by the loss of the narrowest choice."""
    if problem.trace is not None:
        return np.argsort(problem.trace, kind="stable")
    bits = np.where(problem.offered, problem.weight_bits, np.inf)
    narrowest = bits == bits.min(axis=1, keepdims=True)
    return np.argsort(np.where(narrowest, problem.loss, np.inf).min(axis=1), kind="stable")


def _cheapest_within(problem: Problem, choices: Integers) -> Integers | None:
    """That of the choices [N, L] within the limits that costs least; -1 stands for no column."""
    rows = np.arange(choices.shape[1])
    choices = choices[(choices >= 0).all(axis=1)]
    fits = np.ones(len(choices), dtype=bool)
    for table, limit in zip(problem.usage, problem.limits + problem.slack, strict=True):
        fits &= table[rows, choices].sum(axis=1) <= limit
    choices = choices[fits]
    by_loss = np.argsort(problem.loss[rows, choices].sum(axis=1), kind="stable")
    return next((choice for choice in choices[by_loss] if problem.keeps(choice)), None)


class _Columns:
    """From widths of weights to columns: the rule for inputs, unit by unit."""

    def __init__(self, problem: Problem, widths: Integers, strict: bool) -> None:
        self.widths, self.strict, self.units = widths, strict, problem.units
        self.inputs = np.unique(problem.input_bits)
        # [L, m, i] the column with these widths that costs least, -1 where none is offered
        self.column = np.full((len(problem.loss), len(widths), len(self.inputs)), -1)
        for m, i in np.ndindex(self.column.shape[1:]):
            columns = np.flatnonzero((problem.weight_bits == widths[m]) & (problem.input_bits == self.inputs[i]))
            if columns.size:
                offered = problem.offered[:, columns].any(axis=1)
                self.column[:, m, i] = np.where(offered, columns[problem.loss[:, columns].argmin(axis=1)], -1)

    def of(self, rows: Integers) -> Integers:
        """[N, G] columns for indices of widths [N, G]; -1 where the rule leads to none."""
        chosen = np.full_like(rows, -1)
        for unit in self.units:
            width = rows[:, unit]
            fits = np.all(self.column[unit, width] >= 0, axis=1)  # [N, i] inputs offered to all with these weights
            shared = (self.inputs == self.widths[width][:, :, None]).any(axis=1)
            preferred = np.where(np.any(fits & shared, axis=1, keepdims=True), fits & shared, fits)
            column = self.column[unit, width, preferred.argmax(axis=1)[:, None]]
            wrong = ~np.any(fits, axis=1)
            if self.strict:
                wrong |= (width != width[:, :1]).any(axis=1)
            chosen[:, unit] = np.where(wrong[:, None], -1, column)
        return chosen
