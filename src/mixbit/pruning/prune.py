"""prune_channels(): a smaller graph without the channels that the network misses least."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mixbit.batches import split_all
from mixbit.errors import InvalidInput, UnsupportedModel
from mixbit.exporting import copy_module
from mixbit.fold import set_bias
from mixbit.graph import TOLERANCE, Graph, capture
from mixbit.layers import find_layers
from mixbit.nodes import argument, get_tensor, split_name, tensor_of
from mixbit.pruning.channels import Channels, Count, Reader, find_channels
from mixbit.pruning.importance import Cut, Masked, importance, mean_outputs
from mixbit.task import Task

#: Share of its channels that every tensor keeps, one at least: an empty or starved layer cuts the network in two.
KEPT_EVERYWHERE = 0.1
#: Channels stand in for one another: what one is worth depends on which others are gone.
ROUNDS = 5


@dataclass(frozen=True)
class Removal:
    """What is gone between two graphs; pairs are before and after.

    Attributes:
        layers: Layer -> its output channels.
        parameters: Numbers in all parameters.
        macs: Multiply-accumulates of one sample.
    """

    layers: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    macs: tuple[int, int]

    @classmethod
    def between(cls, graph: Graph, smaller: Graph) -> "Removal":
        """What `prune_channels` removed from one graph to make the other."""
        old, new = ({layer.name: layer for layer in find_layers(one)} for one in (graph, smaller))
        counts = [sum(parameter.numel() for parameter in one.module.parameters()) for one in (graph, smaller)]
        return cls(
            {name: (layer.shape[layer.axis], new[name].shape[layer.axis]) for name, layer in old.items()},
            (counts[0], counts[1]),
            (sum(layer.macs for layer in old.values()), sum(layer.macs for layer in new.values())),
        )

    def __str__(self) -> str:
        before, after = (sum(pair[index] for pair in self.layers.values()) for index in (0, 1))
        pairs = {"output channels": (before, after), "parameters": self.parameters, "MACs": self.macs}
        return ", ".join(
            f"{name} {old:,} -> {new:,} (-{(old - new) / max(1, old):.1%})" for name, (old, new) in pairs.items()
        )


def prune_channels(
    graph: Graph,
    batches: Iterable[Any],
    *,
    share: float = 0.3,
    task: Task | None = None,
    compensate: bool = True,
    seed: int = 0,
) -> Graph:
    """A smaller float graph: the share of channels goes that the network misses least.

    Channels that must go together are one unit (`mixbit.pruning.channels`). In five rounds, each of which measures
    anew, units go in the order of importance (expected KL divergence, `mixbit.pruning.importance`), until `share` of
    those that can go are gone; every tensor keeps a tenth of its channels. The mean of what the removed channels added
    to a layer's output goes to the layer's bias.

    The network loses accuracy until it is fine-tuned. The graph given and the user's model stay as they are.

    Args:
        graph: A captured graph in float.
        batches: Calibration batches; labels only where the task has a loss of the user's own. Kept in memory.
        share: Of the channels, those that go together counted as one; between 0 and 1.
        task: What the outputs mean; classification where None.
        compensate: Whether biases take up the mean of what is removed.
        seed: Of the labels drawn from the model.

    Raises:
        InvalidInput: a share out of range, a quantized graph, no channel that can be cut, or data that does not fit.
        UnsupportedModel: the smaller graph does not compute what the graph does without these channels.
    """
    check_share(share)
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; prune the graph that capture() returns, then quantize it")
    pairs = split_all(batches, len(graph.example.args))
    for number, (inputs, _) in enumerate(pairs):
        graph.check(inputs, f"batch {number}")
    channels = find_channels(graph)
    able = channels.free & _of_layers(channels)
    if not able.any():
        raise InvalidInput(f"the model has no channels that can be cut: all reach {', '.join(channels.obstacles)}")
    wanted = share * int(able.sum())
    cut = Cut(torch.ones(channels.num_units, dtype=torch.bool))
    for number in range(1, ROUNDS + 1):
        means = mean_outputs(graph, channels, pairs, cut) if compensate else {}
        losses = importance(graph, channels, pairs, means, cut, task=task or Task.classification(), seed=seed + number)
        count = math.floor(wanted * number / ROUNDS + 1e-9) - int((~cut.keep).sum())
        cut = _grown(cut, choose(losses, able, channels, cut.keep, count), channels, means)
    if cut.keep.all():
        raise InvalidInput(f"share={share} of {int(able.sum())} channels removes none; give a larger one")
    smaller = capture(_cut(graph, channels, cut), graph.example)
    _check_same(graph, smaller, channels, cut)
    return smaller


def check_share(share: float) -> None:
    """Raise InvalidInput unless it is a share of channels that can be removed."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InvalidInput(f"share={share!r}: give a share of the channels between 0 and 1, as 0.3")


def _grown(cut: Cut, keep: Tensor, channels: Channels, means: Mapping[str, Tensor]) -> Cut:
    """The cut of the units that are not kept: the means of what went just now join the shifts."""
    gone, shifts = cut.keep & ~keep, dict(cut.shifts)
    for reader in channels.readers:
        name = reader.operation.node
        if name in means and gone[reader.units].any():
            shifts[name] = shifts.get(name, 0) + means[name][:, gone[reader.units]].sum(1)
    return Cut(keep, shifts)


def choose(losses: Tensor, able: Tensor, channels: Channels, keep: Tensor, count: int) -> Tensor:
    """[units] what stays after one round: units go in the order of `losses`, at most so many.

    Args:
        losses: [units] the smaller, the sooner.
        able: [units] which may go.
        channels: Which tensors may not become empty.
        keep: [units] what is there before.
        count: How many may go.
    """
    members: list[Counter[int]] = [Counter() for _ in range(channels.num_units)]
    spare = []
    for index, units in enumerate(channels.tensors):
        spare.append(int(keep[units].sum()) - max(1, math.ceil(KEPT_EVERYWHERE * len(units))))
        for unit in units.tolist():
            members[unit][index] += 1
    keep, able = keep.clone(), keep & able
    for unit in torch.argsort(losses, stable=True).tolist():
        if not able[unit] or count < 1 or any(spare[index] < n for index, n in members[unit].items()):
            continue
        keep[unit] = False
        count -= 1
        for index, number in members[unit].items():
            spare[index] -= number
    return keep


def _of_layers(channels: Channels) -> Tensor:
    """[units] which hold an output channel of a layer."""
    found = torch.zeros(channels.num_units, dtype=torch.bool)
    for units in channels.outputs.values():
        found[units] = True
    return found


def _cut(graph: Graph, channels: Channels, cut: Cut) -> fx.GraphModule:
    """A copy of the module with the units that are kept, and the shifts in the readers' biases."""
    keep = cut.keep
    module = copy_module(graph.module)
    nodes = {node.name: node for node in module.graph.nodes}
    for part in channels.parts:
        tensor = get_tensor(module, part.parameter)
        kept = keep[part.units].nonzero().flatten().to(tensor.device)
        _set(module, part.parameter, tensor.detach().index_select(part.axis, kept))
    own = {part.parameter for part in channels.parts}  # they serve nothing else
    for reader in channels.readers:
        if (name := reader.operation.node) in cut.shifts:
            shift = cut.shifts[name][keep[channels.outputs[reader.layer.name]]]
            _add_to_bias(module, nodes[name], reader, shift, own)
    for count in channels.counts:
        node, new = nodes[count.node], int(keep[count.units].sum())
        node.update_arg(count.position, new if count.index is None else _entries(node, count, new))
    module.recompile()
    return module


def _entries(node: fx.Node, count: Count, new: int) -> list[Any]:
    """The list that holds the count, with the new number."""
    return [new if index == count.index else entry for index, entry in enumerate(argument(node, count.position))]


def _add_to_bias(module: fx.GraphModule, node: fx.Node, reader: Reader, shift: Tensor, own: set[str]) -> None:
    position = reader.operation.kind.bias
    if position is None:
        raise AssertionError("shifts are taken only for operators with a bias")
    bias = argument(node, position)
    added = shift if bias is None else tensor_of(module, bias).detach() + shift
    if bias is not None and bias.target in own:
        _set(module, str(bias.target), added)
    else:
        set_bias(module, node, added, reader.layer.name, position)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    holder, attribute = split_name(module, name)
    setattr(holder, attribute, nn.Parameter(value) if isinstance(getattr(holder, attribute), nn.Parameter) else value)


def _check_same(graph: Graph, smaller: Graph, channels: Channels, cut: Cut) -> None:
    """Raise unless the smaller graph returns on the example what the graph does without these channels."""
    with torch.no_grad():
        wanted = Masked(graph, channels, cut).run(*graph.leaves(graph.example), enable_io_processing=False)
        found = smaller(*graph.example.args, **graph.example.kwargs)
    for want, got in zip(*(pytree.tree_leaves(tree) for tree in (wanted, found)), strict=True):
        if isinstance(want, Tensor) and not torch.allclose(got, want, TOLERANCE, TOLERANCE * float(want.abs().max())):
            raise UnsupportedModel(
                f"the graph without {int((~cut.keep).sum())} channels differs by {float((got - want).abs().max()):.2g} "
                "from the graph with zeros in their place; leave its channels as they are, and report the model"
            )
