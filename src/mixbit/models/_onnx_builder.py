"""What is known while an ONNX file is gone through, and how nodes are added to the graph that it becomes."""

import inspect
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from mixbit.core import UnsupportedModel, quoted
from mixbit.models._onnx_batch import Batch, lifted, size
from mixbit.models._onnx_file import OnnxFile
from mixbit.models._onnx_names import free_name, parameter_name
from mixbit.models._onnx_numbers import MOST_NUMBERS, is_number, tensor as as_tensor
from mixbit.models._onnx_operators import ARITHMETIC, NUMBERS, RECURRENT


@dataclass(frozen=True)
class Stored:
    """A tensor of the file, or made of those, as a value.

    Attributes:
        name: In the file.
        is_weight: Whether it is one that training changes.
        transposed: Whether its two dimensions change places when it is read.
    """

    name: str
    is_weight: bool
    transposed: bool = False


@dataclass(frozen=True)
class Held:
    """A tensor that the module holds: its name in the file, the operator that reads it first, and where."""

    tensor: Tensor
    name: str
    reader: Any
    place: int
    is_weight: bool


@dataclass
class Builder:
    """What is known while the file is gone through.

    Attributes:
        values: Name -> a node, numbers, a stored tensor, or a tuple of these.
        known: Node -> what it makes of each example.
        fixed: Nodes that depend on no input.
        readers: Name -> the operators that read it, and where.
        read_inside: Names that a branch or loop reads, and does not make itself.
    """

    file: OnnxFile
    examples: Sequence[Mapping[str, Tensor]]
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, Any] = field(default_factory=dict)
    known: dict[fx.Node, list[Any]] = field(default_factory=dict)
    fixed: set[fx.Node] = field(default_factory=set)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    layers: Counter[str] = field(default_factory=Counter)
    readers: dict[str, list[tuple[Any, int]]] = field(default_factory=lambda: defaultdict(list))
    first: Any = None

    statistics: set[str] = field(default_factory=set)
    fused: set[str] = field(default_factory=set)
    read_inside: set[str] = field(default_factory=set)
    names_of: Counter[fx.Node] = field(default_factory=Counter)

    def note_readers(self, graph: Any, *, inside: bool = False) -> None:
        own = {name for node in graph.node for name in node.output}
        for node in graph.node:
            for place, name in enumerate(node.input):
                self.readers[name].append((node, place))
            if inside:
                self.read_inside.update(name for name in node.input if name not in own)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.note_readers(attribute.g, inside=True)
        for value in graph.output:
            self.readers[value.name].append((None, 0))

    def constant(self, name: str, tensor: Tensor, *, stored: bool = False) -> Any:
        """Few integers, and what operators take as numbers, as numbers; others as a stored tensor."""
        readers = self.readers[name]
        few = tensor.numel() <= MOST_NUMBERS and not tensor.is_floating_point()
        as_number = bool(readers) and all(
            node is not None and place in NUMBERS.get(node.op_type, ()) for node, place in readers
        )
        single = tensor.numel() == 1 and all(node is not None and node.op_type in ARITHMETIC for node, _ in readers)
        if few or as_number or tensor.ndim == 0 or single:
            return tensor.tolist()
        is_weight = stored and tensor.is_floating_point() and bool(tensor.isfinite().all())
        key = self._key(name, tensor)
        self.tensors[key] = tensor
        return Stored(key, is_weight and name not in self.statistics)

    def _key(self, name: str, tensor: Tensor) -> str:
        """The name, or where branches or the rounds of a loop call another tensor so, one of its own."""
        key, number = name, 1
        while key in self.tensors and not _same(self.tensors[key], tensor):
            number += 1
            key = f"{name}_{number}"
        self.readers[key] = self.readers[name]
        return key

    def read(self, name: str, node: Any, place: int) -> Any:
        """The value as an argument: numbers where the operator takes numbers, else a node."""
        value = self.values[name] if name else None
        if isinstance(value, Stored) and place in NUMBERS.get(node.op_type, ()):
            return self.tensors[value.name].tolist()
        return self.stored(value, node, place) if isinstance(value, Stored) else value

    def node(self, name: str) -> Any:
        value = self.values[name]
        if is_number(value):
            tensor = torch.tensor(value)
            self.tensors[name] = tensor
            value = Stored(name, False)
        if isinstance(value, Stored):
            return self.stored(value, None, 0)
        if isinstance(self.known[value][0], tuple):
            raise UnsupportedModel(
                f"MODEL {self.file.path}: output {quoted(name)} is a sequence; let the file return its tensors"
            )
        return value if isinstance(self.known[value][0], Tensor) else self.call(as_tensor, [value, self.first], {})

    def stored(self, value: Stored, reader: Any, place: int) -> fx.Node:
        """The node that reads the tensor."""
        tensor = self.tensors[value.name]
        node = self.hold(value.name, Held(tensor, value.name, reader, place, value.is_weight))
        return self.call(torch.t, [node], {}) if value.transposed else node

    def hold(self, key: str, held: "Held") -> fx.Node:
        """A node that reads the tensor; it gets its name once it is known which tensors are read."""
        self.held.setdefault(key, held)
        node = self.graph.get_attr(key)
        self.known[node] = [held.tensor] * len(self.examples)
        self.fixed.add(node)
        return node

    def named_tensors(self) -> nn.Module:
        """A module of the tensors that are read, and their names in the place of keys."""
        root, targets, inside = nn.Module(), dict[str, str](), set[str]()
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target not in targets:
                held = self.held[node.target]
                name = free_name(parameter_name(held.name, held.reader, held.place), set(targets.values()), inside)
                targets[node.target] = name
                owner, _, attribute = name.rpartition(".")
                holder = root
                for part in filter(None, owner.split(".")):
                    if part not in dict(holder.named_children()):
                        holder.add_module(part, nn.Module())
                    holder = holder.get_submodule(part)
                parts = name.split(".")
                inside.update(".".join(parts[:end]) for end in range(1, len(parts)))
                if held.is_weight:
                    holder.register_parameter(attribute, nn.Parameter(held.tensor))
                else:
                    holder.register_buffer(attribute, held.tensor)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                node.target = targets[node.target]
        return root

    def call(self, function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> fx.Node:
        """A node that calls the function, and what it makes of the examples."""
        node = self.graph.call_function(function, tuple(args), dict(options))
        made = []
        for number in range(len(self.examples)):
            given: Any = map_arg((tuple(args), dict(options)), lambda each, at=number: self.known[each][at])
            made.append(function(*given[0], **given[1]))
        self.known[node] = made
        if all(each in self.fixed for each in node.all_input_nodes):
            self.fixed.add(node)
        return node

    def called(self, name: str, function: Callable[..., Any], args: list[Any], options: dict[str, Any]) -> fx.Node:
        """A node of the operator; in a file of one batch size, with the size that there is in the place of that."""
        if len(self.examples) > 1:
            declared, larger = (
                [map_arg(arg, lambda each, at=at: self.known[each][at]) for arg in args]
                for at in (0, 1)  # type: ignore[misc]
            )
            at_first: Any = map_arg(options, lambda each: self.known[each][0])
            made = function(*declared, **at_first)
            args = lifted(name, args, declared, larger, made, self._batch())
        return self.call(function, args, options)

    def _batch(self) -> Batch:
        sized = next(node for node in self.known if node.op == "placeholder" and self.known[node][0].ndim)
        count = self.known[sized][0].shape[0]
        return Batch(count, lambda function, *args: self.call(function, args, {}), self.call(size, [sized, 0], {}))

    def options(self, function: Callable[..., Any], node: Any, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes that the function takes, and what else it asks for."""
        parameters = inspect.signature(function).parameters
        options = {name: value for name, value in attributes.items() if name in parameters}
        if node.op_type == "ConstantOfShape" and "value" in options:
            options["value"] = options["value"].item()
        extra = {"opset": self.file.opset, "outputs": len(node.output), "like": self.first}
        return options | {name: value for name, value in extra.items() if name in parameters}

    def name_outputs(self, node: Any, made: fx.Node) -> None:
        if node.op_type not in RECURRENT and "outputs" not in made.kwargs:
            values: list[Any] = [made, *[None] * (len(node.output) - 1)]
        elif len(node.output) == 1:
            values = [made]
        else:
            values = [
                self.call(operator.getitem, [made, place], {}) if name else None
                for place, name in enumerate(node.output)
            ]
            self.known.pop(made)
        for name, value in zip(node.output, values, strict=True):
            if name and value is not None:
                value.meta |= {"output": name, "node": node.name or name}
                self.values[name] = value
                self.names_of[value] += 1

    def keep(self, node: Any, made: Sequence[Any]) -> None:
        for name, value in zip(node.output, made, strict=True):
            self.values[name] = value
            if isinstance(value, fx.Node):
                self.names_of[value] += 1

    def forget(self, name: str) -> None:
        """Drop what a node makes of the examples once nothing reads it."""
        value = self.values.get(name)
        if isinstance(value, fx.Node) and value.op == "call_function":
            self.names_of[value] -= 1
            if self.names_of[value] <= 0:
                self.known.pop(value, None)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
