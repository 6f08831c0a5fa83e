"""A graph without the channels that nothing reads."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mixbit.errors import UnsupportedModel
from mixbit.exporting import copy_module
from mixbit.graph import TOLERANCE, Graph
from mixbit.nodes import argument, get_tensor, split_name
from mixbit.pruning.channels import find_channels
from mixbit.pruning.units import Count


def without_channels(graph: Graph, keep: Tensor) -> Graph:
    """A copy whose tensors have only the units that are kept; its nodes are the same, and the shapes noted in them.

    Args:
        graph: A float graph whose layers have zeros for weights wherever they would read other units.
        keep: [units] of `find_channels`.

    Raises:
        UnsupportedModel: on the example the copy returns something else.
    """
    channels, module = find_channels(graph), copy_module(graph.module)
    for part in channels.parts:
        tensor = get_tensor(module, part.parameter)
        kept = keep[part.units].nonzero().flatten().to(tensor.device)
        _set(module, part.parameter, tensor.detach().index_select(part.axis, kept))
    nodes = {node.name: node for node in module.graph.nodes}
    for count in channels.counts:
        node, new = nodes[count.node], int(keep[count.units].sum())
        node.update_arg(count.position, new if count.index is None else _entries(node, count, new))
    module.recompile()
    smaller = dataclasses.replace(graph, module=module)
    _check_same(graph, smaller, int((~keep).sum()))
    return smaller


def _entries(node: fx.Node, count: Count, new: int) -> list[Any]:
    """The list that holds the count, with the new number."""
    return [new if index == count.index else entry for index, entry in enumerate(argument(node, count.position))]


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    holder, attribute = split_name(module, name)
    setattr(holder, attribute, nn.Parameter(value) if isinstance(getattr(holder, attribute), nn.Parameter) else value)


@torch.no_grad()
def _check_same(graph: Graph, smaller: Graph, num_units: int) -> None:
    leaves = [pytree.tree_leaves(one(*graph.example.args, **graph.example.kwargs)) for one in (graph, smaller)]
    for want, got in zip(*leaves, strict=True):
        if isinstance(want, Tensor) and not torch.allclose(got, want, TOLERANCE, TOLERANCE * float(want.abs().max())):
            raise UnsupportedModel(
                f"the graph without {num_units} channels differs by {float((got - want).abs().max()):.2g} "
                "from the graph with zeros in their place; leave its channels as they are, and report the model"
            )
