"""Units: sets of channels, of several tensors, that are cut all or none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mixbit.graph.graph import Layer, Operation, argument


@dataclass(frozen=True)
class Part:
    """A parameter or buffer whose entries along `axis` are the `units` [size of the axis]."""

    parameter: str
    axis: int
    units: Tensor


@dataclass(frozen=True)
class Count:
    """A number among a node's arguments that counts the `units`: argument `position`, in a list its entry `index`."""

    node: str
    position: int
    index: int | None
    units: Tensor


@dataclass(frozen=True)
class Reader:
    """A layer's operation, and the `units` [input channels or features] that it reads."""

    layer: Layer
    operation: Operation
    units: Tensor

    def data(self, node: fx.Node) -> fx.Node:
        """What is read by the reader's node."""
        return argument(node, self.operation.data)


@dataclass(frozen=True)
class Held:
    """Dimension `dim` of a node's tensor holds the `units` [size of the dimension]."""

    dim: int
    units: Tensor


@dataclass(frozen=True)
class Channels:
    """Which channels are cut together. A unit is a set of channels, of several tensors, that are cut all or none.

    Attributes:
        parts: The parameters and buffers that have channels.
        counts: The numbers in the graph that count channels.
        readers: What reads channels and mixes them.
        outputs: Layer -> units of its output channels.
        tensors: Node -> where its tensor has channels, and which.
        free: [units] whether a unit can be cut.
        obstacles: What the other units touch, for messages.
    """

    parts: tuple[Part, ...]
    counts: tuple[Count, ...]
    readers: tuple[Reader, ...]
    outputs: dict[str, Tensor]
    tensors: dict[str, Held]
    free: Tensor
    obstacles: tuple[str, ...]

    @property
    def num_units(self) -> int:
        """Units, whether they can be cut or not."""
        return len(self.free)

    @property
    def cuttable_readers(self) -> tuple[Reader, ...]:
        """The readers of units that can be cut."""
        return tuple(reader for reader in self.readers if self.free[reader.units].any())


class Units:
    """The units of a graph while it is analysed. A unit is a number; joined units get the same one in the end.

    Attributes:
        parts: Fields of each `Part`, the units as they are numbered here.
        counts: Those of each `Count`.
        readers: Those of each `Reader`.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._obstacles: dict[int, str] = {}
        self.parts: list[tuple[str, int, list[int]]] = []
        self.counts: list[tuple[str, int, int | None, list[int]]] = []
        self.readers: list[tuple[Layer, Operation, list[int]]] = []

    def new(self, count: int) -> list[int]:
        """Units that nothing is known of."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return list(range(first, first + count))

    def join(self, first: Sequence[int], second: Sequence[int]) -> None:
        """Cut each unit of the first together with its counterpart of the second."""
        for a, b in zip(first, second, strict=True):
            self._parents[self._root(a)] = self._root(b)

    def hold(self, units: Sequence[int], obstacle: str) -> None:
        """They cannot be cut."""
        for unit in units:
            self._obstacles.setdefault(unit, obstacle)

    def channels(self, outputs: dict[str, list[int]], places: dict[str, tuple[int, list[int]]]) -> Channels:
        """All of it, with joined units under one number."""
        numbers: dict[int, int] = {}
        final = [numbers.setdefault(self._root(unit), len(numbers)) for unit in range(len(self._parents))]

        def tensor(units: Iterable[int]) -> Tensor:
            return torch.tensor([final[unit] for unit in units], dtype=torch.long)

        free = torch.ones(len(numbers), dtype=torch.bool)
        free[[final[unit] for unit in self._obstacles]] = False
        return Channels(
            tuple(Part(name, axis, tensor(units)) for name, axis, units in self.parts),
            tuple(Count(name, position, index, tensor(units)) for name, position, index, units in self.counts),
            tuple(Reader(layer, operation, tensor(units)) for layer, operation, units in self.readers),
            {name: tensor(units) for name, units in outputs.items()},
            {name: Held(dim, tensor(units)) for name, (dim, units) in places.items()},
            free,
            tuple(dict.fromkeys(self._obstacles.values())),
        )

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            self._parents[unit] = self._parents[self._parents[unit]]
            unit = self._parents[unit]
        return unit
