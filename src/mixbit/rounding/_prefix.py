"""The simulated network, run level by level while its layers are rounded one after the other."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from mixbit.errors import InvalidInput
from mixbit.graph import Graph
from mixbit.task import Inputs

#: Bytes of tensors between two levels that stay in memory; what goes beyond lies in files.
MOST_BYTES = 2**30


class Prefix:
    """Every batch, run as far as the operators that are rounded already.

    A node's level is the number of those operators before it, itself included, on the longest way from the inputs.
    Operators of one level do not depend on one another, and all they read is there once the levels below have run. So
    all levels of all batches together cost one run of the network; between two levels, the tensors that are still to
    be read are kept for all batches, in memory up to MOST_BYTES, in temporary files beyond.

    Args:
        graph: The simulated graph; its tensors may change between two levels.
        operators: Names of the nodes that start a new level.
        batches: Inputs of the network.
        folder: For temporary files.

    Attributes:
        levels: Node -> level, for all nodes that depend on the inputs.
        num_batches: As many as were given.
    """

    def __init__(self, graph: Graph, operators: Collection[str], batches: Iterable[Inputs], folder: Path) -> None:
        self.graph = graph
        self.levels = node_levels(graph.module.graph, operators)
        self._interpreter = fx.Interpreter(graph.module)
        self._constants: dict[fx.Node, Any] = {}
        self._kept = _Kept(folder, graph.device)
        self.num_batches = 0
        placeholders = graph.module.graph.find_nodes(op="placeholder")
        for number, inputs in enumerate(batches):
            leaves = graph.leaves(inputs, f"batch {number}")
            self._kept.put(number, {node.name: leaf for node, leaf in zip(placeholders, leaves, strict=True)})
            self.num_batches += 1

    def advance(self, batch: int, level: int) -> dict[fx.Node, Any]:
        """Run that level of the batch, the ones below having run; returns the tensors that higher levels read."""
        held = {self.graph.node(name): value for name, value in self._kept.take(batch).items()}
        values = self.run(level, held)
        self._kept.put(batch, {node.name: value for node, value in values.items()})
        return values

    def run(self, level: int, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """As `advance`, from the given tensors, and keeps nothing."""
        reached = dict(values)
        for node in (node for node, its in self.levels.items() if its == level and node.op != "placeholder"):
            reached |= {before: self._constant(before) for before in node.all_input_nodes if before not in self.levels}
            self._interpreter.env = reached
            reached[node] = self._interpreter.run_node(node)
        return {
            node: value
            for node, value in reached.items()
            if node in self.levels and any(self.levels.get(user, 0) > level for user in node.users)
        }

    def forget_weights(self) -> None:
        """Read weights again, since some have changed."""
        self._constants.clear()

    def _constant(self, node: fx.Node) -> Any:
        """The value of a node that depends on no input: a weight, or what is made of one."""
        if node not in self._constants:
            reached = {before: self._constant(before) for before in node.all_input_nodes}
            self._interpreter.env = reached
            self._constants[node] = self._interpreter.run_node(node)
        return self._constants[node]


def node_levels(graph: fx.Graph, operators: Collection[str]) -> dict[fx.Node, int]:
    """Node -> how many of the operators there are before it, itself included; for all that depend on the inputs."""
    levels: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = [levels[one] for one in node.all_input_nodes if one in levels]
        if node.op == "placeholder" or (before and node.op != "output"):
            levels[node] = max(before, default=0) + (node.name in operators)
    return levels


class _Kept:
    """Values of every batch by name; the tensors beyond MOST_BYTES lie in temporary files."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._values: dict[int, dict[str, Any]] = {}
        self._bytes: dict[int, int] = {}

    def put(self, batch: int, values: dict[str, Any]) -> None:
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if tensors and sum(self._bytes.values()) + size > MOST_BYTES:
            contiguous = {name: one.clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
            try:
                safetensors.torch.save_file(contiguous, self._file(batch))
            except (OSError, SafetensorError) as error:
                raise InvalidInput(
                    f"{self._file(batch)}: tensors between layers cannot be written ({error}); set TMPDIR to a place "
                    "with room, or give fewer batches"
                ) from error
            values = {name: value for name, value in values.items() if name not in tensors}
            size = 0
        self._values[batch], self._bytes[batch] = values, size

    def take(self, batch: int) -> dict[str, Any]:
        values, self._bytes[batch] = self._values.pop(batch), 0
        if self._file(batch).exists():
            values |= safetensors.torch.load_file(self._file(batch), device=str(self._device))
            self._file(batch).unlink()
        return values

    def _file(self, batch: int) -> Path:
        return self._folder / f"{batch}.safetensors"
