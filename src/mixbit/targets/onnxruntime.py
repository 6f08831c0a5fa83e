"""Target onnxruntime: ONNX in QDQ form whose weights are stored at the plan's width and run in int8.

Weights of 8 bits are int8 initializers. Weights of 4 bits are INT4 initializers behind a Cast to int8; the other widths
are bit planes in uint8 words, unpacked by shift, and, or, concat, reshape, cast and subtract. onnxruntime folds all of
it when it loads the file, so that every width runs as int8. Of a sparse weight only the integers that stay are stored,
and one bit a weight; cumulative sum and gather put them in their places. Weights with groups or zero points, and in
small floating-point types, are unpacked to float32 likewise; matrices in groups are read as they are stored, by
MatMulNBits. Inputs whose range is taken at run time are multiplied by int8 weights in a MatMulInteger.
Weights that are too many for one message of Protocol Buffers lie in a second file.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mixbit.core import (
    Ports,
    Runner,
    Scheme,
    StoredWeight,
    Target,
    TargetMismatch,
    runtime_threads,
    scratch_folder,
)
from mixbit.graph import Graph
from mixbit.quantization.quantizer import quantizer_path
from mixbit.targets._integers import (
    BLOCK_BITS,
    BLOCK_SIZES,
    FURTHER,
    ROUNDS_INPUTS,
    SEPARATOR,
    UNROUNDED_BLOCKS,
    mismatch,
    only_beside_float,
    runtime,
    stored_rows,
    weight_bytes,
)
from mixbit.targets._layers import PROFILED, QUANTIZED, quiet_ms
from mixbit.targets._onnx_file import bytes_of, last_of, read_file
from mixbit.targets._usage import given_in_python, in_cpp, in_cpp_type, lines_in_cpp, names_in_python, shape_in_cpp

FILE = "model.onnx"
#: The file beside it that holds weights where they take more than so many bytes: FILE itself ends at 2 GB.
DATA, MOST_INSIDE = "model.onnx.data", 3 * 2**29
#: Tensors of so many bytes stay in FILE even then.
FEW_BYTES = 1024
BYTE = 8
#: Kinds of layers' operators that multiply with a matrix, which has so many dimensions.
PRODUCTS, MATRIX = ("linear", "addmm", "matmul"), 2
#: Operators of onnxruntime that compute in integers, by the beginning of their names.
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")
#: Activation functions that it fuses into convolutions.
FUSED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
#: Recurrent operators, and those that make of a layer's weight what they read.
RECURRENT, TO_RECURRENT = ("LSTM", "GRU", "RNN"), ("Split", "Concat", "Unsqueeze")
#: Makes onnxruntime add products exactly: where an x86 processor has no VNNI, it adds pairs of products with 8-bit
#: weights in 16 bits, which overflow (1.31). It changes nothing elsewhere. It fails where two products share their zero
#: points, which the optimizer would let small ones.
SETTINGS = {"session.x64quantprecision": "1", "optimization.disable_specified_optimizers": "ConstantSharing"}
#: Gives the unpacked weights in the copy that onnxruntime writes of what it runs a file of their own.
OPTIMIZED = {
    "session.optimized_model_external_initializers_file_name": DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": str(FEW_BYTES),
}
#: Entry that says where DATA lies, where FILE is given as bytes.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
#: Said of a file that runs under the runtime's own settings alone.
INEXACT = (
    "onnxruntime does not take this file with the settings that keep sums of 8-bit weights exact (a layer's weight is "
    "read twice): on x86 processors without VNNI these sums overflow; take 6 bits for it, or verify there"
)
#: Opens a session and runs it once, by the runtime alone.
PROGRAM = f"""
import os
import sys
import numpy
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/{FILE}", providers=["CPUExecutionProvider"])
session.run(None, dict(zip([port.name for port in session.get_inputs()], numpy.load(sys.argv[2]).values())))
"""
_runtime = partial(runtime, "onnxruntime", "onnxruntime", "ml_dtypes", "onnx", "onnx_ir", "onnxscript")


def lacks(scheme: Scheme) -> str | None:
    """Inputs of 16 bits, ranges at run time that MatMulNBits does not take, and what `only_beside_float` says."""
    weight, read = scheme.weight, scheme.input
    if read is not None and read.bits > BYTE:
        return f"no inputs of {read.bits} bits (it has no integer kernels for them, and computes in float)"
    if read is not None and not read.dynamic and weight is not None and weight.group is None:
        return None  # kernels with zero points: see `lacks_for`
    if read is None or read.granularity == "tensor":
        return only_beside_float(scheme)
    if (
        weight is not None
        and weight.symmetric
        and weight.group == read.group
        and weight.group in BLOCK_SIZES
        and weight.bits in BLOCK_BITS
        and (weight.bits, weight.group) not in UNROUNDED_BLOCKS
        and read.bits == BYTE
    ):
        return None
    if read.granularity == "row":
        return "no dynamic rows, but groups as in w4g32a8dg32"
    return (
        "dynamic groups only as in w4g32a8dg32: 8 bits of inputs, and 2, 4 or 8 of weights without zero points, in the "
        "same groups of 16 or 256 (not with 2 bits), 32, 64 or 128"
    )


def lacks_for(layer: Any, scheme: Scheme) -> str | None:
    """Zero points beside quantized inputs of what is no product with a matrix: QLinearConv has one for all channels."""
    weight, read = scheme.weight, scheme.input
    if weight is None or read is None or read.dynamic or weight.symmetric or weight.group is not None:
        return None
    matrices = all(operation.kind.name in PRODUCTS for operation in layer.operations) and len(layer.shape) == MATRIX
    return None if matrices else "zero point not beside inputs of static range, but in products with a matrix"


def write(simulated: Graph, folder: Path) -> None:
    """Write model.onnx; and model.onnx.data where weights take more than MOST_INSIDE, or stay in files themselves."""
    _runtime()
    import onnx_ir as ir

    from mixbit.targets._onnx import converted

    model = converted(simulated)
    num_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = DATA if simulated.room is not None or num_bytes > MOST_INSIDE else None
    (folder / DATA).unlink(missing_ok=True)  # of a network that was written there before
    ir.save(model, folder / FILE, external_data=beside, size_threshold_bytes=FEW_BYTES)


def load(
    folder: Path, _: Graph | None = None, /, *, batch_size: int | None = None, default_settings: bool = False
) -> Runner:
    """Open a session on the CPU, with SETTINGS or the runtime's own; the batch size is taken from each call."""
    del batch_size
    ort = _runtime()
    path, errors = folder / FILE, _errors(ort)
    proto = _read(folder)
    with scratch_folder() as scratch:
        optimized = scratch / FILE
        with mismatch(f"{path}: onnxruntime cannot load it", *errors, line=0):
            said: dict[str, Any] = {"optimized_model_filepath": str(optimized)}
            if (threads := runtime_threads()) is not None:
                said["intra_op_num_threads"] = threads
            session, settings = _opened(ort, path, said, OPTIMIZED, default_settings=default_settings)
        layers = list(stored(folder))
        executed = _executed(proto, read_file(optimized, DATA), layers)
    names = [port.name for port in session.get_inputs()]

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if len(inputs) != len(names):
            raise TargetMismatch(f"{path}: takes {len(names)} inputs, the model {len(inputs)}; export again")
        with mismatch(f"{path}: onnxruntime cannot run it", *errors, line=0):
            return session.run(None, dict(zip(names, inputs, strict=True)))

    profile = partial(_profile, ort, path, proto, layers)
    environment = {"runtime": f"onnxruntime {ort.__version__}", **settings}
    returned = [port.name for port in session.get_outputs()]
    note = "" if settings or default_settings else INEXACT
    return Runner(run, lambda: executed, environment, profile, (names, returned), note)


def usage(ports: Ports, environment: Mapping[str, str]) -> dict[str, str]:
    """Programs that run the file."""
    entries = {name: value for name, value in environment.items() if name in SETTINGS}
    python = [
        "import numpy as np",
        "import onnxruntime",
        "",
        "options = onnxruntime.SessionOptions()",
        *(f'options.add_session_config_entry("{name}", "{value}")' for name, value in entries.items()),
        f'session = onnxruntime.InferenceSession("{FILE}", options, providers=["CPUExecutionProvider"])',
        given_in_python(ports),
        f"names = {names_in_python(ports)}",
        "outputs = dict(zip(names, session.run(names, inputs)))",
    ]
    tensors = [
        f"values.push_back(Ort::Value::CreateTensor<{in_cpp_type(port)}>(allocator, "
        f"std::vector<int64_t>{shape_in_cpp(port)}.data(), {len(port.shape)}));"
        for port in ports.inputs
    ]
    names, wanted = (", ".join(in_cpp(port.name) for port in some) for some in (ports.inputs, ports.outputs))
    set_options = [f'options.AddConfigEntry("{name}", "{value}");' for name, value in entries.items()]
    ran = f"session.Run(Ort::RunOptions{{}}, inputs, values.data(), values.size(), outputs, {len(ports.outputs)});"
    cpp = [
        "Ort::Env env; Ort::AllocatorWithDefaultOptions allocator;",
        f"Ort::SessionOptions options; {' '.join(set_options)}",
        f'Ort::Session session(env, ORT_TSTR("{FILE}"), options);',
        "std::vector<Ort::Value> values;  // fill each by values[i].GetTensorMutableData<TYPE>()",
        *lines_in_cpp(tensors, ports),
        f"const char *inputs[] = {{{names}}}, *outputs[] = {{{wanted}}};",
        f"auto results = {ran}  // read each by results[i].GetTensorData<TYPE>()",
    ]
    return {"Python": "\n".join(python), "C++": "\n".join(["#include <onnxruntime_cxx_api.h>", "", *cpp])}


def _opened(
    ort: Any,
    source: Any,
    options: Mapping[str, Any],
    entries: Mapping[str, str] | None = None,
    *,
    default_settings: bool = False,
) -> tuple[Any, dict[str, str]]:
    """A session on the CPU and its settings: SETTINGS, or the runtime's own; these too where the former fail.

    SETTINGS fail where two products share a weight of 8 bits, which would be converted twice. Raises what the runtime
    does. `options` are attributes of SessionOptions, `entries` its entries beside the settings.
    """
    given, settings = ort.SessionOptions(), {} if default_settings else SETTINGS
    for name, value in ({"log_severity_level": 4} | dict(options)).items():
        setattr(given, name, value)
    for name, value in (settings | dict(entries or {})).items():
        given.add_session_config_entry(name, value)
    try:
        return ort.InferenceSession(source, given, providers=["CPUExecutionProvider"]), settings
    except _errors(ort):
        if default_settings:
            raise
        return _opened(ort, source, options, entries, default_settings=True)


@cache
def overflows() -> bool:
    """Whether a product of the largest 8-bit inputs and weights is wrong under the runtime's own settings."""
    ort = _runtime()
    import numpy as np
    from onnx import TensorProto, helper

    count = 16
    kinds = {"x": TensorProto.UINT8, "w": TensorProto.INT8, "y": TensorProto.INT32}
    x, w, y = (helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items())
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "product", [x, w], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    session, _ = _opened(ort, model.SerializeToString(), {}, default_settings=True)
    (sums,) = session.run(None, {"x": np.full((1, count), 255, np.uint8), "w": np.full((count, 1), 127, np.int8)})
    return bool(sums[0, 0] != 255 * 127 * count)


def _profile(
    ort: Any, path: Path, proto: Any, layers: list[str], inputs: list[NDArray[Any]]
) -> list[tuple[str, float]]:
    owners = _owners(proto, frozenset(layers))
    with scratch_folder() as scratch:
        options = {"enable_profiling": True, "profile_file_prefix": str(scratch / "profile")}
        session, _ = _opened(ort, path, options)
        ports = [port.name for port in session.get_inputs()]
        for _ in range(PROFILED):
            session.run(None, dict(zip(ports, inputs, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name, _, what = event["name"].rpartition("_kernel_")
        if what == "time":
            times.setdefault((event["args"]["node_index"], name), []).append(event["dur"] / 1000)
    return quiet_ms((next(iter(_owners_of(name, owners)), ""), values) for (_, name), values in times.items())


def load_tensors(folder: Path, names: list[tuple[str, bool]]) -> Callable[[list[NDArray[Any]]], dict[str, Any]]:
    """Open a session that returns tensors inside: behind their quantizer, or behind the operator of a layer."""
    ort, proto = _runtime(), _read(folder)
    import onnx

    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    operators = {node.name: node for node in reversed(proto.graph.node) if node.name}
    tensors: dict[str, str] = {}
    for name, biased in names:
        scale = f"{quantizer_path(name.removeprefix(QUANTIZED), of_weight=False)}.scale"
        if name.startswith(QUANTIZED):
            quantizers = [node for node in readers.get(scale, ()) if node.op_type == "QuantizeLinear"]
            restored = [node for first in quantizers[:1] for node in readers.get(first.output[0], ())]
        else:
            restored = [last_of(operators[name], readers, biased)] if name in operators else []
        if restored:
            tensors[name] = restored[0].output[0]
    outputs = {port.name for port in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=value) for value in {*tensors.values()} - outputs)
    with mismatch(f"{folder / FILE}: onnxruntime cannot load it with more outputs", *_errors(ort), line=0):
        session, _ = _opened(ort, proto.SerializeToString(), {}, {WEIGHTS_FOLDER: str(folder.absolute())})
    ports = [port.name for port in session.get_inputs()]

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        wanted = list(dict.fromkeys(tensors.values()))
        found = dict(zip(wanted, session.run(wanted, dict(zip(ports, inputs, strict=True))), strict=True))
        return {name: found[value] for name, value in tensors.items()}

    return run


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    import onnx

    parts = []
    for tensor in _read(folder).graph.initializer:
        layer, separator, part = tensor.name.rpartition(SEPARATOR)
        if separator:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            parts.append((layer, bytes_of(tensor), f"{kind} {part.rstrip('0123456789')}"))
    return stored_rows(parts)


def _read(folder: Path) -> Any:
    return read_file(folder / FILE, DATA)


def _errors(ort: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its classes, which share no base, and Python's."""
    own = vars(ort.capi.onnxruntime_pybind11_state).values()
    return ValueError, RuntimeError, *(kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception))


def _executed(written: Any, optimized: Any, layers: list[str]) -> dict[str, str]:
    """Layer -> operators that onnxruntime made of those named after it, and the type they compute in."""
    owners = _owners(written, frozenset(layers))
    rows: dict[str, dict[str, None]] = {}
    for node in optimized.graph.node:
        for layer in _owners_of(node.name, owners):
            kind = "int8" if node.op_type.startswith(INTEGER) else "float32"
            if node.op_type == "MatMulNBits":
                said = {attribute.name: attribute.i for attribute in node.attribute}
                if said.get("accuracy_level") == ROUNDS_INPUTS:
                    kind = f"int8, inputs in groups of {said['block_size']}"
                kind += f", weights in {said['bits']} bits"
            rows.setdefault(layer, {})[f"{node.op_type} {kind}"] = None
    return {layer: ", ".join(texts) for layer, texts in rows.items()}


def _owners_of(name: str, owners: dict[str, list[str]]) -> list[str]:
    """The layers that an operator of that name after optimization is of."""
    name = name.removeprefix("fused ")
    return owners.get(name) or owners.get(re.sub(r"(_token_\d+|/\w+/?)$", "", name), [])


def _owners(written: Any, layers: frozenset[str]) -> dict[str, list[str]]:
    """Name that an operator may have after optimization -> its layer; a recurrence has two.

    Fused operators keep their name with something behind it; a blocked convolution is named after its output, its own
    or that of the activation function fused into it.
    """
    readers: dict[str, list[Any]] = {}
    for node in written.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owners: dict[str, list[str]] = {}
    for node in written.graph.node:
        layer = node.name.partition(FURTHER)[0]
        recurrence = _recurrence(node, readers) if layer in layers else None
        if recurrence is not None:
            owners.setdefault(recurrence.name, []).append(layer)
        elif layer in layers:
            after = readers.get(node.output[0], [])
            fused = after if len(after) == 1 and after[0].op_type in FUSED else []
            owners |= {f"{each.output[0]}_nchwc": [layer] for each in (node, *fused)} | {node.name: [layer]}
    return owners


def _recurrence(node: Any, readers: Mapping[str, list[Any]]) -> Any:
    """The recurrent operator that takes as a weight what the node is put together to; None where there is none."""
    if node.op_type not in TO_RECURRENT:
        return None
    for value in node.output:
        for after in readers.get(value, []):
            if after.op_type in RECURRENT:
                return after if value in after.input[1:3] else None
            recurrence = _recurrence(after, readers)
            if recurrence is not None:
                return recurrence
    return None


TARGET = Target(
    name="onnxruntime",
    files=(FILE,),
    more_files=(DATA,),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    dynamic_choices=("w4a8d", "w6a8d", "w8a8d"),
    integer_layers=frozenset({"conv1d", "conv2d", "conv3d", "linear", "addmm", "matmul"}),
    integer_operators=frozenset({"add", "cat", "average_pool", "matmul"}),
    quantized_outputs=frozenset({"conv1d", "conv2d", "conv3d"}),
    writes_by_layer=True,
    note="weights stored at their width, zeros as bits of a mask, unpacked to int8 when loaded, int8 arithmetic under "
    "a8; zeros make the file smaller and nothing faster; also bfloat16, dynamic, float16, group, one scale, sparsity, "
    "zero point",
    lacks=lacks,
    lacks_for=lacks_for,
    weight_bytes=weight_bytes,
    require=_runtime,
    write=write,
    load=load,
    stored=stored,
    program=PROGRAM,
    check_files=_read,
    load_tensors=load_tensors,
    exact=lambda _: " and ".join(f'add_session_config_entry("{name}", "{value}")' for name, value in SETTINGS.items()),
    overflows=overflows,
    usage=usage,
)
