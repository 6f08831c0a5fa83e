"""Which channels of a graph are cut together: an analysis, channel by channel, that changes nothing."""

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, fx

from mixbit.graph.graph import (
    GROUPS,
    VIEWS,
    Graph,
    Layer,
    Operation,
    argument,
    is_parameter,
    packet,
    sizes_of,
    tensor_of,
)
from mixbit.graph.layers import ARITHMETIC, NONLINEARITIES

_aten = torch.ops.aten

_ELEMENTWISE = NONLINEARITIES | ARITHMETIC | {
    _aten.neg, _aten.abs, _aten.exp, _aten.sqrt, _aten.square, _aten.pow, _aten.maximum, _aten.minimum, _aten.clone,
    _aten.contiguous, _aten.detach, _aten.alias,
}  # fmt: skip
_TRAINABLE_NORM, _NORM = _aten.batch_norm, _aten._native_batch_norm_legit_no_training
#: Operators on [N, C, positions]; their names end with how many dimensions the positions have.
_POSITIONWISE = {
    _aten.max_pool1d, _aten.max_pool2d, _aten.max_pool3d, _aten.avg_pool1d, _aten.avg_pool2d, _aten.avg_pool3d,
    _aten.adaptive_avg_pool1d, _aten.adaptive_avg_pool2d, _aten.adaptive_avg_pool3d, _aten.upsample_nearest1d,
    _aten.upsample_nearest2d, _aten.upsample_nearest3d, _aten.upsample_bilinear2d, _aten.upsample_bicubic2d,
}  # fmt: skip
_REDUCTIONS = {_aten.mean, _aten.sum, _aten.amax, _aten.amin}
_REMOVALS = _REDUCTIONS | {_aten.squeeze, _aten.select, _aten.sym_size}


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

    def source(self, graph: Graph) -> fx.Node:
        """The node whose tensor it reads."""
        return argument(graph.node(self.operation.node), self.operation.data)


@dataclass(frozen=True)
class Place:
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
        tensors: Node -> where its tensor has channels, and which.
        free: [units] whether a unit can be cut.
        made: [units] whether layers make its channels.
        obstacles: What the units touch that cannot be cut, for messages.
    """

    parts: tuple[Part, ...]
    counts: tuple[Count, ...]
    readers: tuple[Reader, ...]
    tensors: dict[str, Place]
    free: Tensor
    made: Tensor
    obstacles: tuple[str, ...]

    @property
    def num_units(self) -> int:
        """Units, whether they can be cut or not."""
        return len(self.free)

    @property
    def cuttable_readers(self) -> tuple[Reader, ...]:
        """The readers of units that can be cut."""
        return tuple(reader for reader in self.readers if self.free[reader.units].any())


def find_channels(graph: Graph) -> Channels:
    """Follow every output channel of a layer through the graph, to where it is read or cannot be followed.

    Channels that meet in an elementwise operator are one unit. Followed: elementwise operators, poolings, resizing,
    means over positions, depthwise convolutions, batch norms, concatenation, padding and slices of channels too, views
    that keep the channels apart or merge them with positions, permutations. A unit that reaches anything else, the
    network's outputs among it, cannot be cut; nor can outputs of a weight or bias that serves twice.
    """
    return _Walk(graph).result()


class _Walk:
    """Nodes in execution order. Units are numbered as they appear; those that are cut together are one in `joined`."""

    def __init__(self, graph: Graph) -> None:
        self.module, self.layers = graph.module, graph.operations
        self.joined = DisjointSet()
        self.obstacles: dict[int, str] = {}
        self.places: dict[fx.Node, Place] = {}
        self.parts: list[Part] = []
        self.counts: list[Count] = []
        self.readers: list[Reader] = []
        self.made: list[Tensor] = []
        self.num_reads = Counter[int]()
        for node in self.module.graph.find_nodes(op="get_attr"):
            self.num_reads[id(tensor_of(self.module, node))] += len(node.users)

    def result(self) -> Channels:
        for node in self.module.graph.nodes:
            place = self._visit(node)
            if place is not None:
                self.places[node] = place
        numbers: dict[int, int] = {}
        final = torch.tensor(
            [numbers.setdefault(self.joined[unit], len(numbers)) for unit in self.joined], dtype=torch.long
        )
        free, made = torch.ones(len(numbers), dtype=torch.bool), torch.zeros(len(numbers), dtype=torch.bool)
        free[final[list(self.obstacles)]] = False
        for units in self.made:
            made[final[units]] = True

        def renumbered(item: Any) -> Any:
            return replace(item, units=final[item.units])

        return Channels(
            tuple(map(renumbered, self.parts)),
            tuple(map(renumbered, self.counts)),
            tuple(map(renumbered, self.readers)),
            {node.name: renumbered(place) for node, place in self.places.items()},
            free,
            made,
            tuple(dict.fromkeys(self.obstacles.values())),
        )

    def _new(self, count: int) -> Tensor:
        """Units that nothing is known of."""
        first = len(self.joined)
        for unit in range(first, first + count):
            self.joined.add(unit)
        return torch.arange(first, first + count)

    def _join(self, first: Tensor, second: Tensor) -> None:
        """Cut each unit of the first together with its counterpart of the second."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self.joined.merge(a, b)

    def _hold(self, units: Tensor, at: fx.Node) -> None:
        """They cannot be cut."""
        obstacle = "the network's output" if at.op == "output" else str(at.target).removesuffix(".default")
        for unit in units.tolist():
            self.obstacles.setdefault(unit, obstacle)

    def _visit(self, node: fx.Node) -> Place | None:
        """Where the node's tensor has channels; None where it has none that can be followed."""
        if node.name in self.layers:
            return self._layer(node, *self.layers[node.name])
        read = [source for source in node.all_input_nodes if source in self.places]
        if not read:
            return None
        if packet(node) is _aten.sym_size and _moved_axis(node, self.places[read[0]].dim) is not None:
            return None  # a number, which no cut changes
        place = self._follow(node, read)
        if place is None or (sizes_of(node) and sizes_of(node)[place.dim] != len(place.units)):
            return self._stop(read, node)
        return place

    def _follow(self, node: fx.Node, read: list[fx.Node]) -> Place | None:
        """As `_visit`, for what is no layer and reads channels."""
        kind, place = packet(node), self.places[read[0]]
        if kind in _ELEMENTWISE:
            return self._elementwise(node)
        if kind is _aten.cat:
            return self._concatenation(node)
        if read != [argument(node, 0)]:
            return None
        if node.target is operator.getitem:
            return place if packet(read[0]) is _NORM and node.args[1] == 0 else None
        if kind in _RULES:
            return _RULES[kind](self, node, place)
        dim = _moved_axis(node, place.dim)
        return None if dim is None else Place(dim, place.units)

    def _stop(self, nodes: Sequence[Any], at: fx.Node) -> None:
        """The units of these nodes' tensors cannot be cut."""
        for node in nodes:
            if node in self.places:
                self._hold(self.places[node].units, at)

    def _own(self, node: Any) -> bool:
        """Whether the node reads a parameter or buffer, plain or transposed, that serves nothing else."""
        while isinstance(node, fx.Node) and not is_parameter(node) and len(node.users) == 1:
            node = argument(node, 0)
        return is_parameter(node) and self.num_reads[id(tensor_of(self.module, node))] == 1

    def _shape(self, node: fx.Node) -> tuple[Any, ...]:
        return tuple(tensor_of(self.module, node).shape) if is_parameter(node) else sizes_of(node)

    def _layer(self, node: fx.Node, layer: Layer, operation: Operation) -> Place | None:
        x, kind = argument(node, operation.data), operation.kind
        ndim = len(self._shape(x))
        fits = kind.input is not None and (operation.channels_last or ndim == len(layer.shape))
        if not fits or len(layer.operations) > 1 or not self._own(argument(node, kind.weight)):
            return self._stop(node.all_input_nodes, node)
        dim = operation.channels % ndim
        place = self.places.get(x)
        if operation.groups > 1:
            depthwise = layer.axis == 0 and layer.shape[:2] == (operation.groups, 1)  # each output has its own input
            if place is None or place.dim != 1 or not depthwise:
                return self._stop([x], node)
            units = place.units
            self.counts.append(Count(node.name, GROUPS, None, units))
        else:
            units = self._new(layer.shape[layer.axis])
            if place is not None and place.dim == dim:
                self.parts.append(Part(layer.name, 1 - layer.axis, place.units))
                self.readers.append(Reader(layer, operation, place.units))
            else:
                self._stop([x], node)
        self.parts.append(Part(layer.name, layer.axis, units))
        self.made.append(units)
        bias = argument(node, kind.bias)
        if bias is not None and not self._add_vector(bias, units):
            self._hold(units, node)
        return Place(operation.channels % len(self._shape(node)), units)

    def _add_vector(self, node: Any, units: Tensor) -> bool:
        """Note a parameter [channels]; False where it is something else."""
        if not self._own(node) or not is_parameter(node) or self._shape(node) != (len(units),):
            return False
        self.parts.append(Part(str(node.target), 0, units))
        return True

    def _elementwise(self, node: fx.Node) -> Place | None:
        """The same units in every operand that has channels; the others are the same for all channels."""
        ndim = len(self._shape(node))
        read = [source for source in node.all_input_nodes if self._shape(source)]
        placed = [source for source in read if source in self.places]
        dims = {self.places[source].dim + ndim - len(self._shape(source)) for source in placed}
        counts = {len(self.places[source].units) for source in placed}
        if len(dims) != 1 or len(counts) != 1:
            return self._stop(placed, node)
        dim, units = dims.pop(), self.places[placed[0]].units
        for source in placed[1:]:
            self._join(self.places[source].units, units)
        for source in read:
            axis = dim - ndim + len(self._shape(source))
            if source in placed or axis < 0 or (self._shape(source)[axis] == 1 and len(units) > 1):
                continue
            if not is_parameter(source) or not self._own(source) or self._shape(source)[axis] != len(units):
                self._hold(units, node)
            else:
                self.parts.append(Part(str(source.target), axis, units))
        return Place(dim, units)

    def _concatenation(self, node: fx.Node) -> Place | None:
        read, ndim = argument(node, 0), len(self._shape(node))
        along = argument(node, 1, 0) % ndim
        dims = {self.places[source].dim for source in read if source in self.places}
        if len(dims) != 1 or (dims != {along} and any(source not in self.places for source in read)):
            return self._stop(read, node)
        dim = dims.pop()
        if dim == along:
            return Place(dim, torch.cat([self._units_or_held(source, dim, node) for source in read]))
        for source in read[1:]:
            self._join(self.places[source].units, self.places[read[0]].units)
        return self.places[read[0]]

    def _units_or_held(self, node: fx.Node, dim: int, at: fx.Node) -> Tensor:
        """The node's units; where it has none, new ones that cannot be cut."""
        if node in self.places:
            return self.places[node].units
        units = self._new(self._shape(node)[dim])
        self._hold(units, at)
        return units

    def _norm(self, node: fx.Node, place: Place) -> Place | None:
        by_batch = packet(node) is _TRAINABLE_NORM and argument(node, 5)
        vectors = [vector for vector in node.args[1:5] if vector is not None]
        if place.dim != 1 or by_batch or not all(self._own(vector) for vector in vectors):
            return None
        return place if all(self._add_vector(vector, place.units) for vector in vectors) else None

    def _prelu(self, node: fx.Node, place: Place) -> Place | None:
        slope = argument(node, 1)
        if place.dim != 1:
            return None
        alike = math.prod(self._shape(slope)) == 1 and len(place.units) > 1
        return place if alike or self._add_vector(slope, place.units) else None

    def _padding(self, node: fx.Node, place: Place) -> Place | None:
        pads = argument(node, 1)
        first = 2 * (len(self._shape(node)) - 1 - place.dim)
        if not all(isinstance(pad, int) for pad in pads):
            return None
        before, behind = pads[first : first + 2] if first < len(pads) else (0, 0)
        if before == behind == 0:
            return place
        constant = packet(node) is _aten.constant_pad_nd or argument(node, 2, "constant") == "constant"
        if not constant or before < 0 or behind < 0:
            return None
        sides = self._new(before), self._new(behind)
        for index, units in enumerate(sides):
            self.counts.append(Count(node.name, 1, first + index, units))
        return Place(place.dim, torch.cat([sides[0], place.units, sides[1]]))

    def _slice(self, node: fx.Node, place: Place) -> Place | None:
        size = len(place.units)
        if argument(node, 1, 0) % len(self._shape(node)) != place.dim:
            return place
        start, end, step = argument(node, 2), argument(node, 3), argument(node, 4, 1)
        if step != 1 or not all(isinstance(bound, int | None) for bound in (start, end)):
            return None
        start, end, _ = slice(start, end).indices(size)
        for position, bound in ((2, start), (3, end)):
            if position < len(node.args):
                self.counts.append(Count(node.name, position, None, place.units[:bound]))
        return Place(place.dim, place.units[start:end]) if start < end else None

    def _view(self, node: fx.Node, place: Place) -> Place | None:
        """Channels that stay a dimension, or become one together with the positions around them."""
        before, after = self._shape(argument(node, 0)), self._shape(node)
        front = _num_alike(before, after)
        back = _num_alike(before[front:][::-1], after[front:][::-1])
        merged, into = before[front : len(before) - back], after[front : len(after) - back]
        if place.dim < front:
            dim, units = place.dim, place.units
        elif place.dim >= len(before) - back:
            dim, units = place.dim + len(after) - len(before), place.units
        elif len(into) == 1 and all(isinstance(size, int) for size in (*merged, *into)):
            shape = [-1 if front + index == place.dim else 1 for index in range(len(merged))]
            dim, units = front, place.units.reshape(shape).expand(*merged).flatten()
        else:
            return None
        if packet(node) is not _aten.flatten:
            wanted = argument(node, 1)
            size = wanted[dim] if isinstance(wanted, list | tuple) else None
            if not isinstance(size, int):
                return None
            if size != -1:
                self.counts.append(Count(node.name, 1, dim, units))
        return Place(dim, units)


_RULES: dict[Any, Callable[[_Walk, fx.Node, Place], Place | None]] = {
    **dict.fromkeys(VIEWS, _Walk._view),
    **dict.fromkeys((_TRAINABLE_NORM, _NORM), _Walk._norm),
    **dict.fromkeys((_aten.pad, _aten.constant_pad_nd), _Walk._padding),
    _aten.prelu: _Walk._prelu,
    _aten.slice: _Walk._slice,
}


def _num_alike(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many sizes are the same from the beginning; a symbol is the same only as itself."""
    pairs = list(zip(first, second, strict=False))
    return next((index for index, (a, b) in enumerate(pairs) if type(a) is not type(b) or str(a) != str(b)), len(pairs))


def _moved_axis(node: fx.Node, axis: int) -> int | None:
    """Where the node's output has that dimension of its first argument; None where it mixes it, or is not known.

    For `sym_size`, which returns no tensor, the same dimension where it asks for another one.
    """
    kind, sizes = packet(node), sizes_of(argument(node, 0))
    if kind in _POSITIONWISE:
        return axis if axis == 1 and len(sizes) == int(kind.__name__[-2]) + 2 else None
    if kind in _REMOVALS:
        dims = argument(node, 1)
        gone = {dim % len(sizes) for dim in ([dims] if isinstance(dims, int) else dims or range(len(sizes)))}
        squeezed = kind is not _aten.squeeze or all(sizes[dim] == 1 for dim in gone)
        keeps = kind is _aten.sym_size or (kind in _REDUCTIONS and argument(node, 2, False))
        return None if axis in gone or not squeezed else axis if keeps else axis - sum(dim < axis for dim in gone)
    if kind is _aten.unsqueeze:
        return axis + (argument(node, 1) % (len(sizes) + 1) <= axis)
    if kind is _aten.permute:
        return [dim % len(sizes) for dim in argument(node, 1)].index(axis)
    if kind in (_aten.transpose, _aten.t):
        first, second = (argument(node, position, position - 1) % len(sizes) for position in (1, 2))
        return {first: second, second: first}.get(axis, axis)
    return None
