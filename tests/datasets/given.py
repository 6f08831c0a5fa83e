"""Data as a user would write it: a tensor, a tuple with labels last, a dict."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mixbit.core.batches import as_given, split_batch
from mixbit.datasets import load


@dataclass(frozen=True)
class Given:
    batches: Iterable

    def __iter__(self):
        return (as_given(split_batch(batch)) for batch in self.batches)


def load_data(spec, model, reading=None):
    loaded = load.load_data(spec, model, reading)
    return replace(loaded, batches=Given(loaded.batches))
