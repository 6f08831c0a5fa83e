"""What of an ONNX file cannot be followed, all of it, before anything runs."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from mixbit.core import UnsupportedModel, quoted
from mixbit.models._onnx_file import OnnxFile, graphs
from mixbit.models._onnx_operators import NUMBERS, OF_SHAPES, OPERATORS, RECURRENT, STRUCTURE

_MOST_NODES = 3
_CONTRIB = ("com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc")
_QUANTIZED = (
    "the file is quantized already; give the float file that it was made from",
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
)
_COUNTING = (
    "how much it returns depends on the data; cut the file before it (onnx.utils.extract_model), do the rest yourself",
    ("NonZero", "NonMaxSuppression", "Unique", "Compress", "SequenceErase", "SequenceLength", "ReverseSequence"),
)
_RANDOM = (
    "it draws at random, and no two runs could be compared; export the network in eval mode",
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
)
_TEXT = (
    "it works on text, not on numbers; cut the file behind it with onnx.utils.extract_model, and do it in your program",
    ("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "LabelEncoder"),
)
_REASONS = {name: reason for reason, names in (_QUANTIZED, _COUNTING, _RANDOM, _TEXT) for name in names}
_UNKNOWN = "mixbit does not know it; write it with other operators of ONNX, or give the network as a function in Python"
#: ONNX's number of the type of text.
_STRING = 8


@dataclass
class _Look:
    """Goes through the nodes; keeps the reasons, and the names of values that depend on the data."""

    data: set[str]
    found: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def graph(self, graph: Any) -> None:
        """All nodes of the graph, in order."""
        read = set(_read(graph))
        for node in graph.node:
            reason = _reason(node, self.data, read)
            if reason is not None:
                self.found[_kind(node), reason].append(node.name or (node.output[0] if node.output else ""))
            inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            for each in inner:
                if any(name in self.data for name in node.input):
                    self.data.update(value.name for value in each.input)
                self.graph(each)
            names = [*node.input, *(value.name for each in inner for value in each.output)]
            if node.op_type not in OF_SHAPES and any(name in self.data for name in names):
                self.data.update(filter(None, node.output))


def check(file: OnnxFile) -> None:
    """Raise UnsupportedModel, with all operators that cannot be followed, their nodes, and what to do."""
    texts = [port.name for port in file.inputs if port.kind == _STRING]
    if texts:
        raise UnsupportedModel(f"MODEL {file.path}: input {quoted(texts[0])} is text; {_TEXT[0]}")
    sparse = [each.values.name for graph in graphs(file.proto.graph) for each in graph.sparse_initializer]
    if sparse:
        raise UnsupportedModel(
            f"MODEL {file.path}: {quoted(sparse[0])} is stored as a sparse tensor; store a dense one"
        )
    look = _Look({port.name for port in file.inputs})
    look.graph(file.proto.graph)
    if not look.found:
        return
    lines = [_line(kind, reason, nodes) for (kind, reason), nodes in look.found.items()]
    raise UnsupportedModel(f"MODEL {file.path}: operators that cannot be followed:\n" + "\n".join(lines))


def _line(kind: str, reason: str, nodes: list[str]) -> str:
    shown = ", ".join(quoted(name) for name in nodes[:_MOST_NODES])
    more = f" and {len(nodes) - _MOST_NODES} more" if len(nodes) > _MOST_NODES else ""
    return f"  {kind} ({shown}{more}): {reason}"


def _kind(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _read(graph: Any) -> Iterator[str]:
    """Names that are read in the graph, in those inside, or returned."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def _reason(node: Any, data: AbstractSet[str], read: AbstractSet[str]) -> str | None:
    """Why the node cannot be followed, and the way out; None where it can be."""
    name = node.op_type
    if node.domain in _CONTRIB:
        return "it is onnxruntime's own; give the file as it was before onnxruntime optimised or quantized it"
    if node.domain == "ai.onnx.ml":
        return "it is classical machine learning, without layers to quantize; give a neural network"
    if node.domain not in ("", "ai.onnx"):
        return f"the domain {node.domain!r} is not ONNX's; write it with ONNX's operators, or as a function of the file"
    if name in STRUCTURE:
        return _of_data(node, data)
    if name in _REASONS or name.startswith("QLinear"):
        return _REASONS.get(name, _QUANTIZED[0])
    if name in RECURRENT:
        return _of_recurrent(node) or _of_data(node, data)
    if name not in OPERATORS:
        return _UNKNOWN
    return _of_signature(node, OPERATORS[name], read) or _of_data(node, data)


def _of_data(node: Any, data: AbstractSet[str]) -> str | None:
    wrong = [node.input[place] for place in NUMBERS.get(node.op_type, ()) if place < len(node.input)]
    wrong = [name for name in wrong if name in data]
    if not wrong:
        return None
    what = "which way it goes" if node.op_type in ("If", "Loop") else "a shape or place"
    return (
        f"values of the data decide {what}, by {quoted(wrong[0])}; let it depend on shapes and constants alone, or cut "
        "the file before it with onnx.utils.extract_model"
    )


def _of_signature(node: Any, function: Callable[..., Any], read: AbstractSet[str]) -> str | None:
    parameters = inspect.signature(function).parameters
    unknown = [attribute.name for attribute in node.attribute if attribute.name not in parameters]
    unknown = [name for name in unknown if name not in ("consumed_inputs", "is_test", "tiling")]
    if unknown:
        return f"the attribute {unknown[0]!r} is not followed; leave it at its default"
    places = [each for each in parameters.values() if each.kind is not each.KEYWORD_ONLY]
    is_variadic = any(each.kind is each.VAR_POSITIONAL for each in places)
    if not is_variadic and any(node.input[len(places) :]):
        return f"the input {len(places)} is not followed; leave it out"
    further = [name for name in node.output[1:] if name in read]
    if further and "outputs" not in parameters:
        return f"its further output {quoted(further[0])} is not followed; let nothing read it"
    return None


_ACTIVATIONS = {"LSTM": (["Sigmoid", "Tanh", "Tanh"],), "GRU": (["Sigmoid", "Tanh"],), "RNN": (["Tanh"], ["Relu"])}


def _of_recurrent(node: Any) -> str | None:
    """Why torch has no such recurrent layer."""
    values = {attribute.name: attribute for attribute in node.attribute}
    directions = 2 if "direction" in values and values["direction"].s == b"bidirectional" else 1
    if "direction" in values and values["direction"].s == b"reverse":
        return (
            "it runs backward alone, as no layer of torch does; make it bidirectional, or reverse the sequence before"
        )
    given = [name.decode() for name in values["activations"].strings] if "activations" in values else []
    if given and given not in [each * directions for each in _ACTIVATIONS[node.op_type]]:
        return f"the activations {given} are not those of torch's layer; write the steps with other operators"
    if any(name in values for name in ("clip", "activation_alpha", "activation_beta")):
        return "clip and parameters of activations are not followed; leave them out"
    if "input_forget" in values and values["input_forget"].i:
        return "input_forget is not followed; leave it out"
    if node.op_type == "GRU" and not ("linear_before_reset" in values and values["linear_before_reset"].i):
        return "it resets before it multiplies, as torch's GRU does not; train with reset_after, linear_before_reset=1"
    if any(node.input[7:]):
        return "peepholes are not followed; leave them out"
    return None
