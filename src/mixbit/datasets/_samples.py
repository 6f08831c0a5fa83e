"""Samples of files in batches, in an order that is drawn anew from a seed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from mixbit.core import InvalidInput
from mixbit.datasets.load import BATCH_SIZE, Reading


@dataclass(frozen=True)
class Samples(Iterable[Any]):
    """Batches of samples in a seeded order, since files are often sorted by class; read as they are asked for.

    Every pass has the same order, but for training.

    Attributes:
        spec: DATA, for errors.
        size: Number of samples.
        read: Numbers of samples -> their batch; None where all of them are left out.
        reading: Size of the batches, seed, and whether every pass has an order of its own.
    """

    spec: str
    size: int
    read: Callable[[Sequence[int]], Any]
    reading: Reading
    passes: Iterator[int] = field(default_factory=count, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InvalidInput(f"DATA {self.spec}: holds no sample")

    def __length_hint__(self) -> int:
        return -(-self.size // self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        past = next(self.passes) if self.reading.every_epoch else 0
        generator = torch.Generator().manual_seed((self.reading.seed + past) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        read = 0
        for start in range(0, self.size, self._batch_size):
            batch = self.read(order[start : start + self._batch_size])
            if batch is not None:
                read += 1
                yield batch
        if read == 0:
            raise InvalidInput(f"DATA {self.spec}: no sample can be read")

    @property
    def _batch_size(self) -> int:
        return self.reading.batch_size or BATCH_SIZE
