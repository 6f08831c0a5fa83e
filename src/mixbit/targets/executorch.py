"""Target executorch: a program of ExecuTorch, for phones, whose layers XNNPACK runs in int8.

A layer whose input and output are quantized is one operator of XNNPACK on int8 tensors, with a scale per output channel
and a bias in int32. Matrices of 4 bits and fewer take half a byte a weight, all else a byte. What lies between layers
runs in float, but for moves and additions. Weights whose input stays in float are unpacked in every run, by
ExecuTorch's own operators.
"""

import math
import struct
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np
import torch
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
    UnsupportedModel,
    scratch_folder,
    write_bytes,
)
from mixbit.graph import Graph
from mixbit.graph.graph import without_torchs_warnings
from mixbit.quantization.affine import factor_bytes
from mixbit.targets._integers import mismatch, only_beside_float, runtime, silent
from mixbit.targets._usage import given_in_python, names_in_python

FILE, VERSION = "model.pte", "1.5"
#: Opens the file and runs it once, by the runtime alone.
PROGRAM = f"""
import sys
import numpy
import torch
from executorch.extension.pybindings import _C
arrays = [torch.from_numpy(array) for array in numpy.load(sys.argv[2]).values()]
_C._load_for_executorch(sys.argv[1] + "/{FILE}").forward(arrays)
"""
SCALE_BYTES = 4
#: What reading tables raises that are not those of this target; the digest finds damage alone.
BROKEN = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError, CalledProcessError, struct.error)
_executorch = partial(runtime, "executorch", "executorch.extension.pybindings._C")


def require() -> Any:
    """The runtime, which needs torch's libraries; raises InvalidInput where it is missing or another version."""
    library, found = _executorch(), version("executorch")
    if not found.startswith(f"{VERSION}."):
        raise InvalidInput(
            f"executorch {found}: target executorch works with {VERSION}; pip install 'mixbit[executorch]'"
        )
    return library


def lacks(scheme: Scheme) -> str | None:
    """Zeros, ranges at run time but those of rows with zero points, groups or zero points beside inputs in 8 bits."""
    weight, read = scheme.weight, scheme.input
    if weight is not None and weight.sparsity is not None:
        return "no sparsity (its file would hold the zeros too and be no smaller)"
    if read is not None and read.dynamic and (read.granularity != "row" or read.symmetric):
        return "dynamic ranges only of rows, with a zero point, as in w8a8drz"
    return only_beside_float(scheme)


def layer_bytes(layer: Any, scheme: Scheme) -> int:
    """Bytes for each place that holds the weight: XNNPACK's, for what it runs, and ExecuTorch's own."""
    from mixbit.targets._executorch import is_narrow, places_of

    inside, outside = places_of(layer, scheme)
    outer = weight_bytes(layer.shape, layer.axis, scheme.weight)
    if scheme.weight is None or scheme.weight.floating is not None:
        return (inside + outside) * outer
    narrow = is_narrow(layer.shape, layer.axis, scheme.weight.bits)
    channels = layer.shape[layer.axis]
    row = layer.numel // channels
    return inside * channels * ((row // 2 if narrow else row) + SCALE_BYTES) + outside * outer


def weight_bytes(shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
    """Bytes in one place outside of XNNPACK: a byte for each integer and zero point, four for a scale; or floats."""
    numel = math.prod(shape)
    if fmt is None or fmt.floating is not None:
        return (4 if fmt is None else 2) * numel
    return numel + factor_bytes(shape, axis, fmt)


def write(simulated: Graph, folder: Path) -> None:
    """Write model.pte."""
    require()
    from mixbit.targets._executorch import program_of
    from mixbit.targets._executorch_file import ended
    from mixbit.targets._executorch_lowering import lowered

    with without_torchs_warnings():
        program, layers = program_of(simulated)
    with scratch_folder() as scratch:
        source, made = scratch / "program.pt2", scratch / FILE
        torch.export.save(program, source)
        problem = lowered({"program": str(source), "into": str(made)})
        if problem is not None:
            raise UnsupportedModel(
                f"ExecuTorch cannot lower the network: {problem[:300]}; take other choices, write what it names "
                "otherwise, or take another target"
            )
        write_bytes(folder / FILE, ended(made.read_bytes(), layers))


def load(
    folder: Path, _: Graph | None = None, /, *, batch_size: int | None = None, default_settings: bool = False
) -> Runner:
    """Open the file; it takes inputs of any batch size, many samples in parts."""
    del batch_size, default_settings
    library = require()
    from mixbit.targets._executorch_file import executed, read

    path = folder / FILE
    file = read(path)
    with mismatch(f"{path}: ExecuTorch cannot load it", RuntimeError), silent():  # it tells what it reads of the CPU
        program = library._load_program_from_buffer(file.data)
        method = program.load_method("forward")
    environment = {"runtime": f"executorch {version('executorch')}"}
    with mismatch(f"{path}: not written by target executorch", *BROKEN):
        num_inputs, texts = len(file.method["inputs"]), executed(file)
    opened = method, program, file.data  # the program reads these bytes, and the method the program, as they run
    return Runner(partial(_run, path, opened, num_inputs), lambda: texts, environment)


def _run(path: Path, opened: tuple[Any, ...], num_inputs: int, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run the method of a program on parts of the samples, as many as it takes."""
    from mixbit.targets._executorch import MOST_SAMPLES

    if len(inputs) != num_inputs:
        raise TargetMismatch(f"{path}: takes {num_inputs} inputs, the model {len(inputs)}; export again")
    method = opened[0]
    samples = max((len(array) for array in inputs if array.ndim), default=1)
    # one sample first: what has as many rows as each part has samples has them in its first dimension
    begins = [0] if samples <= MOST_SAMPLES else [0, *range(1, samples, MOST_SAMPLES)]
    parts, counts = [], np.diff([*begins, samples])
    for begin, count in zip(begins, counts, strict=True):
        some = [array[begin : begin + count] if array.ndim else array for array in inputs]
        with mismatch(f"{path}: ExecuTorch cannot run it", RuntimeError):
            parts.append([tensor.numpy() for tensor in method([torch.tensor(array) for array in some])])
    if len(parts) == 1:
        return parts[0]
    if any(array.shape[:1] != (count,) for part, count in zip(parts, counts, strict=True) for array in part):
        raise TargetMismatch(f"{path}: takes {MOST_SAMPLES} samples at most, not {samples}; give fewer at a time")
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes and types of its weight and scales, read from the file."""
    require()
    from mixbit.targets._executorch_file import read, stored_in

    with mismatch(f"{folder / FILE}: not written by target executorch", *BROKEN):
        return stored_in(read(folder / FILE), folder / FILE)


def _check_files(folder: Path) -> None:
    require()
    from mixbit.targets._executorch_file import read

    read(folder / FILE)


def usage(ports: Ports, _: Mapping[str, str]) -> dict[str, str]:
    """The program that runs the file."""
    python = [
        "import numpy as np",
        "import torch",
        "from executorch.runtime import Runtime",
        "",
        f'method = Runtime.get().load_program("{FILE}").load_method("forward")',
        given_in_python(ports),
        "results = method.execute([torch.from_numpy(array) for array in inputs.values()])",
        f"outputs = {{name: result.numpy() for name, result in zip({names_in_python(ports)}, results)}}",
    ]
    return {"Python": "\n".join(python)}


TARGET = Target(
    name="executorch",
    files=(FILE,),
    most_bytes=2**31,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=("w4a8", "w8a8"),
    dynamic_choices=("w4a8drz", "w8a8drz"),
    integer_layers=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    missing_layers=frozenset({"conv3d", "conv_transpose3d"}),
    integer_operators=frozenset({"add"}),
    quantized_outputs=frozenset({"conv1d", "conv2d", "linear", "addmm", "matmul"}),
    note="weights of matrices stored in 4 or 8 bits, of convolutions in 8, other widths in the next of these; int8 "
    "arithmetic under a8; also dynamic rows, one scale; bfloat16, float16, group, zero point are unpacked in every run",
    halves=lambda *_: "even",
    lacks=lacks,
    weight_bytes=weight_bytes,
    layer_bytes=layer_bytes,
    require=require,
    write=write,
    load=load,
    stored=stored,
    program=PROGRAM,
    check_files=_check_files,
    usage=usage,
)
