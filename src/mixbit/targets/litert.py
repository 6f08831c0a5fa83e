"""Target litert: a TensorFlow Lite file whose weights are stored in 2, 4 or 8 bits and run in int8, by LiteRT.

A layer whose input and output are quantized, convolution, depthwise convolution or product, is one operator on int8
tensors with a scale per output channel and a bias in int32. XNNPACK rounds its sums as the simulation does. Kernels of
4 bits are run by the runtime's own operators, which round halves up in fixed point. Weights whose input stays in float
are unpacked when the file is loaded.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
Kernel = Literal["xnnpack", "builtin", "micro"]
Layout = Literal["unchanged", "channels_last"]
_litert = partial(runtime, "litert", "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", "flatbuffers")
_micro = partial(runtime, "litert:kernel=micro", "tflite_micro", extra="micro")


@dataclass(frozen=True)
class Options:
    """How the file is written and run.

    Attributes:
        kernel: Whose kernels run it: XNNPACK's, LiteRT's own without a delegate, or TensorFlow Lite Micro's.
        inputs: Whether inputs of four dimensions [N, C, H, W] are [N, H, W, C] in the file.
    """

    kernel: Kernel = "xnnpack"
    inputs: Layout = "unchanged"

    @property
    def runtime(self) -> str:
        """Its name, for people."""
        return "TensorFlow Lite Micro" if self.kernel == "micro" else "LiteRT"

    def order(self, rank: int) -> tuple[int, ...]:
        """In which the file has the dimensions of an input with so many."""
        return (0, 2, 3, 1) if self.inputs == "channels_last" and rank == 4 else tuple(range(rank))


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


def halves(options: Options, layer: Any, operation: Any, fmt: Format) -> str:
    """XNNPACK rounds halves to the even number, the runtime's own kernels up, and its only one for groups away.

    XNNPACK takes no kernels in 4 bits, and no rows of a matrix that end within a byte. TensorFlow Lite Micro rounds
    halves away from zero.
    """
    bits = container(layer.shape, fmt)
    if operation.kind.name.startswith("conv"):
        away = options.kernel == "micro" or (operation.groups > 1 and layer.shape[1] > 1)
        whole = bits == BYTE
    else:
        away = options.kernel == "micro"
        whole = layer.shape[1 - operation.axis] * bits % BYTE == 0
    return "even" if options.kernel == "xnnpack" and whole else "away" if away else "up"


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Integers in their containers with a scale and a zero point, of 4 and 8 bytes, for each channel; or floats."""
    numel = math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    return -(-numel * container(shape, fmt) // 8) + SCALE_BYTES * num_scales(shape, axis, fmt)


def write(options: Options, simulated: Graph, folder: Path) -> None:
    """Write model.tflite; see `mixbit.targets._tflite.converted`.

    Only XNNPACK rounds averages and parts of concatenations as they are simulated; the others get them in float.
    """
    _litert()
    if options.kernel == "micro" and any(simulated.dynamic):
        raise UnsupportedModel(
            "inputs of several sizes: a microcontroller's file has one; give all batches the same sizes"
        )
    ranks = [leaf.ndim for leaf in simulated.tensors(simulated.example)]
    if options.inputs == "channels_last" and 4 not in ranks:
        raise UnsupportedModel(
            f"inputs=channels_last: no input [N, C, H, W]; they have {', '.join(map(str, ranks))} dimensions; leave "
            "the option out"
        )
    from mixbit.targets._tflite import converted

    data = converted(
        simulated, packs=options.kernel != "micro", requantizes=options.kernel == "xnnpack", input_order=options.order
    )
    write_bytes(folder / FILE, data)


def load(
    options: Options,
    folder: Path,
    _: Graph | None = None,
    /,
    *,
    batch_size: int | None = None,
    default_settings: bool = False,
) -> Runner:
    """Open the file on the CPU; it takes inputs of any batch size."""
    if default_settings and options.kernel == "builtin":
        options = dataclasses.replace(options, kernel="xnnpack")  # LiteRT's own default
    _litert()
    from mixbit.targets._tflite_file import PLAIN, executed, read

    path = folder / FILE
    model = read(path)
    opened = _Opened(options, path, model.data, batch_size)
    interpreter = opened.interpreter
    ports, returned = interpreter.get_input_details(), interpreter.get_output_details()
    micro = options.kernel == "micro"
    package = "tflite-micro" if micro else "ai-edge-litert"
    environment = {"runtime": f"{package} {version(package)}", "kernel": options.kernel}
    names = [port["name"] for port in ports], [port["name"] for port in returned]
    own = options.runtime if micro else PLAIN

    def told() -> dict[str, str]:
        return {layer: text.replace(PLAIN, own) for layer, text in executed(model, interpreter).items()}

    return Runner(partial(opened.run, [port["index"] for port in returned]), told, environment, names=names)


class _Opened:
    """A file in its runtime, for inputs of the sizes that it was last given."""

    def __init__(self, options: Options, path: Path, data: bytes, batch_size: int | None = None) -> None:
        """Open it for that batch size, or for the sizes that it gives."""
        self.options, self.path, self.data = options, path, data
        with mismatch(f"{path}: {options.runtime} cannot load it", ValueError, RuntimeError):
            self.interpreter = _interpreter(options.kernel, data, batch_size=batch_size)

    def run(self, returned: list[int], inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """The tensors of these indices, for inputs as the network takes them.

        Sizes of an interpreter that has run are not changed: behind a run of 3 rows, one of 16 returned wrong numbers
        (2.3.0).
        """
        ports = self.interpreter.get_input_details()
        if len(inputs) != len(ports):
            raise TargetMismatch(f"{self.path}: takes {len(ports)} inputs, the model {len(inputs)}; export again")
        arrays = [array.transpose(self.options.order(array.ndim)) for array in inputs]
        with mismatch(f"{self.path}: {self.options.runtime} cannot run it", ValueError, RuntimeError):
            sizes = [array.shape for array in arrays]
            if sizes != _sizes(self.interpreter):
                self.interpreter = _interpreter(self.options.kernel, self.data, sizes)
            for port, array in zip(ports, arrays, strict=True):
                self.interpreter.set_tensor(port["index"], array)
            self.interpreter.invoke()
            return [self.interpreter.get_tensor(index) for index in returned]


def _sizes(interpreter: Any) -> list[tuple[int, ...]]:
    """Those of its inputs."""
    return [tuple(port["shape"].tolist()) for port in interpreter.get_input_details()]


def _interpreter(
    kernel: Kernel, data: bytes, sizes: list[tuple[int, ...]] | None = None, batch_size: int | None = None
) -> Any:
    """One for inputs of these sizes, for that batch size, or for what the file gives."""
    interpreter = _interpreters(kernel)(data)
    if batch_size is not None:
        sizes = [(batch_size, *given[1:]) for given in _sizes(interpreter)]
    if sizes is not None:
        for port, each in zip(interpreter.get_input_details(), sizes, strict=True):
            interpreter.resize_tensor_input(port["index"], each, strict=True)
    interpreter.allocate_tensors()
    return interpreter


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


def load_tensors(
    options: Options, folder: Path, names: list[tuple[str, bool]]
) -> Callable[[list[NDArray[Any]]], dict[str, Any]]:
    """Open the file so that it returns tensors inside: quantized ones, and what operators of layers return."""
    _litert()
    from mixbit.targets._tflite_file import in_logical_order, read, with_outputs

    path = folder / FILE
    model = read(path)
    held = {name: place for name, _ in names if (place := model.place_of(name)) is not None}
    indices = [index for index, _ in held.values()]
    opened = _Opened(options, path, with_outputs(model, indices))

    def run(inputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {
            name: in_logical_order(model, index, order, array)
            for (name, (index, order)), array in zip(held.items(), opened.run(indices, inputs), strict=True)
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


def configured(*, kernel: Kernel = "xnnpack", inputs: Layout = "unchanged") -> Target:
    """The target for these kernels and inputs.

    TensorFlow Lite Micro's kernels take weights in bytes alone.
    """
    options = Options(kernel, inputs)
    given = dataclasses.replace(
        TARGET,
        halves=partial(halves, options),
        input_order=options.order,
        write=partial(write, options),
        load=partial(load, options),
        load_tensors=partial(load_tensors, options),
    )
    if kernel == "xnnpack":
        return given
    others = dataclasses.replace(given, integer_operators=frozenset({"add"}), program="")
    if kernel == "builtin":
        return dataclasses.replace(
            others, exact=lambda _: f"Interpreter(..., experimental_op_resolver_type={RESOLVER})"
        )
    return dataclasses.replace(
        others,
        default_choices=("w8a8",),
        require=_micro,
        weight_bytes=lambda shape, axis, fmt: weight_bytes(shape, axis, in_bytes(fmt)),
    )


TARGET = Target(
    name="litert",
    files=(FILE,),
    most_bytes=2**31,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=("w2a8", "w4a8", "w8a8"),
    integer_layers=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    missing_layers=frozenset({"conv3d", "conv_transpose3d"}),
    integer_operators=frozenset({"add", "cat", "average_pool"}),
    quantized_outputs=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    note="weights of matrices stored in 2, 4 or 8 bits, of convolutions in 4 or 8, other widths in the next of these; "
    "int8 arithmetic under a8; also float16, group, one scale, zero point; litert:kernel=builtin or micro for its own "
    "kernels, or TensorFlow Lite Micro's; litert:inputs=channels_last for images [N, H, W, C]",
    halves=partial(halves, Options()),
    lacks=lacks,
    weight_bytes=weight_bytes,
    require=_litert,
    write=partial(write, Options()),
    load=partial(load, Options()),
    stored=stored,
    program=PROGRAM,
    check_files=_check_files,
    load_tensors=partial(load_tensors, Options()),
    usage=usage,
)
