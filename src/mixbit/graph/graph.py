"""The captured network: its nodes, the layers that can be quantized and their operators, and running it."""

import copy
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mixbit.core import Batch, Inputs, InvalidInput, Plan, Room, Task, check_value

_aten = torch.ops.aten
#: Numbers that one run on several weights should return, where that can be chosen (4 MB of float32): more leave the
#: caches, and memory fresh from the system costs more than the arithmetic.
FEW_ELEMENTS = 2**20
#: Operators that change the shape of a tensor alone.
VIEWS = (_aten.view, _aten.reshape, _aten.flatten, _aten._unsafe_view)


def argument(node: fx.Node, position: int | None, default: Any = None) -> Any:
    """The positional argument of a node; the default where the node has none there."""
    return node.args[position] if position is not None and position < len(node.args) else default


def packet(node: fx.Node) -> Any:
    """The operator of a node without its overload, as `torch.ops.aten.conv2d`; None where it calls no operator."""
    return getattr(node.target, "overloadpacket", None)


def is_parameter(node: object) -> bool:
    """Whether the node reads a parameter or buffer unchanged."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def split_name(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor or module of that full name, and its name there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def tensor_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that the node reads."""
    return attrgetter(str(node.target))(module)


def num_uses(parameter: fx.Node) -> int:
    """How many operators read the parameter, through this node or another."""
    same = parameter.graph.find_nodes(op="get_attr")
    return sum(len(node.users) for node in same if node.target == parameter.target)


def inserted(before: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A new node that calls the operator, before another, with the shape of what it returns in its `meta`."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    node.meta["val"] = target(*map_arg(args, lambda read: read.meta["val"]))
    return node


def set_bias(module: fx.GraphModule, operation: fx.Node, bias: Tensor, weight_name: str, position: int = 2) -> None:
    """Give one operator its own bias, named after its weight: `conv1.weight` -> `conv1.bias`.

    A number is added to a name that another tensor of the module has.
    """
    holder, attribute = split_name(module, weight_name)
    prefix = weight_name.removesuffix(attribute)
    wanted = attribute.replace("weight", "bias") if "weight" in attribute else f"{attribute}_bias"
    previous = argument(operation, position)
    replaced = previous.target if is_parameter(previous) and num_uses(previous) == 1 else None
    name, number = wanted, 0
    while hasattr(holder, name) and replaced != prefix + name:
        number += 1
        name = f"{wanted}_{number}"
    setattr(holder, name, nn.Parameter(bias))
    with module.graph.inserting_before(operation):
        node = module.graph.get_attr(prefix + name)
    padded = [*operation.args, *[None] * (position + 1 - len(operation.args))]
    padded[position] = node
    operation.args = tuple(padded)


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters are; the CPU for a module without any, or whose parameters are in files."""
    return next((each.device for each in module.parameters() if not each.is_meta), torch.device("cpu"))


@contextmanager
def without_torchs_warnings() -> Iterator[None]:
    """Silence two warnings of torch about its own code: on tree leaves, and on weights of recurrent modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*_flat_weights.*", category=UserWarning)
        yield


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A deep copy."""
    with without_torchs_warnings():
        return copy.deepcopy(module)


def check_graph(graph: Any, name: str = "graph") -> None:
    """Raise InvalidInput unless it is a graph with a layer."""
    if not isinstance(graph, Graph):
        raise InvalidInput(f"{name}: a {type(graph).__name__}; give what capture() or quantize() returned")
    if not graph.layers:
        raise InvalidInput("the model has no layer: no linear, convolution, embedding or matmul with a parameter")
    check_context()


def check_context() -> None:
    """Raise InvalidInput where torch would make tensors without numbers, or round what is measured to 16 bits."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if torch.get_default_device().type == "meta":
        raise InvalidInput("torch's default device is meta, where tensors hold no numbers; set it back to cpu")
    if kinds:
        raise InvalidInput(f"torch.autocast({kinds[0]!r}) rounds what is computed to 16 bits; call from outside of it")


def check_arguments(graph: Any, task: Any, seed: Any) -> None:
    """Raise InvalidInput unless they are a graph, a task or None, and a seed; or where there can be no gradients."""
    check_graph(graph)
    check_value("task", task, Task | None)
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
        dynamic: Of every leaf of the example, the dimensions beside the first that may differ; none where empty.
        config: The configuration of a model of Hugging Face's, as its config.json holds it; None for others.
        room: What may be taken by a network whose weights are in files; None where they are in memory.
    """

    module: fx.GraphModule
    example: Inputs
    shapes: Mapping[str, tuple[int, ...]]
    layers: tuple["Layer", ...] = ()
    plan: Plan | None = None
    dynamic: tuple[tuple[int, ...], ...] = ()
    config: Mapping[str, Any] | None = None
    room: Room | None = None

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
        return attrgetter(name)(self.module)

    def bias(self, operation: "Operation") -> str | None:
        """Full name of the parameter that the operator adds to its output; None where it adds none."""
        bias = argument(self.node(operation.node), operation.kind.bias)
        return str(bias.target) if is_parameter(bias) else None

    def set_bias(self, layer: "Layer", operation: "Operation", bias: Tensor) -> None:
        """Give the operator its own bias, in place, named after its weight; the module is then to be recompiled."""
        set_bias(self.module, self.node(operation.node), bias, layer.name, operation.kind.bias or 0)

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
        """The same with its own module, for changes in place."""
        return dataclasses.replace(self, module=copy_module(self.module))

    @cached_property
    def operations(self) -> dict[str, tuple["Layer", "Operation"]]:
        """Name of an operator's node -> its layer and itself, for all operators of layers."""
        return {operation.node: (layer, operation) for layer in self.layers for operation in layer.operations}

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in self.module.graph.nodes}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # a copy has its own nodes

    def check(self, inputs: Inputs, place: str) -> None:
        """Raise InvalidInput, with the place, where names, shapes, types or values do not fit the example."""
        kwargs = self.example.kwargs
        if inputs.kwargs.keys() != kwargs.keys() or len(inputs.args) != len(self.example.args):
            wanted = self.example.describe()
            raise InvalidInput(f"{place}: inputs {inputs.describe()} do not fit the example's {wanted}")
        if inputs.batch_size == 0:
            raise InvalidInput(f"{place}: holds no sample; leave it out")
        given, wanted = self.ordered(inputs), self.ordered(self.example)
        if len(given) != len(wanted):
            raise InvalidInput(f"{place}: {len(given)} values, the example has {len(wanted)}")
        for number, (leaf, model, free) in enumerate(zip(given, wanted, self.free, strict=True)):
            _check_leaf(f"{place}: input {number}", leaf, model, free)

    @property
    def free(self) -> tuple[tuple[int, ...], ...]:
        """Of every leaf of the example, in order, the dimensions that may differ, the first among them."""
        leaves = self.ordered(self.example)
        dynamic = self.dynamic or ((),) * len(leaves)
        has_samples = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves]
        return tuple((0, *more) if first else () for first, more in zip(has_samples, dynamic, strict=True))

    def leaves(self, inputs: Inputs, place: str = "batch") -> list[Any]:
        """The inputs in the order of the graph's placeholders, on its device; raises like `check`."""
        self.check(inputs, place)
        return [leaf.to(self.device) if isinstance(leaf, Tensor) else leaf for leaf in self.ordered(inputs)]

    def tensors(self, inputs: Inputs) -> list[Tensor]:
        """The tensors among the leaves, on the CPU: what an artefact takes."""
        return [leaf.cpu() for leaf in self.leaves(inputs) if isinstance(leaf, Tensor)]

    def ordered(self, inputs: Inputs) -> list[Any]:
        """The leaves of the inputs in the order of the graph's placeholders."""
        return pytree.tree_leaves((inputs.args, {name: inputs.kwargs[name] for name in self.example.kwargs}))


@dataclass(frozen=True)
class Case:
    """A float network, data, what the outputs mean, and the random seed; and data to evaluate on, if any."""

    graph: Graph
    batches: Sequence[Batch]
    task: Task
    seed: int = 0
    evaluation: Sequence[Batch] = ()


def _check_leaf(place: str, leaf: Any, model: Any, free: tuple[int, ...]) -> None:
    if not isinstance(model, Tensor):  # it was captured as a constant
        if isinstance(leaf, Tensor) or type(leaf) is not type(model) or leaf != model:
            raise InvalidInput(f"{place} is {leaf!r:.50}, the example {model!r:.50}; what is no tensor may not change")
        return
    if not isinstance(leaf, Tensor):
        raise InvalidInput(f"{place} is a {type(leaf).__name__}, not a tensor")
    if leaf.dtype != model.dtype:
        raise InvalidInput(f"{place} is {leaf.dtype}, the example {model.dtype}; convert it")
    fixed = [axis for axis in range(model.ndim) if axis not in free]
    if leaf.ndim != model.ndim or any(leaf.shape[axis] != model.shape[axis] for axis in fixed):
        only = "only the first dimension" if len(free) < 2 else f"only dimensions {', '.join(map(str, free))}"
        raise InvalidInput(
            f"{place} has shape {tuple(leaf.shape)}, the example {tuple(model.shape)}; {only} may differ"
            + ("" if leaf.ndim != model.ndim else ", unless `dynamic` (--dynamic) names more at capture")
        )
    check_finite(place, leaf)


def check_finite(place: str, leaf: Tensor) -> None:
    """Raise InvalidInput, which begins with the place, where the tensor holds NaN or inf."""
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


#: Operators that turn a matrix.
TRANSPOSES = {_aten.t, _aten.numpy_T, _aten.transpose, _aten.permute}
#: Where every convolution, transposed or not, keeps its number of groups.
GROUPS = 6
#: Where they keep how far apart taps are: those that are not transposed, and those that are.
DILATION = {False: 5, True: 7}


@dataclass(frozen=True)
class Operation:
    """One operator that uses a layer's weight.

    Attributes:
        node: Name of its graph node.
        kind: Where its arguments are.
        input: Name of the node that made the tensor it reads; None where that is never rounded: indices, and what
            recurrences read.
        macs: Multiply-accumulates of one sample.
        groups: Groups of a convolution; 1 for other operators.
        takes_bias: Whether its bias can take a correction of the output's mean.
        transposed: Whether the operator reads the parameter transposed.
        dilation: How far apart a convolution's taps are, for each dimension; empty for other operators.
    """

    node: str
    kind: OperatorKind
    input: str | None
    macs: int
    groups: int
    takes_bias: bool
    transposed: bool = False
    dilation: tuple[int, ...] = ()

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the output's last dimension; those of convolutions are the second."""
        return not self.kind.name.startswith("conv")

    @property
    def channels(self) -> int:
        """Dimension of its output, and of the tensor it reads, that holds the channels."""
        return -1 if self.channels_last else 1

    @property
    def axis(self) -> int:
        """Axis of the parameter, as it is stored, along which the operator's output channels lie."""
        return 1 - self.kind.output_axis if self.transposed else self.kind.output_axis

    @property
    def data(self) -> int:
        """Position of its input, or of its indices."""
        return 1 if self.kind.input is None else self.kind.input

    def along_channels(self, values: Tensor, num_dimensions: int) -> Tensor:
        """Values [channels], shaped to be added to the operator's output of that many dimensions."""
        return values if self.channels_last else values.reshape(-1, *[1] * (num_dimensions - 2))


@dataclass(frozen=True)
class Layer:
    """One stored weight and the operators that use it; named by the parameter.

    Attributes:
        name: Full name of the parameter.
        shape: Shape of the weight.
        axis: Its output-channel axis, along which scales differ.
        operations: The operators, in execution order; more than one where the weight is shared.
        modules: Classes of the user's modules that hold the parameter, as `torch.nn.modules.linear.Linear`: several
            where it is tied, none where capture made it.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    operations: tuple[Operation, ...]
    modules: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class SampleAxis:
    """Dimension `axis` of a tensor holds outer x samples x inner rows, the last of them running fastest.

    One of `outer` and `inner` may be None: it depends on dynamic dimensions.
    """

    axis: int
    outer: int | None = 1
    inner: int | None = 1

    def group(self, x: Tensor, count: int) -> Tensor:
        """The tensor of `count` samples with these first and the rows of each behind: [N, outer x inner, others]."""
        rows = x.movedim(self.axis, 0)
        outer, inner = (-1 if number is None else number for number in (self.outer, self.inner))
        return rows.reshape(outer, count, inner, *rows.shape[1:]).movedim(1, 0).flatten(1, 2)


def group_samples(axis: SampleAxis | None, x: Tensor, count: int) -> Tensor:
    """[N, rows, ...] the rows of each sample; all rows as those of one sample where samples cannot be told apart."""
    return x.unsqueeze(0) if axis is None else axis.group(x, count)


def sample_axis(node: fx.Node) -> SampleAxis | None:
    """Where the node's tensor keeps its samples, read from the symbolic shapes; None where that does not show."""
    samples = _numbers_of_samples(node.graph)
    while True:
        multiples = [_rows_of_a_sample(size, samples) for size in sizes_of(node)]
        if 1 in multiples:
            return SampleAxis(multiples.index(1))
        if not multiples or multiples[0] is None:
            return None
        same = [
            before
            for before in node.all_input_nodes
            if [_rows_of_a_sample(size, samples) for size in sizes_of(before)[:1]] == multiples[:1]
        ]
        if not same:
            before = node.all_input_nodes[0]
            return _merged(sizes_of(before), multiples[0], samples) if packet(node) in VIEWS else None
        node = same[0]


def _merged(shape: tuple[Any, ...], wanted: Any, samples: frozenset[Any]) -> SampleAxis | None:
    """The axis that a view makes of the leading dimensions of that shape, `wanted` rows a sample in all."""
    outer: Any = 1
    inner: Any = 1
    seen = False
    for size in shape:
        rows = _rows_of_a_sample(size, samples)
        if rows is None:  # a number, or of dynamic dimensions alone
            rows = size if isinstance(size, int) else size.node.expr
            outer, inner = (outer, inner * rows) if seen else (outer * rows, inner)
        elif rows == 1 and not seen:
            seen = True
        else:
            return None
        if seen and outer * inner == wanted:
            numbers = [int(each) if isinstance(each, int) or each.is_Integer else None for each in (outer, inner)]
            return None if numbers == [None, None] else SampleAxis(0, *numbers)
    return None


def sizes_of(node: fx.Node) -> tuple[Any, ...]:
    """The sizes of the node's tensor: numbers, and symbols that depend on the batch; none where it makes no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _numbers_of_samples(graph: fx.Graph) -> frozenset[Any]:
    """The symbols that stand for the batch size: the first dimensions of inputs."""
    first = [size for node in graph.find_nodes(op="placeholder") for size in sizes_of(node)[:1]]
    return frozenset(size.node.expr for size in first if isinstance(size, torch.SymInt))


def _rows_of_a_sample(size: Any, samples: frozenset[Any]) -> Any:
    """The k of a size that is k times the batch size: a number, or an expression of dynamic dimensions; else None."""
    if not isinstance(size, torch.SymInt):
        return None
    expression = size.node.expr
    symbols = expression.free_symbols & samples
    factor = expression / next(iter(symbols)) if len(symbols) == 1 else None
    return factor if factor is not None and not factor.free_symbols & samples and factor.is_integer else None
