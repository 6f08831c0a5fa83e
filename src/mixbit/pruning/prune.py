"""A graph without the channels that nothing reads."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, UnsupportedModel
from mixbit.core.batches import Batch, split_all
from mixbit.core.io.store import Store
from mixbit.core.task import Task
from mixbit.graph.capture import TOLERANCE, capture
from mixbit.graph.graph import Graph, argument, check_arguments, split_name
from mixbit.graph.layers import find_layers
from mixbit.pruning.channels import find_channels
from mixbit.pruning.importance import importance, make_up, predict
from mixbit.pruning.recovery import recovered
from mixbit.pruning.units import Channels
from mixbit.roundings._input import RoundingInput


def without_channels(graph: Graph, keep: Tensor) -> Graph:
    """A copy whose tensors have only the units to keep; its nodes are the same, and the shapes noted in them.

    Args:
        graph: A float graph whose layers have zeros for weights wherever they would read other units.
        keep: [units] of `find_channels`.

    Raises:
        UnsupportedModel: on the example the copy returns something else.
    """
    channels, smaller = find_channels(graph), graph.copy()
    for part in channels.parts:
        tensor = smaller.parameter(part.parameter)
        places = keep[part.units].nonzero().flatten().to(tensor.device)
        value = tensor.detach().index_select(part.axis, places)
        holder, attribute = split_name(smaller.module, part.parameter)
        setattr(holder, attribute, nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value)
    for count in channels.counts:
        node, number = smaller.node(count.node), int(keep[count.units].sum())
        new: Any = number
        if count.index is not None:
            new = list(argument(node, count.position))
            new[count.index] = number
        node.update_arg(count.position, new)
    smaller.module.recompile()
    smaller = dataclasses.replace(smaller, layers=find_layers(smaller))
    _check_same(graph, smaller, int((~keep).sum()))
    return smaller


@torch.no_grad()
def _check_same(graph: Graph, smaller: Graph, num_units: int) -> None:
    leaves = [pytree.tree_leaves(each(*graph.example.args, **graph.example.kwargs)) for each in (graph, smaller)]
    for want, got in zip(*leaves, strict=True):
        if isinstance(want, Tensor) and not torch.allclose(got, want, TOLERANCE, TOLERANCE * float(want.abs().max())):
            raise UnsupportedModel(
                f"the graph without {num_units} channels differs by {float((got - want).abs().max()):.2g} "
                "from the graph with zeros in their place; leave its channels as they are, and report the model"
            )


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
        old, new = ({layer.name: layer for layer in each.layers} for each in (graph, smaller))
        counts = [sum(parameter.numel() for parameter in each.module.parameters()) for each in (graph, smaller)]
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
    iterations: int = 500,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Graph:
    """A smaller float graph: the share of channels goes that the network misses least.

    Channels that must go together are one unit (`mixbit.pruning.channels`). In five rounds, each of which measures
    anew, units go in the order of importance (expected KL divergence, `mixbit.pruning.importance`), until `share` of
    those that can go are gone; every tensor keeps a tenth of its channels. Layers make up for channels that they no
    longer read by those that they still do. What is left is then learned block by block
    from the outputs of the network given (`mixbit.pruning.recovery`).

    The network loses accuracy until it is fine-tuned. The graph given and the user's model stay as they are.

    Args:
        graph: A captured graph in float.
        batches: Calibration batches; labels only where the task has a loss of the user's own. Held in memory.
        share: Of the channels, those that go together counted as one; between 0 and 1.
        task: What the outputs mean; classification where None.
        iterations: Steps of Adam for each block, 0 for none: half a minute to minutes for a small network.
        seed: Of the labels drawn from the model, and the samples of a step.
        folder: Where learned blocks are stored, so that an interrupted call resumes; None stores nothing.

    Raises:
        InvalidInput: a share out of range, a quantized graph, no channel that can be cut, or data that does not fit.
        UnsupportedModel: the smaller graph does not compute what the graph does without these channels.
    """
    check_arguments(graph, task, seed)
    check_share(share)
    place = Store(folder).folder
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise InvalidInput(f"iterations={iterations!r}: give a whole number from 0")
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; prune the graph that capture() returns, then quantize it")
    pairs = split_all(batches, len(graph.example.args))
    for number, (inputs, _) in enumerate(pairs):
        graph.check(inputs, f"batch {number}")
    task = task or Task.classification()
    masked, keep = _chosen(graph, pairs, share, task, seed)
    smaller = without_channels(masked, keep)
    given = RoundingInput(graph, smaller, [inputs for inputs, _ in pairs], task, seed, place)
    return capture(recovered(given, keep, iterations).module, graph.example)


def _chosen(graph: Graph, pairs: list[Batch], share: float, task: Task, seed: int) -> tuple[Graph, Tensor]:
    """The graph whose layers read only the units that stay, its shapes as before; and [units] which stay."""
    channels = find_channels(graph)
    able = torch.zeros_like(channels.free)
    for units in channels.outputs.values():
        able[units] = channels.free[units]
    if not able.any():
        obstacles = f"all reach {', '.join(channels.obstacles)}" if channels.obstacles else None
        reason = obstacles or "its weights serve twice, or are computed"
        raise InvalidInput(f"the model has no channels that can be cut: {reason}")
    masked = graph.copy()
    keep, wanted = torch.ones(channels.num_units, dtype=torch.bool), share * int(able.sum())
    for number in range(1, ROUNDS + 1):
        predictions = predict(masked, channels, pairs, keep)
        losses = importance(masked, channels, pairs, predictions, task=task, seed=seed + number)
        if not losses.isfinite().all():
            raise InvalidInput(f"task {task.name}: the gradient of its loss is NaN or inf on these batches")
        count = math.floor(wanted * number / ROUNDS + 1e-9) - int((~keep).sum())
        left = choose(losses, able, channels, keep, count)
        make_up(masked, channels, predictions, keep, left)
        keep = left
    if keep.all():
        raise InvalidInput(
            f"share={share} of {int(able.sum())} channels removes none: every tensor keeps a tenth of its channels, "
            "and one at least; give a larger share, or leave the channels as they are"
        )
    return masked, keep


def check_share(share: float) -> None:
    """Raise InvalidInput unless it is a share of channels that can be removed."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InvalidInput(f"share={share!r}: give a share of the channels between 0 and 1, as 0.3")


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
    for index, units in enumerate({tuple(held.units.tolist()) for held in channels.tensors.values()}):
        spare.append(int(keep[list(units)].sum()) - max(1, math.ceil(KEPT_EVERYWHERE * len(units))))
        for unit in units:
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
