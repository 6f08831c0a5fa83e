"""Float networks made easier to quantize: statistics of batch norms from data, channels equalized between layers."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from mixbit.core import InvalidInput, differing, split_all, split_batches, track
from mixbit.graph import Graph, Walker, argument, in_order, is_parameter, num_uses, packet, seen
from mixbit.graph.capture import exported, free_dimensions, naming_the_batch, running_statistics
from mixbit.quantization.statistics import RunningMean

_aten = torch.ops.aten
_KINDS = ("linear", "conv1d", "conv2d", "conv3d")
#: f(s x) = s f(x) for s > 0, channel by channel.
_HOMOGENEOUS = {_aten.relu}
#: min(max(x, a), b), a and b behind x.
_CLAMPS = {_aten.hardtanh, _aten.clamp, _aten.clip}
#: Equalization ends where no factor differs from 1 by more. Pairs that share a layer get there by about half a round.
TOLERANCE = 1e-4
MOST_ROUNDS = 1000
#: A channel whose weights are all below this share of the layer's largest is left as it is.
NEGLIGIBLE = 1e-6
#: How far equalization brings the largest value of a channel towards the cut of a ReLU6 that it does not reach on the
#: data: other data may hold larger values.
SHARE_OF_CUT = 0.9


@torch.no_grad()
def reestimated(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of the model, in eval mode, whose batch norms hold the statistics of these data.

    mean = E[x] and variance = E[(x - mean)^2] of each channel of what a norm reads, over all samples of all batches and
    all positions: pooled, so that it does not matter how the data is cut into batches. The norms are taken in execution
    order, each on what the norms before it return with their new statistics. So in eval mode every norm returns mean 0
    and variance 1 on the data (before its own scale and shift). The data passes through the network once. A constant
    channel keeps its variance. (Wu and Johnson 2021, section 3, arXiv 2105.07576, there by statistics of the batch.)

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration batches; labels are allowed and not needed. Of more than FEW_SAMPLES samples, statistics
            are those of about as many, from all over the data.

    Raises:
        InvalidInput: there is no batch norm with running statistics, no batch, a single value for a channel, NaN or
            inf; or the model cannot be copied, or fails on a batch.
        UnsupportedModel: `torch.export` cannot follow the code.
    """
    pairs = split_batches(model, batches)
    batches = pairs.map(itemgetter(0))
    try:
        result = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"batch norms: the model cannot be copied: {error}; leave re-estimation out") from error
    dynamic = differing(batches)
    with naming_the_batch(batches):
        module, example, _ = exported(model, batches[0], dynamic)
    graph = Graph(module, example, {}, dynamic=free_dimensions(example, dynamic))
    owners = {node.name: names for node in module.graph.nodes if (names := running_statistics(node)) is not None}
    if not owners:
        raise InvalidInput("the model runs no batch norm with running statistics; leave their re-estimation out")
    calls: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node, names in owners.items():
        calls[names].append(node)
    moments = {names: RunningMean(graph.parameter(names[0]).shape) for names in calls}

    def see(_: int, node: fx.Node, __: Callable[..., Any], args: tuple[Any, ...]) -> None:
        moments[owners[node.name]].update(args[0].movedim(1, -1).flatten(0, -2))

    some = [inputs for inputs, _ in pairs.few()]
    for turn in in_order(graph, owners, calls, some, see, "re-estimate batch norms"):
        for names in turn:
            _set_statistics(graph, names, moments[names])
    for name in (name for names in calls for name in names):
        result.get_buffer(name).copy_(graph.parameter(name))
    return result


def _set_statistics(graph: Graph, names: tuple[str, str], statistics: RunningMean) -> None:
    norm, (mean, variance) = names[0].rpartition(".")[0], map(graph.parameter, names)
    if statistics.count < 2:
        raise InvalidInput(
            f"{norm}: sees a single value for each channel, which has no variance; give more samples, or leave the "
            "re-estimation of batch norms out"
        )
    new = statistics.squares / statistics.count
    if not (statistics.mean.isfinite().all() and new.isfinite().all()):
        raise InvalidInput(f"{norm}: reads NaN or inf on the data; clean it, or leave re-estimation out")
    mean.copy_(statistics.mean)
    variance.copy_(torch.where(new > 0, new, variance.cpu().double()))


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
def equalized(graph: Graph, batches: Iterable[Any] | None = None) -> Graph:
    """The graph, its function unchanged, with weights that differ less in size from channel to channel.

    Wherever one layer alone reads what another returns, itself or through a ReLU, output channel i of the first (weight
    and bias) is divided by s_i and input channel i of the second multiplied by it, s_i as in `equalizing_factors` with
    the largest magnitudes for ranges; over all such pairs, until nothing changes. Layers are linear ones and
    convolutions, of any groups, that are not transposed. (Nagel et al. 2019, section 4.1, arXiv 1906.04721.)

    With batches, this reaches through a ReLU6 too, min(max(x, 0), 6): it is a ReLU where x stays below 6. A channel
    that stays below SHARE_OF_CUT of the cut on all batches is scaled, at most up to there, so that on these data the
    function is unchanged; the others keep their size. Pairs with other functions in between stay as they are.

    Args:
        graph: A captured graph in float; it is left as it is.
        batches: What the model takes, labels allowed and not needed; None leaves pairs with a ReLU6 between as they
            are.

    Returns:
        A new graph; a copy where there is no such pair.

    Raises:
        InvalidInput: the graph is quantized, or a batch does not fit it.
    """
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; equalize the captured graph")
    result = graph.copy()
    pairs = _pairs(result)
    cuts = {pair: pair.cut for pair in pairs if pair.cut is not None}
    peaks = _shares_of_cuts(graph, cuts, batches) if cuts and batches is not None else {}
    pairs = [pair for pair in pairs if pair.cut is None or pair in peaks]
    names = {name for pair in pairs for name in (pair.first, pair.bias, pair.second) if name is not None}
    tensors = {name: result.parameter(name).double().contiguous() for name in names}
    for _ in track(range(MOST_ROUNDS), "equalize channels"):
        if max((_equalize(tensors, pair, peaks.get(pair)) for pair in pairs), default=0.0) < TOLERANCE:
            break
    for name, value in tensors.items():
        result.parameter(name).copy_(value)
    return result


class _Pair(NamedTuple):
    """Names of the first layer's operator, weight and bias and of the second's weight, whose convolution has groups.

    `cut`: where the function between them cuts what the first returns; None where it does not.
    """

    node: str
    first: str
    bias: str | None
    second: str
    groups: int
    cut: float | None


def _shares_of_cuts(graph: Graph, cuts: dict[_Pair, float], batches: Iterable[Any]) -> dict[_Pair, Tensor]:
    """[channels] the largest value that each pair's first layer returns on the batches, as a share of its cut."""
    shares: dict[_Pair, Tensor] = {}

    def see(pair: _Pair, value: Tensor, _: object) -> None:
        _, operation = graph.operations[pair.node]
        largest = value.double().movedim(operation.channels, 0).flatten(1).amax(1) / cuts[pair]
        shares[pair] = torch.maximum(shares[pair], largest) if pair in shares else largest

    walker = Walker(graph.module, {pair.node: seen(partial(see, pair)) for pair in cuts})
    for number, (inputs, _) in enumerate(track(split_all(batches, len(graph.example.args)), "find cut channels")):
        walker.returned(graph.leaves(inputs, f"batch {number}"))
    return shares


def _equalize(tensors: dict[str, Tensor], pair: _Pair, shares: Tensor | None) -> float:
    """Rescale one pair in place, and its shares of the cut; returns the largest distance of a factor from 1."""
    first, second = tensors[pair.first], tensors[pair.second]
    # [groups, outputs of a group, inputs of a group, positions]
    grouped = second.reshape(pair.groups, second.shape[0] // pair.groups, second.shape[1], -1)
    factors = equalizing_factors(first.abs().flatten(1).amax(1), grouped.abs().amax((1, 3)).flatten())
    if shares is not None:
        least = shares / SHARE_OF_CUT
        factors = torch.where(least < 1, torch.maximum(factors, least), 1)
        shares /= factors
    first /= factors.reshape(-1, *[1] * (first.ndim - 1))
    if pair.bias is not None:
        tensors[pair.bias] /= factors
    grouped *= factors.reshape(pair.groups, 1, -1, 1)
    return float((factors - 1).abs().max())


def _pairs(graph: Graph) -> list[_Pair]:
    """Every two layers, in execution order, between which factors can be moved."""
    plain = {}
    for name, pair in graph.operations.items():
        weight = argument(graph.node(name), pair[1].kind.weight)
        if pair[1].kind.name in _KINDS and is_parameter(weight) and num_uses(weight) == 1:
            plain[name] = pair
    pairs = []
    for name, (first, operation) in plain.items():
        node = graph.node(name)
        (reader, cut), bias = _reader(node), argument(node, operation.kind.bias)
        if reader is None or reader.name not in plain or not operation.takes_bias:
            continue
        second, other = plain[reader.name]
        if other.channels_last == operation.channels_last and (bias is None or num_uses(bias) == 1):
            pairs.append(_Pair(name, first.name, graph.bias(operation), second.name, other.groups, cut))
    return pairs


def _reader(node: fx.Node) -> tuple[fx.Node | None, float | None]:
    """The only node that reads, as its first input, what this one returns, itself or through homogeneous functions.

    And where these cut it off, a ReLU6 at 6; None where they do not.
    """
    cut: float | None = None
    while len(node.users) == 1:
        (user,) = node.users
        if argument(user, 0) is not node:
            break
        bound = _cut_of(user)
        if bound is None and packet(user) not in _HOMOGENEOUS:
            return user, cut
        node, cut = user, min((each for each in (cut, bound) if each is not None), default=None)
    return None, None


def _cut_of(node: fx.Node) -> float | None:
    """The b > 0 of min(max(x, 0), b), where the node is that."""
    if packet(node) is _aten.relu6:
        return 6.0
    low, high = (argument(node, place) for place in (1, 2))
    is_cut = packet(node) in _CLAMPS and isinstance(low, int | float) and isinstance(high, int | float)
    return float(high) if is_cut and low == 0 < high else None
