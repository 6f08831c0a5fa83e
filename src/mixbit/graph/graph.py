"""The captured network: its nodes, the layers that can be quantized and their operators, and running it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, Plan
from mixbit.core.batches import Batch, Inputs
from mixbit.core.task import Task
from mixbit.graph.torch_export import copy_module, export_program


def argument(node: fx.Node, position: int | None, default: Any = None) -> Any:
    """The positional argument of a node; the default where it takes none there."""
    return node.args[position] if position is not None and position < len(node.args) else default


def packet(node: fx.Node) -> Any:
    """The operator of a node whatever its overload, as `torch.ops.aten.conv2d`; None where it calls no operator."""
    return getattr(node.target, "overloadpacket", None)


def is_parameter(node: object) -> bool:
    """Whether the node reads a parameter or buffer as it is."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def split_name(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the parameter, buffer or module of that full name, and its name there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that full name."""
    holder, attribute = split_name(module, name)
    return getattr(holder, attribute)


def tensor_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that the node reads."""
    return get_tensor(module, str(node.target))


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters are; the CPU for a module without any."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def check_graph(graph: Any, name: str = "graph") -> None:
    """Raise InvalidInput unless it is a graph with a layer."""
    if not isinstance(graph, Graph):
        raise InvalidInput(f"{name}: a {type(graph).__name__}; give what capture() or quantize() returned")
    if not graph.layers:
        raise InvalidInput("the model has no layer: no linear, convolution, embedding or matmul with a parameter")


def check_arguments(graph: Any, task: Any, seed: Any) -> None:
    """Raise InvalidInput unless they are a graph, a task or None, and a seed; or where there can be no gradients."""
    check_graph(graph)
    if task is not None and not isinstance(task, Task):
        raise InvalidInput(f"task: a {type(task).__name__}; give Task.classification() or another, or Task.named(name)")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InvalidInput(f"seed={seed!r}: give a whole number from 0 to 2**32 - 1")
    if torch.is_inference_mode_enabled():
        raise InvalidInput("in inference mode there are no gradients; call from outside torch.inference_mode()")


@dataclass(frozen=True)
class Graph:
    """A functional graph with its own copy of the parameters, called like the model it came from.

    Attributes:
        module: The graph as a module: evaluates and trains.
        example: The inputs it was captured with, at least two samples.
        shapes: Node name -> shape of its tensor on the example.
        layers: The weights that can be quantized and the operators that use them, in execution order.
        plan: The plan whose quantizers it holds; None for a graph in float.
    """

    module: fx.GraphModule
    example: Inputs
    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple["Layer", ...] = ()
    plan: Plan | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; same signature and output structure as the user's model."""
        return self.module(*args, **kwargs)

    @property
    def batch_size(self) -> int:
        """Samples in the example."""
        return self.example.batch_size

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a graph without any."""
        return device_of(self.module)

    def node(self, name: str) -> fx.Node:
        """The node of that name."""
        return self._nodes[name]

    def parameter(self, name: str) -> Tensor:
        """The parameter or buffer of that full name."""
        return get_tensor(self.module, name)

    def bias(self, operation: "Operation") -> str | None:
        """Full name of the parameter that the operator adds to its output; None where it adds none."""
        bias = argument(self.node(operation.node), operation.kind.bias)
        return str(bias.target) if is_parameter(bias) else None

    def run(self, operation: "Operation", x: Tensor, weight: Tensor) -> Tensor:
        """The operator's output for another input and weight (shaped like the parameter), without its bias."""
        kind, node = operation.kind, self.node(operation.node)
        if operation.transposed:
            weight = weight.t()
        if kind.name in ("addmm", "matmul"):
            return torch.matmul(x, weight)
        arguments = list(node.args)
        arguments[operation.data] = x
        arguments[kind.weight] = weight
        if kind.bias is not None and len(arguments) > kind.bias:
            arguments[kind.bias] = None
        return node.target(*arguments, **node.kwargs)  # type: ignore[operator] an operator is callable

    def copy(self) -> "Graph":
        """The same with a module of its own, for changes in place."""
        return dataclasses.replace(self, module=copy_module(self.module))

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.module.graph.nodes}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # a copy has its own nodes

    def check(self, inputs: Inputs, place: str) -> None:
        """Raise InvalidInput, which begins with the place, where the inputs do not fit the example.

        Their names, number, shapes, types and values are looked at.
        """
        kwargs = self.example.kwargs
        if inputs.kwargs.keys() != kwargs.keys() or len(inputs.args) != len(self.example.args):
            wanted = self.example.describe()
            raise InvalidInput(f"{place}: inputs {inputs.describe()} do not fit the example's {wanted}")
        if inputs.batch_size == 0:
            raise InvalidInput(f"{place}: holds no sample; leave it out")
        given, wanted = self._ordered(inputs), self._ordered(self.example)
        if len(given) != len(wanted):
            raise InvalidInput(f"{place}: {len(given)} values, the example has {len(wanted)}")
        for number, (leaf, model) in enumerate(zip(given, wanted, strict=True)):
            _check_leaf(f"{place}: input {number}", leaf, model)

    def leaves(self, inputs: Inputs, place: str = "batch") -> list[Any]:
        """The inputs in the order of the graph's placeholders, on its device; raises as `check` does."""
        self.check(inputs, place)
        return [leaf.to(self.device) if isinstance(leaf, Tensor) else leaf for leaf in self._ordered(inputs)]

    def tensors(self, inputs: Inputs) -> list[Tensor]:
        """The tensors among the leaves, on the CPU: what an artefact takes."""
        return [leaf.cpu() for leaf in self.leaves(inputs) if isinstance(leaf, Tensor)]

    def _ordered(self, inputs: Inputs) -> list[Any]:
        return pytree.tree_leaves((inputs.args, {name: inputs.kwargs[name] for name in self.example.kwargs}))

    def export(self, lifted: Mapping[str, Tensor] | None = None) -> ExportedProgram:
        """The graph, quantizers included, as an exported program of flat inputs with a dynamic batch.

        Args:
            lifted: Name of a node -> its value, which becomes one more input, in that order, instead.
        """
        module = copy_module(self.module).eval()
        module.graph.set_codegen(CodeGen())
        for name in lifted or ():
            replaced = next(node for node in module.graph.nodes if node.name == name)
            with module.graph.inserting_after(module.graph.find_nodes(op="placeholder")[-1]):
                replaced.replace_all_uses_with(module.graph.placeholder(f"lifted_{name}"))
            module.graph.erase_node(replaced)
        module.graph.eliminate_dead_code()
        module.recompile()
        leaves = tuple(self._ordered(self.example))
        shapes = (*(_dynamic_batch(leaf) for leaf in leaves), *[None] * len(lifted or ()))
        return export_program(module, (*leaves, *(lifted or {}).values()), {}, shapes, functional=True)


@dataclass(frozen=True)
class Case:
    """A float network, data, and what the outputs mean.

    Attributes:
        graph: The float graph.
        batches: Inputs, and labels or None.
        task: What the outputs mean.
        seed: Of every draw.
    """

    graph: Graph
    batches: Sequence[Batch]
    task: Task
    seed: int = 0


def _dynamic_batch(leaf: Any) -> dict[int, Any] | None:
    return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


def _check_leaf(place: str, leaf: Any, model: Any) -> None:
    if not isinstance(model, Tensor):  # it was captured as a constant
        if isinstance(leaf, Tensor) or type(leaf) is not type(model) or leaf != model:
            raise InvalidInput(f"{place} is {leaf!r:.50}, the example {model!r:.50}; what is no tensor may not change")
        return
    if not isinstance(leaf, Tensor):
        raise InvalidInput(f"{place} is a {type(leaf).__name__}, not a tensor")
    if leaf.dtype != model.dtype:
        raise InvalidInput(f"{place} is {leaf.dtype}, the example {model.dtype}; convert it")
    if leaf.shape[1:] != model.shape[1:] or leaf.ndim != model.ndim:
        raise InvalidInput(
            f"{place} has shape {tuple(leaf.shape)}, the example {tuple(model.shape)}; "
            "only the first dimension may differ"
        )
    _check_finite(place, leaf)


def _check_finite(place: str, leaf: Tensor) -> None:
    if leaf.is_floating_point() and not torch.isfinite(leaf).all():
        raise InvalidInput(f"{place} holds NaN or inf; clean the data")


@dataclass(frozen=True)
class OperatorKind:
    """Where an operator keeps its arguments; `input` is None where it reads indices."""

    name: str
    input: int | None
    weight: int
    bias: int | None
    output_axis: int


#: Where every convolution, transposed or not, keeps its number of groups.
GROUPS = 6


@dataclass(frozen=True)
class Operation:
    """One operator that uses a layer's weight.

    Attributes:
        node: Name of its graph node.
        kind: Where its arguments are.
        input: Name of the node that made the tensor it reads, None for indices.
        macs: Multiply-accumulates of one sample.
        groups: Groups of a convolution; 1 for everything else.
        takes_bias: Whether a correction of the output's mean can be added to its own bias.
        transposed: Whether the operator reads the parameter transposed.
    """

    node: str
    kind: OperatorKind
    input: str | None
    macs: int
    groups: int
    takes_bias: bool
    transposed: bool = False

    @property
    def channels_last(self) -> bool:
        """Whether its output keeps the channels in the last dimension; convolutions keep them in the second."""
        return not self.kind.name.startswith("conv")

    @property
    def axis(self) -> int:
        """Axis of the parameter, as it is stored, along which the operator's output channels lie."""
        return 1 - self.kind.output_axis if self.transposed else self.kind.output_axis

    @property
    def data(self) -> int:
        """Position of what it reads beside the weight: the input, or indices."""
        return 1 if self.kind.input is None else self.kind.input

    def along_channels(self, values: Tensor, num_dimensions: int) -> Tensor:
        """Values [channels], shaped to be added to the operator's output of that many dimensions."""
        behind = 0 if self.channels_last else num_dimensions - 2
        return values.reshape(-1, *[1] * behind)


@dataclass(frozen=True)
class Layer:
    """One stored weight and the operators that use it; named by the parameter.

    Attributes:
        name: Full name of the parameter.
        shape: Shape of the weight.
        axis: Its output-channel axis, along which scales differ.
        operations: The operators, in execution order; more than one where the weight is shared.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    operations: tuple[Operation, ...]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample, over all its operators."""
        return sum(operation.macs for operation in self.operations)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it reads, each once."""
        return tuple(dict.fromkeys(operation.input for operation in self.operations if operation.input is not None))


def model_fingerprint(layers: tuple[Layer, ...]) -> str:
    """Which model: the first 16 hex digits of the SHA-256 of its layers' names and weight shapes."""
    text = json.dumps({layer.name: list(layer.shape) for layer in sorted(layers, key=lambda layer: layer.name)})
    return hashlib.sha256(text.encode()).hexdigest()[:16]
