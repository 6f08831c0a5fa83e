"""What a network without some of its channels learns, block by block, from the network that had them."""

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor, fx, nn

from mixbit.core import track
from mixbit.core.io.store import Store
from mixbit.graph.blocks import Block, find_blocks
from mixbit.graph.graph import Graph, tensor_of
from mixbit.graph.walk import Stretch
from mixbit.pruning.channels import find_channels
from mixbit.roundings._input import Reconstruction, question_digest
from mixbit.training.blockwise import Kept, Pace, Passes, side_by_side

#: Steps of Adam: of weights, in their own root mean squares; of biases, in root mean square errors of the block.
RATE, BIAS_RATE = 0.01, 0.05
#: Samples of a step, GiB of activations held in memory.
BATCH_SIZE, CACHE_GIB = 32, 2.0


def recovered(asked: Reconstruction, keep: Tensor, iterations: int) -> Graph:
    """The smaller graph with weights and biases learned from the whole one, one block after the other.

    For each block, min mean (z - z')^2 over all parameters that it alone reads, with z the whole network's output of
    the block, as far as its channels are kept, and z' that of the smaller network, which reads what the blocks before
    it return: errors of earlier blocks are made up for by later ones. A block that learns nothing stays as it was.

    Args:
        asked: The whole network, and the smaller one of the same nodes as `simulated`.
        keep: [units] of the whole network's channels that the smaller one has.
        iterations: Steps of Adam for each block, the rate falling along half a cosine.

    Source: the blocks and their loss are those of Y. Li et al., "BRECQ", arXiv 2102.05426, in float.
    """
    learning = asked.simulated.copy()
    trained = [one for one in learning.module.parameters() if one.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    store, question = Store(asked.folder), question_digest(asked, "recovery", iterations=iterations)
    blocks = find_blocks(asked.graph) if iterations else ()
    kept = {
        name: Kept(held.dim, keep[held.units].nonzero().flatten().to(asked.graph.device))
        for name, held in find_channels(asked.graph).tensors.items()
        if not keep[held.units].all()
    }
    bar = track(range(len(blocks) * iterations), "learn blocks")
    passing = side_by_side(asked.case, learning, blocks, cache_gib=CACHE_GIB, kept=kept)
    with closing(bar), closing(passing):
        for number, block, part, passes in passing:
            parameters = _own_parameters(learning.module, part)
            pace = Pace(iterations, bar, torch.Generator().manual_seed(asked.seed + number))
            known = store.get(f"recovered-{number}", question)
            if known is not None:
                _put(parameters, known.tensors)
                pace.skip()
            else:
                _learn(parameters, block, part, passes, pace)
                store.put(f"recovered-{number}", question, parameters)
    for parameter in trained:
        parameter.requires_grad_(True)
    return learning


def _own_parameters(module: fx.GraphModule, part: Stretch) -> dict[str, nn.Parameter]:
    """Full name -> parameter of floating-point numbers that no node outside the block reads."""
    places = Counter(id(tensor_of(module, node)) for node in module.graph.find_nodes(op="get_attr"))
    inside = [node for node in part.nodes if node.op == "get_attr"]
    within = Counter(id(tensor_of(module, node)) for node in inside)
    found = {str(node.target): tensor_of(module, node) for node in inside}
    return {
        name: one
        for name, one in found.items()
        if isinstance(one, nn.Parameter) and one.is_floating_point() and within[id(one)] == places[id(one)]
    }


@torch.no_grad()
def _put(parameters: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    for name, tensor in known.items():
        parameters[name].copy_(tensor)


@torch.enable_grad()
def _learn(parameters: dict[str, nn.Parameter], block: Block, part: Stretch, passes: Passes, pace: Pace) -> None:
    """Learn one block, unless it is better as it is."""
    error = passes.mean_error(part, block.outputs)
    if not parameters or error == 0:
        pace.skip()
        return
    before = {name: one.detach().clone() for name, one in parameters.items()}
    optimizer, by_rows = _optimizer(parameters, error**0.5), passes.parts_by_rows(part, block.outputs)
    largest = [group["lr"] for group in optimizer.param_groups]
    for one in parameters.values():
        one.requires_grad_(True)
    for progress in pace.steps():
        for group, rate in zip(optimizer.param_groups, largest, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        batch, rows = passes.draw(BATCH_SIZE, pace.generator, by_rows=by_rows)
        loss = passes.error(part.run(passes.inputs(part, batch, rows), block.outputs), batch, rows) / error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one in parameters.values():
        one.requires_grad_(False)
    if not passes.mean_error(part, block.outputs) <= error:  # NaN is no improvement
        _put(parameters, before)


def _optimizer(parameters: dict[str, nn.Parameter], error: float) -> torch.optim.Optimizer:
    groups = []
    for one in parameters.values():
        size = float(one.detach().square().mean().sqrt())
        groups.append({"params": [one], "lr": RATE * size if one.ndim > 1 else BIAS_RATE * error})
    return torch.optim.Adam(groups)
