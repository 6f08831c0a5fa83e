"""Target qonnx: ONNX in float with Quant nodes of any width, from which hls4ml and FINN make designs for FPGAs.

Each weight and each quantized activation has a node `Quant` (domain `qonnx.custom_op.general`), which says its bits
and scale. The file holds weights in float32, at the values that they are rounded to; a design holds them in their bits.
qonnx's executor runs the file in float32, node by node.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mixbit.core import Format, Ports, Runner, Scheme, StoredWeight, Target, TargetMismatch
from mixbit.graph import Graph
from mixbit.quantization.affine import num_scales
from mixbit.quantization.quantizer import quantizer_path
from mixbit.targets._integers import mismatch, runtime
from mixbit.targets._layers import QUANTIZED
from mixbit.targets._onnx_file import last_of, read_file
from mixbit.targets._usage import given_in_python, names_in_python

FILE = "model.onnx"
#: Opens the file and runs it once, by the runtime alone.
PROGRAM = f"""
import os
import sys
import numpy
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
model = ModelWrapper(sys.argv[1] + "/{FILE}")
inputs = dict(zip([port.name for port in model.graph.input], numpy.load(sys.argv[2]).values()))
for name, array in inputs.items():
    model.set_tensor_shape(name, array.shape)
execute_onnx(model.transform(InferShapes()), inputs)
"""
BYTE = 8
#: Bytes of a number in float32.
FLOAT_BYTES = 4
_qonnx = partial(
    runtime, "qonnx", "qonnx.core.onnx_exec", "qonnx.transformation.infer_shapes", "ml_dtypes", "onnx_ir", "onnxscript"
)


def lacks(scheme: Scheme) -> str | None:
    """All but weights with a scale a channel, or one, beside static ranges: what designs for FPGAs take."""
    weight, read = scheme.weight, scheme.input
    if weight is not None and weight.floating is not None:
        return f"no {weight.floating}"
    if weight is not None and weight.sparsity is not None:
        return "no sparsity (its file would hold the zeros too and be no smaller)"
    if weight is not None and weight.group is not None:
        return "no groups (a Quant node has a scale for a channel, or one)"
    if weight is not None and not weight.symmetric:
        return "no zero points (designs for FPGAs have none)"
    if read is not None and read.dynamic:
        return "no dynamic ranges (a Quant node holds its scale)"
    return None


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers in their bits, one after the other, and scales in float32, as a design holds them."""
    numel = math.prod(shape)
    if fmt is None:
        return FLOAT_BYTES * numel
    return -(-numel * fmt.bits // BYTE) + FLOAT_BYTES * num_scales(shape, axis, fmt)


def write(simulated: Graph, folder: Path) -> None:
    """Write model.onnx."""
    _qonnx()
    import onnx_ir as ir

    from mixbit.targets._qonnx import converted

    ir.save(converted(simulated), folder / FILE)


def load(
    folder: Path, _: Graph | None = None, /, *, batch_size: int | None = None, default_settings: bool = False
) -> Runner:
    """Open the file with qonnx's executor; sizes are taken from each call."""
    del batch_size, default_settings
    _qonnx()
    from mixbit.targets._qonnx_executor import names_of

    path = folder / FILE
    proto = read_file(path)
    with mismatch(f"{path}: qonnx cannot read it", Exception):  # it raises Exception itself
        layers = stored(folder)
        operators = {node.name: node.op_type for node in proto.graph.node}
        executed = {layer: f"{operators[layer]} float32 on rounded values" for layer in layers if layer in operators}
    returned = names_of(proto.graph.output)
    run_all = _running(path, proto)

    def run(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        tensors = run_all(inputs)
        return [tensors[name] for name in returned]

    environment = {"runtime": f"qonnx {version('qonnx')} with onnxruntime {version('onnxruntime')}"}
    return Runner(run, lambda: executed, environment, names=(names_of(proto.graph.input), returned))


def _running(path: Path, proto: Any) -> Callable[[list[NDArray[Any]]], dict[str, NDArray[Any]]]:
    """What runs the file and returns all of its tensors by name; it is prepared anew for inputs of other sizes."""
    from mixbit.targets._qonnx_executor import Prepared, Sizes, prepared

    opened: dict[Sizes, Prepared] = {}

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if len(inputs) != len(proto.graph.input):
            raise TargetMismatch(
                f"{path}: takes {len(proto.graph.input)} inputs, the model {len(inputs)}; export again"
            )
        sizes = tuple(array.shape for array in inputs)
        with mismatch(f"{path}: qonnx cannot run it", Exception):  # it raises Exception itself
            if sizes not in opened:
                made = prepared(proto, sizes)
                opened.clear()
                opened[sizes] = made
            return opened[sizes].run(inputs)

    return run


def load_tensors(folder: Path, names: list[tuple[str, bool]]) -> Callable[[list[NDArray[Any]]], dict[str, Any]]:
    """Open the file so that it returns tensors inside: quantized ones, and what operators of layers return."""
    _qonnx()
    proto = read_file(folder / FILE)
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    operators = {node.name: node for node in proto.graph.node if node.name}
    tensors: dict[str, str] = {}
    for name, biased in names:
        if name.startswith(QUANTIZED):
            scale = f"{quantizer_path(name.removeprefix(QUANTIZED), of_weight=False)}.scale"
            made = readers.get(scale, [])
        else:
            made = [last_of(operators[name], readers, biased)] if name in operators else []
        if made:
            tensors[name] = made[0].output[0]
    run_all = _running(folder / FILE, proto)

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = run_all(inputs)
        return {name: found[value] for name, value in tensors.items()}

    return run


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes of its weight and scales in a design, by the types that qonnx infers from the file."""
    _qonnx()
    from mixbit.targets._qonnx_executor import stored_in

    path = folder / FILE
    proto = read_file(path)
    with mismatch(f"{path}: qonnx cannot read it", Exception):  # it raises Exception itself
        return stored_in(proto)


def usage(ports: Ports, _: Mapping[str, str]) -> dict[str, str]:
    """Programs that run the file."""
    python = [
        "import numpy as np",
        "from qonnx.core.modelwrapper import ModelWrapper",
        "from qonnx.core.onnx_exec import execute_onnx",
        "from qonnx.transformation.infer_shapes import InferShapes",
        "",
        given_in_python(ports),
        f'model = ModelWrapper("{FILE}")  # of one sample, until told otherwise',
        "for name, array in inputs.items():",
        "    model.set_tensor_shape(name, array.shape)",
        "results = execute_onnx(model.transform(InferShapes()), inputs)",
        f"outputs = {{name: results[name] for name in {names_in_python(ports)}}}",
    ]
    return {"Python": "\n".join(python)}


TARGET = Target(
    name="qonnx",
    files=(FILE,),
    most_bytes=2**31,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8),
    default_choices=("w2a4", "w3a4", "w4a4", "w4a6", "w6a6", "w4a8", "w8a8"),
    integer_operators=frozenset({"add", "cat", "average_pool", "matmul"}),
    zero_points=False,
    note="Quant nodes of any width, for hls4ml and FINN; bytes are those of a design for an FPGA, the file holds "
    "float32 numbers; qonnx computes in float32 on the rounded values; also one scale",
    lacks=lacks,
    weight_bytes=weight_bytes,
    require=_qonnx,
    write=write,
    load=load,
    stored=stored,
    program=PROGRAM,
    check_files=lambda folder: read_file(folder / FILE),
    load_tensors=load_tensors,
    usage=usage,
)
