"""The ONNX model of a graph, operator by operator; what the table does not hold is written by torch's own exporter."""

from collections.abc import Callable, Collection
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass, NameFixPass
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mixbit.core import UnsupportedModel, interrupts_later, users_code
from mixbit.graph import Graph, read_of, scratch, without_torchs_warnings
from mixbit.graph.capture import without_compilers_folder, without_logs
from mixbit.graph.functional import keeping_symbols
from mixbit.graph.graph import tensor_of
from mixbit.graph.recurrent import join_recurrences
from mixbit.quantization.quantizer import Quantizer
from mixbit.targets._integers import reason_line
from mixbit.targets._onnx_operators import OPERATORS
from mixbit.targets._onnx_writer import ONNX_TYPES, SPILL, Writer, constant, initializer

OPSET, IR_VERSION = 21, 10  # the first with INT4 and per-channel DequantizeLinear of it
#: Options of torch's operators that say nothing about what is computed, beside the type, which the output has.
_UNREAD = {"device", "dtype", "implicit", "layout", "memory_format", "non_blocking", "pin_memory", "stable"}
#: Numbers of a tensor that is computed once and stored, where nothing that it depends on is an input or parameter.
_FEW_NUMBERS = 128
#: What torch's exporter made of single operators, by operator, arguments, types and shapes.
_MADE_BY_TORCH: dict[str, Any] = {}

Values = dict[Any, Any]
#: (writer, full name of the quantizer, the quantizer, what it reads) -> what it returns.
WriteQuantizer = Callable[[Writer, str, Quantizer, Any], Any]


def translated(graph: Graph, quantized: WriteQuantizer) -> Any:
    """The onnx_ir model of the graph, every quantizer as `quantized` writes it.

    Initializers have the names of parameters and buffers.

    Raises:
        UnsupportedModel: An operator is neither in the table, nor does torch's exporter know it.
    """
    module = graph.copy().module
    join_recurrences(module)
    written = ir.Graph((), (), nodes=(), opset_imports={"": OPSET}, name="mixbit")
    if graph.room is not None:
        written.meta[SPILL] = scratch(graph.room)
    writer, values = Writer(written), Values()
    taken = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = _input(written, node, taken)
        elif node.op == "get_attr":
            values[node] = _stored(written, module, node)
        elif node.op == "output":
            _return(writer, node, values, taken)
        else:
            values[node] = _made(writer, module, node, values, quantized)
            _describe(values[node], _result(node))
    model = ir.Model(written, ir_version=IR_VERSION, producer_name="mixbit")
    NameFixPass()(model)
    return model


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with more behind it where it is taken."""
    while name in taken:
        name = f"{name}_"
    return name


def _input(graph: Any, node: fx.Node, taken: set[str]) -> Any:
    """A tensor; other inputs were captured as constants."""
    given = node.meta["val"]
    if not isinstance(given, Tensor):
        return given
    value = ir.Value(name=free_name(str(node.target), taken))
    _describe(value, given)
    graph.inputs.append(value)
    return value


def _stored(graph: Any, module: fx.GraphModule, node: fx.Node) -> Any:
    """What the node reads; a tensor that stays in a file is read from there when it is written."""
    if (read := read_of(module, node)) is not None:
        dtype, shape = ONNX_TYPES[node.meta["val"].dtype], ir.Shape(node.meta["val"].shape)
        return initializer(graph, str(node.target), ir.LazyTensor(lambda: ir.tensor(read().numpy()), dtype, shape))
    tensor = tensor_of(module, node)
    return initializer(graph, str(node.target), tensor.detach().cpu().numpy()) if isinstance(tensor, Tensor) else tensor


def _return(writer: Writer, node: fx.Node, values: Values, taken: set[str]) -> None:
    """Make the tensors outputs, named after their nodes; what is an input, a constant or returned twice is copied."""
    graph = writer.graph
    for leaf in pytree.tree_leaves(node.args):
        value = _in_file(writer, values[leaf]) if isinstance(leaf, fx.Node) else None
        if not isinstance(value, ir.Value):
            continue
        if value.producer() is None or value in graph.outputs:
            value = writer.add("Identity", value)
            _describe(value, _result(leaf))
        value.name = free_name(leaf.name, taken)
        graph.outputs.append(value)


def _made(
    writer: Writer, module: fx.GraphModule, node: fx.Node, values: Values, quantized: WriteQuantizer
) -> Any:  # fmt: skip
    """What the node returns: a value, a size, a number, several of these; or a small tensor, computed once."""
    if node.op == "call_module":
        path, (x,) = str(node.target), node.all_input_nodes
        quantizer: Any = module.get_submodule(path)
        return quantized(writer, path, quantizer, values[x])
    known = _computed(node, values)
    if known is not None:
        return known
    given: Any = map_arg((node.args, node.kwargs), lambda read: _in_file(writer, values[read]))
    args, kwargs = given
    write = OPERATORS.get(node.target)
    try:
        options = {name: value for name, value in kwargs.items() if name not in _UNREAD}
        with keeping_symbols(module.graph):
            made = None if write is None else write(writer, _result(node), *args, **options)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{node.name}: {error}") from error
    return _by_torch(writer, node, values) if made is None or _lacks(node, made) else made


def _lacks(node: fx.Node, made: Any) -> bool:
    """Whether some output that is read was not written."""
    return isinstance(made, tuple | list) and any(made[int(str(user.args[1]))] is None for user in node.users)


def _computed(node: fx.Node, values: Values) -> Any:
    """A small tensor that depends on neither inputs nor parameters; None elsewhere."""
    read = [values[each] for each in node.all_input_nodes]
    tags = getattr(node.target, "tags", ())
    if not all(isinstance(value, Tensor) for value in read) or torch.Tag.nondeterministic_seeded in tags:
        return None
    if not isinstance(node.meta.get("val"), Tensor) or not _is_small(node.meta["val"]):
        return None
    given: Any = map_arg((node.args, node.kwargs), lambda each: values[each])
    args, kwargs = given
    return node.target(*args, **kwargs).cpu()  # type: ignore[operator] an operator is callable


def _is_small(tensor: Tensor) -> bool:
    return all(isinstance(size, int) for size in tensor.shape) and tensor.numel() <= _FEW_NUMBERS


def _in_file(writer: Writer, value: Any) -> Any:
    """The value; a tensor is stored."""
    return constant(writer.graph, value.numpy()) if isinstance(value, Tensor) else value


def _result(node: fx.Node) -> Any:
    """What torch says of the node's output."""
    if "val" in node.meta:
        return node.meta["val"]
    if node.op == "call_module":  # a quantizer
        return _result(node.all_input_nodes[0])
    raise UnsupportedModel(f"{node.name}: nothing is known of its shape; capture the model again")


def _describe(made: Any, result: Any) -> None:
    """Note types and shapes at values that have none."""
    if isinstance(made, tuple | list):
        for value, part in zip(made, result, strict=False):
            _describe(value, part)
    elif isinstance(made, ir.Value) and isinstance(result, Tensor) and made.shape is None:
        made.shape = ir.Shape(size if isinstance(size, int) else str(size.node.expr) for size in result.shape)
        made.type = ir.TensorType(ONNX_TYPES[result.dtype])


class _Alone(nn.Module):
    """One operator, whose tensors and sizes are inputs."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.target: Any = node.target
        self.places = node.all_input_nodes
        self.leaves, self.structure = pytree.tree_flatten((node.args, node.kwargs))

    def forward(self, *read: Any) -> Any:
        """What the operator returns."""
        given = dict(zip(self.places, read, strict=True))
        leaves = [given[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return self.target(*args, **kwargs)


def _by_torch(writer: Writer, node: fx.Node, values: Values) -> Any:
    """The operator as torch's exporter writes it."""
    told = [f"{read.dtype} {[*read.shape]}" if isinstance(read, Tensor) else str(read) for read in _read(node)]
    alone = _Alone(node)
    fixed = [leaf for leaf in alone.leaves if not isinstance(leaf, fx.Node)]
    key = f"{node.target} {told} {fixed} {[alone.places.index(leaf) for leaf in alone.leaves if leaf in alone.places]}"
    if key not in _MADE_BY_TORCH:
        _MADE_BY_TORCH[key] = _exported(node, alone)
    copied = _MADE_BY_TORCH[key].clone()
    given = [_in_file(writer, values[each]) for each in alone.places]
    for value, own in zip(copied.inputs, given, strict=True):
        ir.convenience.replace_all_uses_with(value, _scalar(writer, own), replace_graph_outputs=True)
    outputs = list(copied.outputs)
    copied.outputs.clear()
    for name, value in list(copied.initializers.items()):
        del copied.initializers[name]
        own = initializer(writer.graph, f"{node.name} {name}", value.const_value)
        ir.convenience.replace_all_uses_with(value, own)
    nodes = list(copied)
    copied.remove(nodes)
    for each in nodes:
        each.name = None
        for value in each.outputs:
            value.name = None
    writer.graph.extend(nodes)
    return tuple(outputs) if isinstance(_result(node), tuple | list) else outputs[0]


def _read(node: fx.Node) -> list[Any]:
    return [_result(each) for each in node.all_input_nodes]


def _scalar(writer: Writer, value: Any) -> Any:
    return value if isinstance(value, ir.Value) else writer.cast(value, torch.int64)


def _exported(node: fx.Node, alone: _Alone) -> Any:
    """The graph that torch's exporter makes of the operator, for all sizes."""
    inputs: list[Any] = []
    marks: list[Any] = []
    for read in _read(node):
        if isinstance(read, Tensor):
            sizes = [size if isinstance(size, int) else size.node.hint for size in read.shape]
            inputs.append(torch.zeros(sizes, dtype=read.dtype))
            free = [axis for axis, size in enumerate(read.shape) if not isinstance(size, int)]
            marks.append(dict.fromkeys(free, Dim.DYNAMIC))
        else:
            inputs.append(read if isinstance(read, int) else read.node.hint)
            marks.append(None if isinstance(read, int) else Dim.DYNAMIC)

    def failed(error: BaseException) -> UnsupportedModel:
        reason = reason_line(error.__cause__ or error, 0)  # the error itself is advice for authors of exporters
        return UnsupportedModel(
            f"{node.name}: torch.onnx cannot export the operator {node.target}: {reason}; write what it names "
            "otherwise, or take another target"
        )

    with (
        users_code(failed), without_torchs_warnings(), without_logs(), without_compilers_folder(), interrupts_later(),
    ):  # fmt: skip
        program = torch.export.export(alone, tuple(inputs), dynamic_shapes={"read": tuple(marks)})
        exported: Any = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=False, opset_version=OPSET)
    InlinePass()(exported.model)
    return exported.model.graph
