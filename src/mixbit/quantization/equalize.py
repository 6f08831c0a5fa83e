"""Cross-layer equalization: the channels between two layers scaled so that both weights are as large in each."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput, track
from mixbit.graph.graph import Graph, Layer, argument, is_parameter, num_uses, packet

_aten = torch.ops.aten
_KINDS = ("linear", "conv1d", "conv2d", "conv3d")
#: f(s x) = s f(x) for s > 0, channel by channel.
_HOMOGENEOUS = {_aten.relu}
#: Ends where no factor differs from 1 by more; pairs that share a layer settle by about half at each round.
TOLERANCE = 1e-4
MOST_ROUNDS = 1000
#: A channel whose weights are all below this share of the layer's largest is left as it is.
NEGLIGIBLE = 1e-6


def equalizing_factors(first: Tensor, second: Tensor) -> Tensor:
    """The factors s = sqrt(r1 r2) / r2 [channels]: r1 / s and r2 s are both sqrt(r1 r2).

    1 where either is negligible beside its layer's largest. (Nagel et al. 2019, equation 11, arXiv 1906.04721.)

    Example:
        >>> equalizing_factors(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 3.0]))
        tensor([2., 1.])
    """
    counts = (first > NEGLIGIBLE * first.max()) & (second > NEGLIGIBLE * second.max())
    return torch.where(counts, (first / torch.where(counts, second, 1)).sqrt(), 1)


@torch.no_grad()
def equalized(graph: Graph) -> Graph:
    """The graph, its function unchanged, with weights that differ less in size from channel to channel.

    Wherever one layer alone reads what another returns, itself or through a ReLU, output channel i of the first (weight
    and bias) is divided by s_i and input channel i of the second multiplied by it, s_i as in `equalizing_factors` with
    the largest magnitudes for ranges; over all such pairs, again until nothing changes. Layers are linear ones and
    convolutions, of any groups, that are not transposed. Other functions in between, ReLU6 among them, do not let
    factors through, and such pairs are left as they are. (Nagel et al. 2019, section 4.1, arXiv 1906.04721.)

    Args:
        graph: A captured graph in float; it is left as it is.

    Returns:
        A new graph; a copy where there is no such pair.

    Raises:
        InvalidInput: the graph is quantized.
    """
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; equalize the captured graph")
    result = graph.copy()
    pairs = _pairs(result)
    names = {name for pair in pairs for name in (pair.first, pair.bias, pair.second) if name is not None}
    tensors = {name: result.parameter(name).double().contiguous() for name in names}
    for _ in track(range(MOST_ROUNDS), "equalize channels"):
        if max((_equalize(tensors, pair) for pair in pairs), default=0.0) < TOLERANCE:
            break
    for name, value in tensors.items():
        result.parameter(name).copy_(value)
    return result


@dataclass(frozen=True)
class _Pair:
    """Names of the first layer's weight and bias and of the second's weight, whose convolution has groups."""

    first: str
    bias: str | None
    second: str
    groups: int


def _equalize(tensors: dict[str, Tensor], pair: _Pair) -> float:
    """Rescale one pair in place; returns the largest distance of a factor from 1."""
    first, second = tensors[pair.first], tensors[pair.second]
    # [groups, outputs of a group, inputs of a group, positions]
    grouped = second.reshape(pair.groups, second.shape[0] // pair.groups, second.shape[1], -1)
    factors = equalizing_factors(first.abs().flatten(1).amax(1), grouped.abs().amax((1, 3)).flatten())
    first /= factors.reshape(-1, *[1] * (first.ndim - 1))
    if pair.bias is not None:
        tensors[pair.bias] /= factors
    grouped *= factors.reshape(pair.groups, 1, -1, 1)
    return float((factors - 1).abs().max())


def _pairs(graph: Graph) -> list[_Pair]:
    """Every two layers, in execution order, between which factors can be moved."""
    layers = {layer.operations[0].node: layer for layer in graph.layers if _is_plain(graph, layer)}
    pairs = []
    for name, first in layers.items():
        node, (operation,) = graph.node(name), first.operations
        reader, bias = _reader(node), argument(node, operation.kind.bias)
        second = layers.get(reader.name) if reader is not None else None
        if second is None or not operation.takes_bias or (bias is not None and num_uses(bias) != 1):
            continue
        (other,) = second.operations
        if other.channels_last == operation.channels_last:
            pairs.append(_Pair(first.name, graph.bias(operation), second.name, other.groups))
    return pairs


def _is_plain(graph: Graph, layer: Layer) -> bool:
    """Whether the layer is one linear operator or convolution, and nothing else reads its weight."""
    (operation, *others) = layer.operations
    weight = argument(graph.node(operation.node), operation.kind.weight)
    return not others and operation.kind.name in _KINDS and is_parameter(weight) and num_uses(weight) == 1


def _reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads what this one returns, itself or through homogeneous functions, as its first input."""
    while len(node.users) == 1:
        (user,) = node.users
        if argument(user, 0) is not node:
            return None
        if packet(user) not in _HOMOGENEOUS:
            return user
        node = user
    return None
