"""Target OpenVINO: an IR whose weights are stored at the plan's width and run in int8.

A weight is a constant of 2, 3, 4, 6 or 8 bits, converted to int8, less its offset, converted to float32 and multiplied
by its scales. The CPU plugin folds everything up to int8 when it compiles the model and then runs the operator in int8,
whatever the width on disk. Where ranges are taken at run time, the file makes the plugin quantize the inputs of
products in groups itself, and the plugin multiplies them by the weights as they are stored.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mixbit.core import (
    Format,
    InvalidInput,
    Ports,
    Runner,
    Scheme,
    StoredWeight,
    Target,
    TargetMismatch,
    runtime_threads,
)
from mixbit.graph import Graph
from mixbit.quantization.affine import factor_bytes
from mixbit.targets._integers import (
    FURTHER,
    QUANTIZER,
    mismatch,
    only_beside_float,
    plan_of,
    reason_line,
    runtime,
    stored_rows,
)
from mixbit.targets._layers import PROFILED, QUANTIZED, quiet_ms
from mixbit.targets._usage import given_in_python, in_cpp, in_cpp_type, lines_in_cpp, names_in_python, shape_in_cpp

FILE, WEIGHTS = "model.xml", "model.bin"
#: Element type on disk by width; u types hold the integers plus their offset. With zero points all are u types.
TYPES = {2: "u2", 3: "u3", 4: "i4", 6: "u6", 8: "i8"}
#: Bits of inputs whose quantizers the plugin leaves out (2026.4).
UNROUNDED = 16
#: Kinds of operators of the compiled graph that compute no layer: constants, moves, and what was not fused into one.
OTHER_KINDS = ("Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Convert", "Eltwise", "Subgraph")
#: Types of weights that products unpack as they read them, or multiply in integers.
NARROW = {"i4", "u4", "i8", "u8"}
#: Makes the plugin compute as the simulation does: no bfloat16, no quantization on the fly.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

#: Compiles the file and runs it once, by the runtime alone.
PROGRAM = f"""
import sys
sys.modules["openvino_telemetry"] = None  # which it would send to
import numpy
import openvino
compiled = openvino.Core().compile_model(sys.argv[1] + "/{FILE}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
compiled(list(numpy.load(sys.argv[2]).values()))
"""
#: Values of a row that share a range where the plugin takes it at run time: its own default on CPUs.
GROUP = 32
#: Where a file holds the plugin's property; the plugin obeys it, unless another value is given.
RUN_TIME_OPTION = ("runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
_openvino = partial(runtime, "openvino", "openvino")


def lacks(scheme: Scheme) -> str | None:
    """Zeros, 16-bit inputs, other ranges at run time than those of GROUP values, and what `only_beside_float` says."""
    read = scheme.input
    if scheme.weight is not None and scheme.weight.sparsity is not None:
        return "no sparsity (its file would hold the zeros too and be no smaller)"
    if read is not None and read.bits == UNROUNDED:
        return "no inputs of 16 bits (the plugin leaves out quantizers of 65,536 steps, and rounds and clips nothing)"
    if read is None or not read.dynamic:
        return only_beside_float(scheme)
    return None if read.group == GROUP else f"inputs ranged at run time in groups of {GROUP}"


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers without gaps, float32 scales, zero points of a byte, or an offset for u types; or numbers of 2 bytes."""
    numel = math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    per_group = {3: 8, 6: 4}.get(fmt.bits)  # u3 and u6 hold 8 and 4 integers in each 3 bytes, the others fill bytes
    integers = -(-numel // per_group) * 3 if per_group else -(-numel * fmt.bits // 8)
    offset = 1 if fmt.symmetric and TYPES[fmt.bits].startswith("u") else 0
    return integers + factor_bytes(shape, axis, fmt) + offset


def write(simulated: Graph, folder: Path) -> None:
    """Write model.xml and model.bin."""
    ov = _openvino()
    from mixbit.targets._openvino import converted, put_left, shorten

    plan, (model, left) = plan_of(simulated), converted(simulated, TYPES)
    dynamic = any((read := plan.scheme(name).input) is not None and read.dynamic for name in plan.layers)
    # the plugin's default is GROUP, which would round the inputs of layers that are to read float numbers
    model.set_rt_info(str(GROUP if dynamic else 0), list(RUN_TIME_OPTION))
    try:
        ov.serialize(model, folder / FILE, folder / WEIGHTS)
    except RuntimeError as error:
        raise InvalidInput(f"{folder}: OpenVINO cannot write there: {reason_line(error)}") from error
    if left.contents:
        put_left(folder / FILE, folder / WEIGHTS, left)
    shorten(folder / FILE)


def load(
    folder: Path, _: Graph | None = None, /, *, batch_size: int | None = None, default_settings: bool = False
) -> Runner:
    """Compile the IR on the CPU, with SETTINGS or the plugin's own; a batch size fixes the inputs' first dimension."""
    ov, path = _openvino(), folder / FILE
    model, layers = _read(folder), list(stored(folder))
    settings = {} if default_settings else _settings(model)
    with mismatch(f"{path}: OpenVINO cannot compile it", RuntimeError):
        if batch_size is not None:
            model.reshape({port: [batch_size, *list(port.partial_shape)[1:]] for port in model.inputs})
        threads = runtime_threads()
        limited = {} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}
        compiled = _core().compile_model(model, "CPU", settings | limited)
        request = compiled.create_infer_request()
    ports = compiled.outputs

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if len(inputs) != len(compiled.inputs):
            raise TargetMismatch(f"{path}: takes {len(compiled.inputs)} inputs, the model {len(inputs)}; export again")
        with mismatch(f"{path}: OpenVINO cannot run it", RuntimeError):
            results = request.infer(inputs)
        return [results[port] for port in ports]

    environment = {"runtime": f"openvino {ov.__version__}", **settings}
    profile = partial(_profile, model, settings, layers)
    names = [port.get_any_name() for port in compiled.inputs], [port.get_any_name() for port in ports]
    return Runner(run, lambda: _executed(compiled, layers), environment, profile, names)


def usage(ports: Ports, environment: Mapping[str, str]) -> dict[str, str]:
    """Programs that run the file."""
    settings = _settings_in(environment)
    python = [
        "import numpy as np",
        "import openvino",
        "",
        f'model = openvino.Core().compile_model("{FILE}", "CPU", {settings})',
        given_in_python(ports),
        "results = model(inputs)",
        f"outputs = {{name: results[name] for name in {names_in_python(ports)}}}",
    ]
    tensors = [
        f"request.set_tensor({in_cpp(port.name)}, "
        f"ov::Tensor(ov::element::from<{in_cpp_type(port)}>(), {shape_in_cpp(port)}));"
        for port in ports.inputs
    ]
    name, first = in_cpp(ports.inputs[0].name), in_cpp_type(ports.inputs[0])
    returned, last = in_cpp(ports.outputs[0].name), in_cpp_type(ports.outputs[0])
    pairs = ", ".join(f'{{"{name}", "{value}"}}' for name, value in settings.items())
    cpp = [
        f'auto model = ov::Core().compile_model("{FILE}", "CPU", ov::AnyMap{{{pairs}}});',
        "auto request = model.create_infer_request();",
        *lines_in_cpp(tensors, ports),
        f"// fill each, as request.get_tensor({name}).data<{first}>()",
        "request.infer();",
        f"auto output = request.get_tensor({returned});  // read it by output.data<{last}>()",
    ]
    return {"Python": "\n".join(python), "C++": "\n".join(["#include <openvino/openvino.hpp>", "", *cpp])}


def _settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in SETTINGS}


def _profile(
    model: Any, settings: dict[str, str], layers: list[str], inputs: list[NDArray[Any]]
) -> list[tuple[str, float]]:
    compiled = _core().compile_model(model, "CPU", settings | {"PERF_COUNT": "YES"})
    owners = {}
    for operator, info in _operators(compiled):
        names = [*info.get("originalLayersNames", "").split(","), *_constants(operator)]
        owners[operator.get_friendly_name()] = next(iter(_owners(names, layers)), "")
    request, times = compiled.create_infer_request(), dict[str, list[float]]()
    for _ in range(PROFILED):
        request.infer(inputs)
        for node in request.get_profiling_info():
            times.setdefault(node.node_name, []).append(1000 * node.real_time.total_seconds())
    return quiet_ms((owners.get(name, ""), values) for name, values in times.items())


def _settings(model: Any) -> dict[str, str]:
    """SETTINGS, with the groups that the file asks for."""
    if not model.has_rt_info(list(RUN_TIME_OPTION)):
        return dict(SETTINGS)
    return SETTINGS | {RUN_TIME_OPTION[1]: str(model.get_rt_info(list(RUN_TIME_OPTION)).astype(str))}


def load_tensors(folder: Path, names: list[tuple[str, bool]]) -> Callable[[list[NDArray[Any]]], dict[str, Any]]:
    """Compile the file so that it returns tensors inside: behind their quantizer, or behind the operator of a layer."""
    _openvino()
    from mixbit.targets._openvino_products import restored

    model = _read(folder)
    operators = {operator.get_friendly_name(): operator for operator in model.get_ordered_ops()}
    places: dict[str, str] = {}
    for name, biased in names:
        if name.startswith(QUANTIZED):
            places[name] = f"{QUANTIZER}{name.removeprefix(QUANTIZED)}"
        else:
            places[name] = f"{name}/bias" if biased and f"{name}/bias" in operators else name
    held = {name: restored(model, operators[place]) for name, place in places.items() if place in operators}
    settings = _settings(model)
    with mismatch(f"{folder / FILE}: OpenVINO cannot compile it with more outputs", RuntimeError):
        if held:
            model.add_outputs([operator.output(0) for operator in held.values()])
        request = _core().compile_model(model, "CPU", settings).create_infer_request()
    sources = [result.input_value(0).get_node().get_friendly_name() for result in model.get_results()]

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = request.infer(inputs).to_tuple()
        return {name: results[sources.index(operator.get_friendly_name())] for name, operator in held.items()}

    return run


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight, offset and scales, read from the file."""
    from mixbit.targets._openvino import PARTS

    parts = []
    for operator in _read(folder).get_ordered_ops():
        name, _, part = operator.get_friendly_name().rpartition("/")
        if operator.get_type_name() == "Constant" and part in PARTS:
            parts.append((name, operator.get_byte_size(), f"{operator.get_element_type().get_type_name()} {part}"))
    return stored_rows(parts)


@cache
def _core() -> Any:
    """The process's only Core; it lives until the process ends.

    The CPU plugin gives the thread another signal stack while a Core has it loaded, and puts the former one back
    afterwards: two Cores that do not end in the order of a stack leave freed memory there, and an interrupt crashes.
    """
    return _openvino().Core()


@cache
def overflows() -> bool:
    """Whether a product of the largest 8-bit inputs and weights is wrong.

    Where an x86 processor has no VNNI, oneDNN adds pairs of products in 16 bits, which end at 32,767; weights of 7 bits
    and fewer stay below (OpenVINO 2026.4).
    """
    ov, count = _openvino(), 16
    import numpy as np
    from openvino import opset13

    inputs = opset13.parameter([1, count], np.float32)
    steps = opset13.fake_quantize(inputs, *(np.float32(bound) for bound in (0, 255, 0, 255)), 256)
    integers = opset13.convert(opset13.constant(np.full((count, 1), 127, np.int8)), "f32")
    weight = opset13.multiply(integers, opset13.constant(np.ones((1, 1), np.float32)))
    model = ov.Model([opset13.matmul(steps, weight, False, False)], [inputs])
    result = _core().compile_model(model, "CPU", SETTINGS)([np.full((1, count), 255, np.float32)])
    return bool(result[0][0, 0] != 255 * 127 * count)


def _check_files(folder: Path) -> None:
    if not all((folder / name).is_file() for name in (FILE, WEIGHTS)):
        raise InvalidInput(f"{folder / FILE}: the file or its .bin is missing; export again")


def _read(folder: Path) -> Any:
    path = folder / FILE
    _check_files(folder)
    with mismatch(f"{path}: OpenVINO cannot read it", RuntimeError):
        return _core().read_model(path)


def _executed(compiled: Any, layers: list[str]) -> dict[str, str]:
    """Layer -> operators, the type that they compute in, and kernel, from the plugin's own description of its graph."""
    rows: dict[str, dict[str, None]] = {}
    of_constants: dict[str, str] = {}
    in_groups = int(compiled.get_property(RUN_TIME_OPTION[1]))
    for operator, info in _operators(compiled):
        kind, kernel = info.get("layerType", ""), info.get("primitiveType", "")
        if kind in OTHER_KINDS:
            continue
        last = kernel.rpartition("_")[2]  # "ref_any_i8" copies rows of a table; other kernels end with I8 or i8 alike
        computes = "int8" if last.lower() == "i8" and not kernel.startswith("ref_") else last
        read = {value.get_element_type().get_type_name() for value in operator.input_values()}
        narrow = read & NARROW
        if kind == "FullyConnected" and in_groups and kernel.startswith("brgemm") and narrow:
            computes = f"int8, inputs in groups of {in_groups}"
        text = f"{kind} {computes} ({kernel})"
        if kind == "FullyConnected" and computes != "int8" and narrow:  # not unpacked when loaded
            text += f", weights in {' '.join(sorted(narrow))}"
        for layer in _owners(info.get("originalLayersNames", "").split(","), layers):
            rows.setdefault(layer, {})[text] = None
        for layer in _owners(_constants(operator), layers):
            of_constants.setdefault(layer, text)
    texts = of_constants | {layer: ", ".join(texts) for layer, texts in rows.items()}
    return {layer: texts[layer] for layer in layers if layer in texts}


def _operators(compiled: Any) -> Iterator[tuple[Any, dict[str, str]]]:
    """The operators that the plugin executes, and what it says of each."""
    for operator in compiled.get_runtime_model().get_ordered_ops():
        yield operator, {key: str(value.value) for key, value in operator.get_rt_info().items()}


def _constants(operator: Any) -> list[str]:
    """Names of what it reads; a product with compressed weights may have no other mark of its layer."""
    return [value.get_node().get_friendly_name() for value in operator.input_values()]


def _owners(names: list[str], layers: list[str]) -> list[str]:
    """The layers that operators or constants of these names are of."""
    return [layer for name in names if (layer := _owner(name, layers))]


def _owner(name: str, layers: list[str]) -> str:
    """The layer that an operator or constant is named after, else ""; a slash and more may follow its name."""
    while name and name not in layers:
        name = name[: max(name.rfind("/"), name.rfind(FURTHER), 0)]
    return name


TARGET = Target(
    name="openvino",
    files=(FILE, WEIGHTS),
    weight_bits=(2, 3, 4, 6, 8),  # those of TYPES
    input_bits=(4, 8),
    dynamic_choices=tuple(f"w{bits}a8dg{GROUP}" for bits in (4, 6, 8)),
    integer_layers=frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "addmm", "matmul"}),
    writes_by_layer=True,
    integer_operators=frozenset({"add", "cat", "average_pool", "matmul"}),
    adds_into_layers=True,
    rounds_shifted=True,
    note="weights stored at their width, unpacked to int8 when compiled, int8 arithmetic under a8; also bfloat16, "
    "dynamic groups, float16, group, one scale, zero point",
    lacks=lacks,
    weight_bytes=weight_bytes,
    require=_openvino,
    write=write,
    load=load,
    stored=stored,
    program=PROGRAM,
    check_files=_check_files,
    load_tensors=load_tensors,
    exact=lambda environment: f'compile_model(..., "CPU", {_settings_in(environment)})',
    overflows=overflows,
    usage=usage,
)
