"""Running a stretch of a graph alone, on cached tensors."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import InvalidInput
from mixbit.graph.blocks import Block
from mixbit.graph.graph import Graph


class Stretch:
    """One block of a float or simulated graph: the nodes to run, and the tensors it reads from outside.

    Attributes:
        inputs: Names of nodes outside whose tensors depend on the data.
        nodes: The nodes to run, parameters, constants and sizes among them.
        made: Names of the nodes whose tensors it makes.
    """

    def __init__(self, graph: Graph, own: frozenset[fx.Node], carried: frozenset[fx.Node]) -> None:
        self.graph, self.interpreter = graph, _Interpreter(graph.module)
        inputs: dict[str, None] = {}
        needed: set[fx.Node] = set()

        waiting = list(own)
        while waiting:
            node = waiting.pop()
            if node in carried and node not in own:
                inputs[node.name] = None
            elif node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self.nodes = [node for node in graph.module.graph.nodes if node in needed]
        self.made = frozenset(node.name for node in own)
        self.inputs = tuple(node.name for node in graph.module.graph.nodes if node.name in inputs)

    def run(
        self,
        tensors: Mapping[str, Tensor],
        outputs: Iterable[str],
        replaced: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Name -> tensor for the wanted nodes.

        Args:
            tensors: Those of `inputs`, by name.
            outputs: Names of wanted nodes: of the block, or inputs that pass by.
            replaced: Path of a module in the graph -> what to call in its place.
        """
        self.interpreter.replaced = replaced or {}
        env = self.interpreter.env = {self.graph.node(name): tensors[name] for name in self.inputs}
        for node in self.nodes:
            env[node] = self.interpreter.run_node(node)
        self.interpreter.env = {}
        return {name: env[self.graph.node(name)] for name in outputs}


class _Interpreter(fx.Interpreter):
    replaced: Mapping[str, Callable[[Tensor], Tensor]]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        call = self.replaced.get(str(target))
        return super().call_module(target, args, kwargs) if call is None else call(*args)


def stretches(graph: Graph, blocks: tuple[Block, ...]) -> list[Stretch]:
    """The blocks as stretches of the graph they were found in, or of its simulation.

    Quantizers of activations run in the block that first reads what they return.
    """
    places = {name: number for number, block in enumerate(blocks) for name in block.nodes}
    own: list[set[fx.Node]] = [set() for _ in blocks]
    for node in reversed(graph.module.graph.nodes):
        if node.op == "call_module":
            places[node.name] = min((places[user.name] for user in node.users if user.name in places), default=-1)
        if places.get(node.name, -1) >= 0:
            own[places[node.name]].add(node)
    carried = _carried(graph.module)
    return [Stretch(graph, frozenset(nodes & carried), carried) for nodes in own]


def _carried(module: fx.GraphModule) -> frozenset[fx.Node]:
    """The nodes whose tensors depend on the inputs; sizes, which can be read again, are none."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            continue
        if node.op == "placeholder" or any(before in found for before in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def needed_later(parts: list[Stretch]) -> list[set[str]]:
    """For each stretch, the tensors that those after it read."""
    later: list[set[str]] = []
    wanted: set[str] = set()
    for part in reversed(parts):
        later.append(set(wanted))
        wanted |= set(part.inputs)
    return later[::-1]


_log = logging.getLogger("mixbit")


class ActivationCache:
    """(batch, name) -> tensor without its gradients' history, or what else a node returns.

    Args:
        limit_bytes: What may be held in memory; further tensors go to a temporary folder, which is said once.
        device: Where tensors come back.
    """

    def __init__(self, limit_bytes: float, device: torch.device) -> None:
        self.limit_bytes = limit_bytes
        self.device = device
        self.in_memory = 0
        self.values: dict[tuple[int, str], Any] = {}
        self.files: dict[tuple[int, str], Path] = {}
        self.folder: TemporaryDirectory[str] | None = None
        self.number = 0

    def put(self, batch: int, name: str, value: Any) -> None:
        """Keep a value; nobody else changes its memory."""
        if isinstance(value, Tensor):
            value, size = value.detach(), _size(value)
            if self.in_memory + size > self.limit_bytes:
                value = self._to_disk(batch, name, value, f"more than {self.limit_bytes / 2**30:g} GiB")
            else:
                try:
                    value = value.clone()
                    self.in_memory += size
                except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError where an allocator fails
                    value = self._to_disk(batch, name, value, str(error).splitlines()[0])
        self.values[batch, name] = value

    def get(self, batch: int, name: str) -> Any:
        """What was put."""
        value = self.values[batch, name]
        return value.to(self.device) if (batch, name) in self.files else value

    def holds(self, batch: int, name: str) -> bool:
        """Whether such a value was put and not dropped."""
        return (batch, name) in self.values

    def take(self, batch: int) -> dict[str, Any]:
        """Name -> value of all that was put for a batch, which is dropped here."""
        found = {name: self.get(number, name) for number, name in self.values if number == batch}
        for name in found:
            self._drop(batch, name)
        return found

    def keep_only(self, names: set[str]) -> None:
        """Drop the values of other names."""
        for batch, name in [key for key in self.values if key[1] not in names]:
            self._drop(batch, name)

    def close(self) -> None:
        """Drop everything, the folder as well."""
        self.keep_only(set())
        if self.folder is not None:
            self.folder.cleanup()

    def _drop(self, batch: int, name: str) -> None:
        value, file = self.values.pop((batch, name)), self.files.pop((batch, name), None)
        if file is not None:
            file.unlink()
        elif isinstance(value, Tensor):
            self.in_memory -= _size(value)

    def _to_disk(self, batch: int, name: str, tensor: Tensor, why: str) -> Tensor:
        if self.folder is None:
            try:
                self.folder = TemporaryDirectory(prefix="mixbit-")
            except OSError as error:
                raise InvalidInput(f"activations cannot be kept ({error}); set TMPDIR to another place") from error
            _log.warning("activations are kept in %s: %s", self.folder.name, why)
        self.number += 1
        path = self.files[batch, name] = Path(self.folder.name) / str(self.number)
        try:
            mapped = torch.from_file(str(path), shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
        except RuntimeError as error:
            raise InvalidInput(
                f"{path}: activations cannot be written ({str(error).splitlines()[0]}); set TMPDIR to a place with "
                "room, or give fewer batches"
            ) from error
        return mapped[: tensor.numel()].reshape(tensor.shape).copy_(tensor)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
