"""prune_channels(): a smaller graph, without the channels that the network misses least, and what it learns again."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mixbit.core import Batch, InvalidInput, Store, Task, UnsupportedModel, checked, reserved, split_all
from mixbit.graph import Graph, argument, check_arguments, fitted, split_name, tensor_of, with_layers
from mixbit.graph.capture import TOLERANCE, capture
from mixbit.pruning.channels import find_channels
from mixbit.pruning.importance import choose, importance, make_up, predict
from mixbit.roundings import RoundingInput
from mixbit.training.blockwise import Block, Learner, Schedule, Stretch, find_blocks, learn_blocks


@torch.no_grad()
def without_channels(graph: Graph, keep: Tensor) -> Graph:
    """A copy whose tensors have only the units [units] to keep; its nodes are the same, and the shapes noted in them.

    Layers of the graph have zeros where they would read other units; raises UnsupportedModel where outputs differ.
    """
    channels, smaller = find_channels(graph), graph.copy()
    for part in channels.parts:
        tensor = smaller.parameter(part.parameter)
        places = keep[part.units].nonzero().flatten().to(tensor.device)
        value = tensor.detach().index_select(part.axis, places)
        holder, attribute = split_name(smaller.module, part.parameter)
        setattr(holder, attribute, nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value)
    for count in channels.counts:
        node, new = smaller.node(count.node), int(keep[count.units].sum())
        if count.index is not None:
            sizes = list(argument(node, count.position))
            sizes[count.index], new = new, sizes
        node.update_arg(count.position, new)
    smaller.module.recompile()
    smaller = with_layers(smaller)
    leaves = [pytree.tree_leaves(each(*graph.example.args, **graph.example.kwargs)) for each in (graph, smaller)]
    for want, got in zip(*leaves, strict=True):
        if isinstance(want, Tensor) and not torch.allclose(got, want, TOLERANCE, TOLERANCE * float(want.abs().max())):
            raise UnsupportedModel(
                f"the graph without {int((~keep).sum())} channels differs by {float((got - want).abs().max()):.2g} "
                "from the graph with zeros in their place; leave its channels as they are, and report the model"
            )
    return smaller


#: Steps of Adam: of weights, in their own root mean squares; of biases, in root mean square errors of the block.
RATE, BIAS_RATE = 0.01, 0.05
#: Samples of a step, GiB of activations held in memory.
BATCH_SIZE, CACHE_GIB = 32, 2.0
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
    def between(cls, graph: Graph, smaller: Graph, **more: Any) -> Self:
        """What `prune_channels` removed from one graph to make the other, and `more` for a class with more fields."""
        old, new = ({layer.name: layer for layer in each.layers} for each in (graph, smaller))
        counts = [sum(parameter.numel() for parameter in each.module.parameters()) for each in (graph, smaller)]
        return cls(
            {name: (layer.shape[layer.axis], new[name].shape[layer.axis]) for name, layer in old.items()},
            (counts[0], counts[1]),
            (sum(layer.macs for layer in old.values()), sum(layer.macs for layer in new.values())),
            **more,
        )

    def __str__(self) -> str:
        before, after = (sum(pair[index] for pair in self.layers.values()) for index in (0, 1))
        pairs = {"output channels": (before, after), "parameters": self.parameters, "MACs": self.macs}
        return ", ".join(
            f"{name} {old:,} -> {new:,} (-{(old - new) / max(1, old):.1%})" for name, (old, new) in pairs.items()
        )


@checked
def prune_channels(
    graph: Graph,
    batches: Iterable[Any],
    *,
    share: float = 0.3,
    task: Task | str | None = None,
    iterations: int = 500,
    seed: int = 0,
    folder: str | Path | None = None,
) -> Graph:
    """A smaller float graph: the share of channels goes that the network misses least.

    Channels that must go together are one unit (`mixbit.pruning.channels`). In five rounds, each of which measures
    anew, units go in the order of importance (expected KL divergence, `mixbit.pruning.importance`), until `share` of
    those that can go are gone; every tensor keeps a tenth of its channels. Layers make up for the channels that they
    lose by those that they still read. The smaller network then learns, block by block, the outputs of the one given.

    The network loses accuracy until it is fine-tuned. The graph given and the user's model stay as they are.

    Args:
        graph: A captured graph in float.
        batches: Calibration batches; labels only where the task has a loss of the user's own. Held in memory.
        share: Of the channels, those that go together counted as one; between 0 and 1.
        task: What the outputs mean, as a Task or its name; classification where None.
        iterations: Steps of Adam for each block, 0 for none: half a minute to minutes for a small network.
        seed: Random seed.
        folder: Where learned blocks are stored, so that an interrupted call resumes; None stores nothing.

    Raises:
        InvalidInput: a share out of range, a quantized graph, no channel that can be cut, or data that does not fit.
        UnsupportedModel: the smaller graph does not compute what the graph does without these channels.
    """
    task = Task.of(task)
    check_arguments(graph, task, seed)
    check_share(share)
    place = Store(folder).folder
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise InvalidInput(f"iterations={iterations!r}: give a whole number from 0")
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; prune the graph that capture() returns, then quantize it")
    if graph.dynamic:
        raise UnsupportedModel("prune_channels: the graph has dynamic dimensions; prune one that was captured without")
    pairs = split_all(batches, len(graph.example.args))
    for number, (inputs, _) in enumerate(pairs):
        graph.check(inputs, f"batch {number}")
    masked, keep = _chosen(graph, pairs, share, task, seed)
    smaller = without_channels(masked, keep)
    learning = RoundingInput(graph, smaller, [inputs for inputs, _ in pairs.few()], task, seed, place)
    with reserved(place):
        return capture(recovered(learning, keep, iterations).module, graph.example)


def _chosen(graph: Graph, pairs: Sequence[Batch], share: float, task: Task, seed: int) -> tuple[Graph, Tensor]:
    """The graph whose layers read only the units that stay, its shapes as before; and [units] which stay."""
    channels = find_channels(graph)
    able = channels.free & channels.made
    if not able.any():
        obstacles = f"all reach {', '.join(channels.obstacles)}" if channels.obstacles else None
        reason = obstacles or "its weights serve twice, or are computed"
        raise InvalidInput(f"the model has no channels that can be cut: {reason}")
    masked, task = graph.copy(), fitted(task, graph, pairs)
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


def recovered(inputs: RoundingInput, keep: Tensor, iterations: int) -> Graph:
    """The smaller graph with weights and biases learned from the whole one, one block after the other.

    For each block, min mean (z - z')^2 over all parameters that it alone reads, with z the whole network's output of
    the block, as far as its channels stay, and z' that of the smaller network, which reads what the blocks before it
    return: later blocks make up for errors of earlier ones. A block that learns nothing stays as it was.

    `inputs` holds the whole network, and the smaller one of the same nodes as `simulated`; `keep` [units] says which of
    the whole network's channels the smaller one has. Rates fall along half a cosine.

    Source: the blocks and their loss are those of Y. Li et al., "BRECQ", arXiv 2102.05426, in float.
    """
    slices = {
        name: (place.dim, keep[place.units].nonzero().flatten().to(inputs.graph.device))
        for name, place in find_channels(inputs.graph).tensors.items()
        if not keep[place.units].all()
    }
    return learn_blocks(
        inputs.case,
        inputs.simulated,
        find_blocks(inputs.graph) if iterations else (),
        _Parameters,
        Schedule(iterations, BATCH_SIZE, CACHE_GIB),
        label="learn blocks",
        stored=(inputs.store, "recovered", inputs.question("recovery", iterations=iterations)),
        slices=slices,
    )


class _Parameters(Learner):
    """The parameters of one block in float: those of floating-point numbers that no node outside the block reads."""

    def __init__(self, learning: Graph, block: Block, part: Stretch) -> None:
        super().__init__(learning, block, part)
        module = learning.module
        reads = Counter(id(tensor_of(module, node)) for node in module.graph.find_nodes(op="get_attr"))
        tensors = {node: tensor_of(module, node) for node in part.nodes if node.op == "get_attr"}
        inside = Counter(map(id, tensors.values()))
        self.names = list(
            dict.fromkeys(
                str(node.target)
                for node, tensor in tensors.items()
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
                if inside[id(tensor)] == reads[id(tensor)]
            )
        )

    def begin(self, error: float) -> list[dict[str, Any]]:
        """Matrices learn at a rate relative to their size, vectors at one relative to the error."""
        groups = []
        for parameter in map(self.learning.parameter, self.names):
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": RATE * size if parameter.ndim > 1 else BIAS_RATE * error})
            parameter.requires_grad_(True)
        return groups

    def rate(self, progress: float) -> float:
        """Half a cosine, from 1 to 0."""
        return (1 + math.cos(math.pi * progress)) / 2
