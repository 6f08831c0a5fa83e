"""Target onnxruntime: ONNX in QDQ form whose weights are stored at the plan's width and run in int8.

Weights of 8 bits are int8 initializers. Weights of 4 bits are INT4 initializers behind a Cast to int8; the other widths
are bit planes in uint8 words, unpacked by shift, and, or, concat, reshape, cast and subtract. onnxruntime folds all of
it when it loads the file, so that every width runs as int8. Of a sparse weight only the integers that stay are stored,
and one bit a weight; cumulative sum and gather put them in their places. Weights with groups or zero points, and in
small floating-point types, are unpacked to float32 likewise; matrices in groups are read as they are stored, by
MatMulNBits. Inputs whose range is taken at run time are multiplied by int8 weights in a MatMulInteger.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import NDArray

from mixbit.core import DEFAULT_CHOICES, FLOATS, InvalidInput, Runner, StoredWeight, Target, TargetMismatch
from mixbit.graph.graph import Graph
from mixbit.quantization.assemble import quantizer_path
from mixbit.targets._integers import FURTHER, SEPARATOR, float_weights, integer_weights, weight_bytes
from mixbit.targets._onnx import exported_graph

ARTEFACT = "model.onnx"
#: Operators of onnxruntime that compute in integers, by the beginning of their names.
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
#: Activation functions that it fuses into convolutions.
FUSED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")

#: Whether load() needs the captured graph of the model.
NEEDS_GRAPH = False


TARGET = Target(
    name="onnxruntime",
    artefact=ARTEFACT,
    files=(ARTEFACT,),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=DEFAULT_CHOICES,
    integer_operators=frozenset({"add", "cat", "average_pool", "matmul"}),
    adds_into_layers=False,
    weight_bytes=weight_bytes,
    note="weights stored at their width, zeros as bits of a mask, unpacked to int8 when loaded, int8 arithmetic under "
    "a8; zeros make the file smaller and nothing faster",
    quantized_outputs=True,
    features=frozenset({"one scale", "group", "zero point", *FLOATS, "dynamic", "sparsity"}),
    not_beside_static=frozenset({"group", "zero point"}),
    not_beside_dynamic=frozenset({"group", "zero point"}),
    dynamic_choices=("w4a8d", "w6a8d", "w8a8d"),
)


def require() -> None:
    """Raise InvalidInput where the runtime is not installed."""
    _import_extra()


def write(graph: Graph, folder: Path) -> None:
    """Write model.onnx."""
    _import_extra()
    import onnx_ir as ir

    from mixbit.targets import _onnx, _onnx_weights

    exported, weights, floats = exported_graph(graph), integer_weights(graph), float_weights(graph)
    edited = exported.graph
    of_scales = {f"{quantizer_path(name, of_weight=True)}.scale": weight for name, weight in weights.items()}
    for cast in [node for node in edited if node.op_type == "Cast" and node.inputs[0].name in floats]:
        name = cast.inputs[0].name
        _onnx_weights.store_float(edited, cast, name, _small(floats[name]))
    for name in [layer.name for layer in graph.layers if layer.name not in weights | floats]:
        value = edited.initializers[name]
        value.name = f"{name}{SEPARATOR}weight"
        for number, (node, _, _) in enumerate(_onnx.readers(value)):
            _onnx.name_reader(node, name, number)
    for quantize in [node for node in edited if node.op_type == "QuantizeLinear"]:
        weight = of_scales.get(quantize.inputs[1].name)  # between a sparse weight and its quantizer is its mask
        if weight is None:
            _onnx.finish_activation(edited, quantize)
        else:
            (dequantize,) = quantize.outputs[0].consumers()
            quantized_input = graph.plan is not None and graph.plan.scheme(weight.name).input is not None
            _onnx_weights.store_weight(edited, dequantize, weight, quantized_input=quantized_input)
    _onnx.requantize(edited)
    for gemm in [node for node in edited if node.op_type == "Gemm"]:
        _onnx.quantize_bias(edited, gemm)
    _onnx.fold_numbers(edited)
    _onnx.drop_unused(edited)
    if any(node.domain == _onnx_weights.MICROSOFT for node in edited):
        exported.opset_imports[_onnx_weights.MICROSOFT] = 1
    ir.save(exported, folder / ARTEFACT)


def load(
    folder: Path,
    graph: Graph | None = None,  # noqa: ARG001
    *,
    batch_size: int | None = None,  # noqa: ARG001
    default_settings: bool = False,  # noqa: ARG001
) -> Runner:
    """Open a session on the CPU with the runtime's own settings; the batch size is taken from each call.

    Raises:
        InvalidInput: onnxruntime is not installed, or the file is missing.
        TargetMismatch: it is not a model that onnxruntime loads; from run(), it does not take those inputs.
    """
    ort = _import_extra()
    path = folder / ARTEFACT
    proto = _read(path)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with TemporaryDirectory() as scratch:
        optimized = Path(scratch) / ARTEFACT
        options.optimized_model_filepath = str(optimized)
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TargetMismatch(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
        executed = _executed(proto, _read(optimized), list(stored(folder)))
    names = [port.name for port in session.get_inputs()]

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if len(inputs) != len(names):
            raise TargetMismatch(f"{path}: takes {len(names)} inputs, the model {len(inputs)}; export again")
        try:
            return session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:
            raise TargetMismatch(f"{path}: onnxruntime cannot run it: {str(error).splitlines()[0]}") from error

    return Runner(run, lambda: executed, {"runtime": f"onnxruntime {ort.__version__}"})


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    import onnx

    rows: dict[str, list[tuple[int, str]]] = {}
    for tensor in _read(folder / ARTEFACT).graph.initializer:
        name, separator, part = tensor.name.rpartition(SEPARATOR)
        if separator:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            rows.setdefault(name, []).append((len(tensor.raw_data), f"{kind} {part.rstrip('0123456789')}"))
    return {name: StoredWeight(sum(size for size, _ in parts), _types(parts)) for name, parts in rows.items()}


def _types(parts: list[tuple[int, str]]) -> str:
    """What the parts are, each kind once, the integers before their scales."""
    return ", ".join(sorted({text for _, text in parts}, key=lambda text: text.endswith("scale")))


def _import_extra() -> Any:
    try:
        import ml_dtypes  # noqa: F401
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InvalidInput("target onnxruntime needs its runtime: pip install 'mixbit[onnxruntime]'") from error
    return onnxruntime


def _read(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror}); export again") from error
    except Exception as error:
        raise TargetMismatch(f"{path}: not an ONNX file ({error})") from error


def _small(value: torch.Tensor) -> NDArray[Any]:
    """A tensor of float16 or bfloat16 as an array."""
    import ml_dtypes

    if value.dtype == torch.float16:
        return value.numpy()
    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _executed(written: Any, optimized: Any, layers: list[str]) -> dict[str, str]:
    """Layer -> operators that onnxruntime made of those named after it, and the type they compute in."""
    owners = _owners(written, frozenset(layers))
    rows: dict[str, dict[str, None]] = {}
    for node in optimized.graph.node:
        layer = owners.get(node.name) or owners.get(re.sub(r"(_token_\d+|/\w+/?)$", "", node.name))
        if layer is not None:
            kind = "int8" if node.op_type.startswith(INTEGER) else "float32"
            rows.setdefault(layer, {})[f"{node.op_type} {kind}"] = None
    return {layer: ", ".join(texts) for layer, texts in rows.items()}


def _owners(written: Any, layers: frozenset[str]) -> dict[str, str]:
    """Name that an operator may have after optimization -> its layer.

    Fused operators keep their name with something behind it; a blocked convolution is named after its output, its own
    or that of the activation function fused into it.
    """
    readers: dict[str, list[Any]] = {}
    for node in written.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owners = {}
    for node in written.graph.node:
        layer = node.name.partition(FURTHER)[0]
        if layer in layers:
            after = readers.get(node.output[0], [])
            fused = after if len(after) == 1 and after[0].op_type in FUSED else []
            owners |= {f"{one.output[0]}_nchwc": layer for one in (node, *fused)} | {node.name: layer}
    return owners
