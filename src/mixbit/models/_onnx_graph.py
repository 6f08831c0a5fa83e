"""From an ONNX file to a module: a graph of calls of torch, operator by operator, with the parameters of the file."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import UnsupportedModel, quoted
from mixbit.models._onnx_builder import Builder, Stored
from mixbit.models._onnx_file import OnnxFile, needed
from mixbit.models._onnx_names import identifier
from mixbit.models._onnx_numbers import is_number
from mixbit.models._onnx_operators import OPERATORS, RECURRENT
from mixbit.models._onnx_patterns import join_functions
from mixbit.models._onnx_products import is_alias, product
from mixbit.models._onnx_recurrent import recurrent
from mixbit.models._onnx_structure import branch, loop


def module_of(file: OnnxFile, examples: Sequence[Mapping[str, Tensor]]) -> fx.GraphModule:
    """The file as a module, whose forward takes its inputs in order and returns a dict of its outputs.

    Args:
        file: Of operators that can be followed.
        examples: Inputs by name; a second one, with more samples, is there for a file of one batch size.

    Raises:
        UnsupportedModel: an operator fails on its inputs, or cannot be followed in this form.
    """
    builder = Builder(file, examples)
    with torch.no_grad():
        return _module(builder)


def _module(builder: Builder) -> fx.GraphModule:
    """The whole of it."""
    graph, names = builder.file.proto.graph, set[str]()
    for port in builder.file.inputs:
        node = builder.graph.placeholder(identifier(port.name, names))
        names.add(str(node.target))
        builder.values[port.name], builder.known[node] = node, [example[port.name] for example in builder.examples]
        builder.first = builder.first or node
    builder.note_readers(graph)
    builder.statistics = {n.input[i] for n in graph.node if n.op_type == "BatchNormalization" for i in (3, 4)}
    _run(builder, graph)
    builder.graph.output({value.name: builder.node(value.name) for value in graph.output})
    builder.graph.eliminate_dead_code()
    join_functions(builder.graph)
    return fx.GraphModule(builder.named_tensors(), builder.graph)


def _run(builder: Builder, graph: Any) -> list[Any]:
    """Go through the operators; the values that the graph returns."""
    for each in graph.initializer:
        if builder.readers.get(each.name):
            with _named(f"MODEL {builder.file.path}: constant {quoted(each.name)}"):
                builder.values[each.name] = builder.constant(each.name, _tensor(each), stored=True)
    ends = _last_reads(graph)
    for number, node in enumerate(graph.node):
        where = f"MODEL {builder.file.path}: node {quoted(node.name or node.output[0])} ({node.op_type})"
        with _named(where, _way_out(builder)):
            _operator(builder, node)
        for name in ends[number]:
            builder.forget(name)
    return [builder.values[value.name] for value in graph.output]


@contextmanager
def _named(where: str, way_out: str = "") -> Iterator[None]:
    """Raise UnsupportedModel, which names the place, for what torch or the table raises."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{where} cannot be followed: {_reason(error)}{way_out}") from error


def _way_out(builder: Builder) -> str:
    if len(builder.examples) == 1:
        return ""
    return "; the file is for one batch size, which here cannot be any other: export it with a batch of any size"


def _operator(builder: Builder, node: Any) -> None:
    attributes = {each.name: _attribute(each) for each in node.attribute}
    name = node.op_type
    if name == "Constant":
        made = builder.constant(node.output[0], _constant_tensor(attributes), stored=True)
        builder.values[node.output[0]] = made
    elif name in RECURRENT:
        builder.name_outputs(node, recurrent(builder, node, attributes))
    elif name == "If":
        branch(builder, node, attributes, _run)
    elif name == "Loop":
        loop(builder, node, attributes["body"], _run)
    elif not (is_alias(builder, node, attributes) or product(builder, node, attributes)):
        _plain(builder, node, attributes)


def _plain(builder: Builder, node: Any, attributes: dict[str, Any]) -> None:
    """An operator of the table; of constants alone, which are no weights, it is computed."""
    function = OPERATORS[node.op_type]
    known = [builder.values[name] if name else None for name in node.input]
    options = builder.options(function, node, attributes)
    if all(value is None or is_number(value) or _is_plain(value) for value in known):
        args = [builder.tensors[value.name] if isinstance(value, Stored) else value for value in known]
        like = {"like": torch.zeros(())} if "like" in options else {}
        made = function(*args, **(options | like))
        parts = made if options.get("outputs", 1) > 1 else [made]
        for name, part in zip(node.output, parts, strict=False):
            builder.values[name] = part if is_number(part) or isinstance(part, tuple) else builder.constant(name, part)
        return
    args = [builder.read(name, node, place) for place, name in enumerate(node.input)]
    if node.op_type == "Slice" and "starts" in options:
        args += [options.pop("starts"), options.pop("ends"), *filter(None, [options.pop("axes", None)])]
    builder.name_outputs(node, builder.called(node.op_type, function, args, options))


def _is_plain(value: Any) -> bool:
    """Whether it is a stored tensor that training leaves as it is."""
    return isinstance(value, Stored) and not value.is_weight


def _tensor(stored: Any) -> Tensor:
    """The tensor; raises TypeError where torch has none of its type."""
    onnx = needed("onnx")
    array = onnx.numpy_helper.to_array(stored)
    if array.dtype.kind not in "fiub" or array.dtype.isbuiltin != 1:
        kind = onnx.TensorProto.DataType.Name(stored.data_type)
        raise TypeError(f"it is of type {kind}; store plain numbers, such as float32")
    return torch.from_numpy(array.copy())


def _constant_tensor(attributes: dict[str, Any]) -> Tensor:
    for name, value in attributes.items():
        if name == "value":
            return value
        if name.startswith(("value_float", "value_int")):
            return torch.tensor(value, dtype=torch.float32 if "float" in name else torch.int64)
    raise ValueError(f"a constant of {', '.join(attributes) or 'nothing'} is not followed; store a tensor of numbers")


def _attribute(attribute: Any) -> Any:
    """The value of the attribute, texts decoded, tensors as torch's."""
    onnx = needed("onnx")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, onnx.GraphProto | onnx.SparseTensorProto | int | float):
        return value
    return [each.decode() if isinstance(each, bytes) else each for each in value]


def _last_reads(graph: Any) -> dict[int, list[str]]:
    """Number of an operator -> the names that it is the last to read, with what is inside of it."""
    last, own = dict[str, int](), {name for node in graph.node for name in node.output}

    def note(inner: Any, number: int | None) -> None:
        for place, node in enumerate(inner.node):
            at = place if number is None else number
            last.update(dict.fromkeys((*node.input, *node.output), at))
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    note(attribute.g, at)
        last.update(dict.fromkeys((value.name for value in inner.output), len(graph.node)))

    note(graph, None)
    ends: dict[int, list[str]] = defaultdict(list)
    for name in own & last.keys():
        ends[last[name]].append(name)
    return ends


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__) or type(error).__name__
