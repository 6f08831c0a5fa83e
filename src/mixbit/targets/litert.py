"""Target litert: a TensorFlow Lite file whose weights are stored in 2, 4 or 8 bits and run in int8, by LiteRT.

A layer whose input and output are quantized, convolution, depthwise convolution or product, is one operator on int8
tensors with a scale per output channel and a bias in int32. XNNPACK rounds its sums as the simulation does. Kernels of
4 bits are run by the runtime's own operators, which round halves up in fixed point. Weights whose input stays in float
are unpacked when the file is loaded.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from mixbit.core import (
    Format,
    Ports,
    Runner,
    Scheme,
    StoredWeight,
    Target,
    TargetMismatch,
    UnsupportedModel,
    write_bytes,
)
from mixbit.graph import Graph
from mixbit.quantization.affine import num_scales
from mixbit.targets._integers import in_bytes, mismatch, only_beside_float, runtime, silent
from mixbit.targets._usage import given_in_python, names_in_python

FILE = "model.tflite"
#: Opens the file and runs it once, by the runtime alone.
PROGRAM = f"""
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1] + "/{FILE}")
arrays = dict(zip([port["index"] for port in interpreter.get_input_details()], numpy.load(sys.argv[2]).values()))
for index, array in arrays.items():
    interpreter.resize_tensor_input(index, array.shape)
interpreter.allocate_tensors()
for index, array in arrays.items():
    interpreter.set_tensor(index, array)
interpreter.invoke()
"""
BYTE = 8
#: Bytes of a scale in float32, and of a zero point, which the format has in int64.
SCALE_BYTES = 4 + 8
#: What keeps LiteRT's delegate out, and bytes that TensorFlow Lite Micro gets for activations.
RESOLVER, ARENA = "OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES", 2**26
#: Whose kernels run the file: XNNPACK's, LiteRT's own without a delegate, or TensorFlow Lite Micro's.
Kernel = Literal["xnnpack", "builtin", "micro"]
_litert = partial(runtime, "litert", "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", "flatbuffers")


_micro = partial(runtime, "litert:kernel=micro", "tflite_micro", extra="micro")


def lacks(scheme: Scheme) -> str | None:
    """Zeros, bfloat16, ranges at run time, and groups or zero points beside a static range."""
    weight, read = scheme.weight, scheme.input
    if weight is not None and weight.sparsity is not None:
        return "no sparsity (its file would hold the zeros too and be no smaller)"
    if weight is not None and weight.floating == "bfloat16":
        return "float16, not bfloat16"
    if read is not None and read.dynamic:
        return "no dynamic ranges (its two kernels round inputs differently)"
    return only_beside_float(scheme)


def container(shape: tuple[int, ...], fmt: Format) -> int:
    """The bits that an integer takes in the file: 4 or 8, or 2 in matrices, and in groups, which are stored as one."""
    narrow = len(shape) == 2 or fmt.group is not None
    return next(each for each in ((2, 4, 8) if narrow else (4, 8)) if fmt.bits <= each)


def halves(kernel: Kernel, layer: Any, operation: Any, fmt: Format) -> str:
    """XNNPACK rounds halves to the even number, the runtime's own kernels up, and its only one for groups away.

    XNNPACK takes no kernels in 4 bits, and no rows of a matrix that end within a byte. TensorFlow Lite Micro rounds
    halves away from zero.
    """
    bits = container(layer.shape, fmt)
    if operation.kind.name.startswith("conv"):
        away = kernel == "micro" or (operation.groups > 1 and layer.shape[1] > 1)
        whole = bits == BYTE
    else:
        away = kernel == "micro"
        whole = layer.shape[1 - operation.axis] * bits % BYTE == 0
    return "even" if kernel == "xnnpack" and whole else "away" if away else "up"


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers in their containers with a scale and a zero point, of 4 and 8 bytes, for each channel; or floats."""
    numel = math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    return -(-numel * container(shape, fmt) // 8) + SCALE_BYTES * num_scales(shape, axis, fmt)


def write(simulated: Graph, folder: Path, *, packs: bool = True, requantizes: bool = True) -> None:
    """Write model.tflite; see `mixbit.targets._tflite.converted`."""
    _litert()
    if not packs and any(simulated.dynamic):
        raise UnsupportedModel(
            "inputs of several sizes: a microcontroller's file has one; give all batches the same sizes"
        )
    from mixbit.targets._tflite import converted

    write_bytes(folder / FILE, converted(simulated, packs=packs, requantizes=requantizes))


def load(
    kernel: Kernel,
    folder: Path,
    _: Graph | None = None,
    /,
    *,
    batch_size: int | None = None,
    default_settings: bool = False,
) -> Runner:
    """Open the file on the CPU; it takes inputs of any batch size."""
    if default_settings and kernel == "builtin":
        kernel = "xnnpack"  # LiteRT's own default
    _litert()
    from mixbit.targets._tflite_file import PLAIN, executed, read

    path = folder / FILE
    model = read(path)
    with mismatch(f"{path}: {_name(kernel)} cannot load it", ValueError, RuntimeError):
        interpreter = _opened(kernel, model.data, batch_size)
    ports, returned = interpreter.get_input_details(), interpreter.get_output_details()
    opened = {_sizes(interpreter): interpreter}
    run = partial(_run, kernel, path, model.data, opened, [port["index"] for port in returned])
    package = "tflite-micro" if kernel == "micro" else "ai-edge-litert"
    environment = {"runtime": f"{package} {version(package)}", "kernel": kernel}
    names = [port["name"] for port in ports], [port["name"] for port in returned]
    own = _name(kernel) if kernel == "micro" else PLAIN

    def told() -> dict[str, str]:
        return {layer: text.replace(PLAIN, own) for layer, text in executed(model, interpreter).items()}

    return Runner(run, told, environment, names=names)


def _opened(kernel: Kernel, data: bytes, batch_size: int | None = None, inputs: Sequence[NDArray[Any]] = ()) -> Any:
    """An interpreter for that batch size, for the sizes of these inputs, or for those that the file gives."""
    interpreter = _interpreters(kernel)(data)
    ports = interpreter.get_input_details()
    shapes = [array.shape for array in inputs]
    if batch_size is not None:
        shapes = [(batch_size, *port["shape"][1:]) for port in ports]
    for port, shape in zip(ports, shapes, strict=bool(shapes)):
        interpreter.resize_tensor_input(port["index"], shape, strict=True)
    interpreter.allocate_tensors()
    return interpreter


def _name(kernel: Kernel) -> str:
    return "TensorFlow Lite Micro" if kernel == "micro" else "LiteRT"


def _sizes(interpreter: Any) -> tuple[tuple[int, ...], ...]:
    """Those of its inputs."""
    return tuple(tuple(port["shape"].tolist()) for port in interpreter.get_input_details())


@cache
def _interpreters(kernel: Kernel) -> Callable[[bytes], Any]:
    """What makes interpreters, of which one was made: the first tells standard error of its delegate."""
    litert = _litert()
    from mixbit.targets._tflite_file import smallest

    kinds = litert.OpResolverType
    resolver = kinds.AUTO if kernel == "xnnpack" else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES

    def opened(data: bytes) -> Any:
        return litert.Interpreter(model_content=data, experimental_op_resolver_type=resolver)

    with silent():
        opened(smallest()).allocate_tensors()
    if kernel != "micro":
        return opened
    from mixbit.targets._tflite_micro import Micro

    made = _micro().runtime.Interpreter.from_bytes

    def micro(data: bytes) -> Micro:
        with silent():  # it tells standard error what it cannot do
            return Micro(made(data, arena_size=ARENA), opened(data))

    return micro


def _run(
    kernel: Kernel,
    path: Path,
    data: bytes,
    opened: dict[Any, Any],
    returned: list[int],
    inputs: list[NDArray[Any]],
) -> list[NDArray[Any]]:
    """Run the file by the interpreter for inputs of these sizes, the last of which stays open.

    Sizes of one that has run are not changed: behind a run of 3 rows, one of 16 returned wrong numbers (2.3.0).
    """
    (interpreter,) = opened.values()
    ports = interpreter.get_input_details()
    if len(inputs) != len(ports):
        raise TargetMismatch(f"{path}: takes {len(ports)} inputs, the model {len(inputs)}; export again")
    with mismatch(f"{path}: {_name(kernel)} cannot run it", ValueError, RuntimeError):
        sizes = tuple(array.shape for array in inputs)
        if sizes not in opened:
            interpreter = _opened(kernel, data, inputs=inputs)
            opened.clear()
            opened[sizes] = interpreter
        for port, array in zip(ports, inputs, strict=True):
            interpreter.set_tensor(port["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in returned]


def load_tensors(
    kernel: Kernel, folder: Path, names: list[tuple[str, bool]]
) -> Callable[[list[NDArray[Any]]], dict[str, Any]]:
    """Open the file so that it returns tensors inside: quantized ones, and what operators of layers return."""
    _litert()
    from mixbit.targets._tflite_file import in_logical_order, read, with_outputs

    path = folder / FILE
    model = read(path)
    held = {name: place for name, _ in names if (place := model.place_of(name)) is not None}
    data = with_outputs(model, [index for index, _ in held.values()])
    with mismatch(f"{path}: {_name(kernel)} cannot load it with more outputs", ValueError, RuntimeError):
        interpreter = _opened(kernel, data)
    opened = {_sizes(interpreter): interpreter}

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        arrays = _run(kernel, path, data, opened, [index for index, _ in held.values()], inputs)
        return {
            name: in_logical_order(model, index, order, array)
            for (name, (index, order)), array in zip(held.items(), arrays, strict=True)
        }

    return run


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    _litert()
    from mixbit.targets._tflite_file import read, stored_in

    return stored_in(read(folder / FILE))


def _check_files(folder: Path) -> None:
    _litert()
    from mixbit.targets._tflite_file import read

    read(folder / FILE)


def usage(ports: Ports, environment: Mapping[str, str]) -> dict[str, str]:
    """Programs that run the file."""
    kernel = environment.get("kernel", "xnnpack")
    if kernel == "micro":
        python = [
            "import numpy as np",
            "from tflite_micro import runtime",
            "",
            f'interpreter = runtime.Interpreter.from_file("{FILE}", arena_size={ARENA})',
            given_in_python(ports),
            f"for place, name in enumerate({[port.name for port in ports.inputs]}):",
            "    interpreter.set_input(inputs[name], place)",
            "interpreter.invoke()",
            f"outputs = {{name: interpreter.get_output(place) for place, name in enumerate({names_in_python(ports)})}}",
        ]
        return {"Python": "\n".join(python)}
    python = [
        "import numpy as np",
        f"from ai_edge_litert.interpreter import Interpreter{'' if kernel == 'xnnpack' else ', OpResolverType'}",
        "",
        f'interpreter = Interpreter("{FILE}")'
        if kernel == "xnnpack"
        else f'interpreter = Interpreter("{FILE}", experimental_op_resolver_type={RESOLVER})',
        given_in_python(ports),
        "results = interpreter.get_signature_runner()(**inputs)",
        f"outputs = {{name: results[name] for name in {names_in_python(ports)}}}",
    ]
    return {"Python": "\n".join(python)}


def configured(*, kernel: Kernel = "xnnpack") -> Target:
    """The target for these kernels.

    Only XNNPACK rounds averages and parts of concatenations as they are simulated; the others get them in float.
    TensorFlow Lite Micro's take weights in bytes alone.
    """
    if kernel == "xnnpack":
        return TARGET
    others = dataclasses.replace(
        TARGET,
        integer_operators=frozenset({"add"}),
        halves=partial(halves, kernel),
        write=partial(write, requantizes=False),
        load=partial(load, kernel),
        load_tensors=partial(load_tensors, kernel),
        program="",
    )
    if kernel == "builtin":
        return dataclasses.replace(
            others, exact=lambda _: f"Interpreter(..., experimental_op_resolver_type={RESOLVER})"
        )
    return dataclasses.replace(
        others,
        default_choices=("w8a8",),
        require=_micro,
        write=partial(write, packs=False, requantizes=False),
        weight_bytes=lambda shape, axis, fmt: weight_bytes(shape, axis, in_bytes(fmt)),
    )


TARGET = Target(
    name="litert",
    files=(FILE,),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=("w2a8", "w4a8", "w8a8"),
    integer_layers=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    missing_layers=frozenset({"conv3d", "conv_transpose3d"}),
    integer_operators=frozenset({"add", "cat", "average_pool"}),
    quantized_outputs=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    note="weights of matrices stored in 2, 4 or 8 bits, of convolutions in 4 or 8, other widths in the next of these; "
    "int8 arithmetic under a8; also float16, group, one scale, zero point; litert:kernel=builtin or micro for its own "
    "kernels, or TensorFlow Lite Micro's",
    halves=partial(halves, "xnnpack"),
    lacks=lacks,
    weight_bytes=weight_bytes,
    require=_litert,
    write=write,
    load=partial(load, "xnnpack"),
    stored=stored,
    program=PROGRAM,
    check_files=_check_files,
    load_tensors=partial(load_tensors, "xnnpack"),
    usage=usage,
)
