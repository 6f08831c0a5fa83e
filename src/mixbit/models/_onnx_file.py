"""An ONNX file, read: external data looked at before it is read, functions inlined, half precision made float32."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, file_errors, quoted, say

#: ONNX's numbers of types that are computed as float32, and of that.
_HALVES, _FLOAT = (10, 16), 1
#: Largest message of Protocol Buffers, in bytes, and its weights where the rest describes the graph.
_MOST_BYTES, _MOST_WEIGHTS = 2**31 - 1, 2**31 - 2**26
#: Operator -> its attribute that names a type.
_TYPED = {"Cast": "to", "EyeLike": "dtype"}


@dataclass(frozen=True)
class Port:
    """An input of the file: its name, ONNX's number of its type, and its sizes; free ones by name, or None."""

    name: str
    kind: int
    sizes: tuple[int | str | None, ...]


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A file that was read.

    Attributes:
        path: Where it is.
        proto: onnx.ModelProto, with all weights.
        opset: Version of ONNX's own operators.
        changed: Whether the proto is not what the file says.
    """

    path: Path
    proto: Any
    opset: int
    changed: bool

    @property
    def inputs(self) -> list[Port]:
        """What is not stored in the file."""
        stored = {each.name for each in self.proto.graph.initializer}
        return [_port(each) for each in self.proto.graph.input if each.name not in stored]

    def runnable(self) -> str | bytes:
        """What onnxruntime opens: the path, or where the proto has changed its bytes."""
        if not self.changed:
            return str(self.path)
        if sum(len(each.raw_data) for each in _tensors(self.proto)) > _MOST_WEIGHTS:
            raise InvalidInput(
                f"MODEL {self.path}: more than 2 GB in half precision cannot be checked; export it in float32"
            )
        return self.proto.SerializeToString()


def needed(module: str) -> Any:
    """The package of ONNX; raises InvalidInput where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(f"a MODEL of ONNX needs {module}: pip install 'mixbit[onnxruntime]'") from error


def read(path: Path) -> OnnxFile:
    """The file with its weights; raises InvalidInput where it, or data beside it, is missing, cut off or elsewhere."""
    onnx = needed("onnx")
    with file_errors(f"MODEL {path}: cannot be read"):
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise InvalidInput(
                f"MODEL {path}: takes {size:,} bytes, and ONNX files end at 2 GB; export it again with its weights in "
                "a file beside it (external data)"
            )
        content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:
        raise InvalidInput(f"MODEL {path}: is no ONNX file, or part of one: {_first_line(error)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise InvalidInput(f"MODEL {path}: is no ONNX file, or an empty one: it holds no operators")
    if proto.functions:
        proto = needed("onnx.inliner").inline_local_functions(proto)
    _load_external(path, proto)  # after that it may be longer than a message
    halves = _without_halves(proto)
    if halves:
        say(f"MODEL {path}: is in half precision; it is computed and quantized in float32")
    versions = {each.domain: each.version for each in proto.opset_import}
    return OnnxFile(path, proto, versions.get("", versions.get("ai.onnx", 1)), halves)


def graphs(graph: Any) -> Iterator[Any]:
    """The graph and all graphs inside its operators."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                yield from graphs(inner)


def _tensors(proto: Any) -> Iterator[Any]:
    for graph in graphs(proto.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _load_external(path: Path, proto: Any) -> None:
    """Read, in place, what is stored beside the file; nothing outside of its folder."""
    external, folder = [each for each in _tensors(proto) if each.data_location == 1], path.absolute().parent
    for each in external:
        entries = {entry.key: entry.value for entry in each.external_data}
        location = entries.get("location", "")
        there, where = folder / location, f"MODEL {path}: data of {quoted(each.name)}"
        if not location or Path(location).is_absolute() or not there.resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(f"{where} lies at {quoted(location)}, outside of its folder; put it beside the file")
        if not there.is_file():
            raise InvalidInput(f"{where} is missing: no file {there}; copy it there, it belongs to the model")
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if there.stat().st_size < end:
            raise InvalidInput(
                f"{where} ends at byte {end:,} of {there}, which has {there.stat().st_size:,}; copy it again"
            )
    if external:
        helper = needed("onnx.external_data_helper")
        for each in external:
            helper.load_external_data_for_tensor(each, str(folder))
            each.data_location = 0
            del each.external_data[:]


def _without_halves(proto: Any) -> bool:
    """Make, in place, float32 of float16 and bfloat16; whether there was any."""
    helper, changed = needed("onnx.numpy_helper"), False
    for each in _tensors(proto):
        if each.data_type in _HALVES:
            changed, name = True, each.name
            each.CopyFrom(helper.from_array(helper.to_array(each).astype("float32"), name))
    for graph in graphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            if kind.elem_type in _HALVES:
                changed, kind.elem_type = True, _FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == _TYPED.get(node.op_type) and attribute.i in _HALVES:
                    changed, attribute.i = True, _FLOAT
    return changed


def _port(value: Any) -> Port:
    kind = value.type.tensor_type
    sizes = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or None
        for dim in kind.shape.dim
    )
    return Port(value.name, kind.elem_type, sizes)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
