"""Target ethosu: the TensorFlow Lite file of target litert, compiled by Vela for an Ethos-U NPU of microcontrollers.

Every weight is an int8 tensor, whatever its width: the NPU takes no narrower ones, but Vela codes them, and the fewer
bits, the fewer bytes. LiteRT runs the file before it is compiled, with the outputs that it has on the device up to the
NPU's own rounding, and Vela says what the device needs.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mixbit.core import (
    Format,
    Ports,
    Runner,
    Scheme,
    StoredWeight,
    Target,
    TargetMismatch,
    UnsupportedModel,
    find_target,
    pick,
    read_bytes,
    sha256,
    write_bytes,
    write_text,
)
from mixbit.graph import Graph
from mixbit.targets import _npu85_coding, _npu_coding
from mixbit.targets._integers import in_bytes, runtime, stored_weights
from mixbit.targets._npu_kernels import is_depthwise, kernels, num_kernels

#: What runs in LiteRT, what the device takes, and what Vela reported of it.
FILE, DEVICE_FILE, REPORT_FILE = "model.tflite", "model_vela.tflite", "vela.json"
#: What Vela reports of a network.
FIGURES = ("flash_bytes", "sram_bytes", "cycles")
#: Clocks and widths of memories, and which of them holds what, as Vela's vela.ini names them; a family's first is the
#: default. `Dedicated` has the activations outside the SRAM.
SYSTEMS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Ethos_U55_Deep_Embedded"),
    "ethos-u65": ("Ethos_U65_High_End", "Ethos_U65_Mid_End", "Ethos_U65_Embedded", "Ethos_U65_Client_Server"),
    "ethos-u85": ("Ethos_U85_SYS_Flash_High", "Ethos_U85_SYS_Flash_Low", "Ethos_U85_SYS_DRAM_Low",
                  "Ethos_U85_SYS_DRAM_Mid", "Ethos_U85_SYS_DRAM_High"),
}  # fmt: skip
MEMORIES = {
    "ethos-u55": ("Shared_Sram", "Sram_Only"),
    **dict.fromkeys(("ethos-u65", "ethos-u85"), ("Shared_Sram", "Sram_Only", "Dedicated_Sram", "Dedicated_Sram_256KB",
                                                 "Dedicated_Sram_384KB", "Dedicated_Sram_512KB")),
}  # fmt: skip
#: Bits -> bytes of a weight in flash, of normal numbers: a guess, before the integers are known.
BYTES_OF_A_WEIGHT = {8: 0.92, 7: 0.85, 6: 0.69, 5: 0.54, 4: 0.42, 3: 0.30, 2: 0.21}
#: Share of a weight's bytes that it spares if it is zero, a guess too.
ZEROS_SPARE = 0.75
MOST_BYTES = 2**31
_LITERT = find_target("litert")
_ethosu = partial(
    runtime, "ethosu", "ethosu.vela", "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", "flatbuffers"
)


class Report(BaseModel):
    """What Vela said, beside the files that it is of.

    Attributes:
        compiler: Its name and version, and what it compiled for.
        flash_bytes, sram_bytes, cycles: Of the NPU, see `mixbit.targets._vela.Compiled`.
        on_cpu: Names of tensors that operators on the CPU return.
        layers: Layer on the NPU -> bytes of its weight, biases and factors in flash. Vela tells the sum for all
            weights, which is shared out as predicted, without the ones that it multiplies by for means.
        files: Name -> SHA-256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int
    compiler: str
    flash_bytes: int
    sram_bytes: int
    cycles: int
    on_cpu: tuple[str, ...]
    layers: dict[str, int]
    files: dict[str, str]


@dataclass(frozen=True)
class Device:
    """An accelerator, its system and its memory mode, as Vela names them."""

    accelerator: str
    system: str
    memory: str

    @property
    def is_u85(self) -> bool:
        """Whether it is an Ethos-U85, which has an order of weights of its own."""
        return self.accelerator in _npu85_coding.NPUS

    def kernel_bytes(self, kernel: NDArray[np.int8], *, depthwise: bool, matrix: bool = False) -> int:
        """Bytes of integers [out, height, width, in] in flash."""
        if self.is_u85:
            npu = _npu85_coding.NPUS[self.accelerator]
            return _npu85_coding.coded_weight_bytes(kernel, npu, depthwise=depthwise, matrix=matrix)
        return _npu_coding.coded_weight_bytes(kernel, depthwise=depthwise)

    def channel_bytes(self, channels: int) -> int:
        """Bytes of biases and factors in flash."""
        return (_npu85_coding if self.is_u85 else _npu_coding).channel_bytes(channels)

    def weight_bytes(self, shape: tuple[int, ...], axis: int, fmt: Format | None) -> int:
        """A guess for normal numbers; exact for weights in float."""
        if fmt is None or fmt.floating is not None:
            return _LITERT.weight_bytes(shape, axis, fmt)
        stays = 1 if fmt.sparsity is None else 1 - ZEROS_SPARE * fmt.sparsity.share
        return round(math.prod(shape) * BYTES_OF_A_WEIGHT[fmt.bits] * stays) + self.channel_bytes(shape[axis])

    def coded_bytes(self, layer: Any, integers: NDArray[Any], scheme: Scheme) -> int:
        """Bytes of the weight in flash, of its real integers, and of biases and factors for each operator.

        Operators of one kind read the same coded weight. On the CPU, which decodes none, it is a byte for each.
        """
        if not _is_coded(layer, scheme):
            return _LITERT.weight_bytes(layer.shape, layer.axis, in_bytes(scheme.weight))
        return self.weights_alone(layer, integers) + self.all_channels(layer)

    def weights_alone(self, layer: Any, integers: NDArray[Any]) -> int:
        """Bytes of the weight, coded once for all operators of a kind."""
        kinds = {(each.kind.name, each.groups, each.dilation): each for each in layer.operations}
        return sum(
            self.kernel_bytes(kernel, depthwise=is_depthwise(layer, operation), matrix=integers.ndim == 2)
            for operation in kinds.values()
            for kernel in kernels(layer, operation, integers)
        )

    def all_channels(self, layer: Any) -> int:
        """Bytes of the biases and factors of all its operators."""
        counts = (num_kernels(layer, operation) for operation in layer.operations)
        return sum(count * self.channel_bytes(layer.shape[layer.axis] // count) for count in counts)


def lacks(scheme: Scheme) -> str | None:
    """As LiteRT; but zeros pay, where the NPU decodes the weight."""
    weight, read = scheme.weight, scheme.input
    if weight is None or weight.sparsity is None:
        return _LITERT.lacks(scheme)
    if read is None:
        return "no sparsity beside inputs in float (the CPU decodes no weight)"
    return _LITERT.lacks(dataclasses.replace(scheme, weight=dataclasses.replace(weight, sparsity=None)))


def _is_coded(layer: Any, scheme: Scheme) -> bool:
    """Whether the NPU runs all operators of the layer: their input and output are integers."""
    kinds = {operation.kind.name for operation in layer.operations}
    return scheme.input is not None and bool(layer.inputs) and kinds <= TARGET.quantized_outputs


def write(device: Device, simulated: Graph, folder: Path) -> None:
    """Write model.tflite, have Vela compile it into model_vela.tflite, and write vela.json."""
    _ethosu()
    from mixbit.targets._tflite import converted
    from mixbit.targets._tflite_file import read
    from mixbit.targets._vela import compiled, on_npu, ones_on_npu

    if any(simulated.dynamic):
        raise UnsupportedModel("inputs of several sizes: an NPU's file has one; give all batches the same sizes")
    write_bytes(folder / FILE, converted(simulated, packs=False))
    model, names = read(folder / FILE), dataclasses.astuple(device)
    made = compiled(model, *names)
    means = sum(
        device.kernel_bytes(np.ones((*sizes, 1), np.int8), depthwise=True) for sizes in ones_on_npu(model, made.on_cpu)
    )
    write_bytes(folder / DEVICE_FILE, made.data)
    report = Report(
        version=1,
        compiler=f"ethos-u-vela {version('ethos-u-vela')} for {', '.join(names)}",
        flash_bytes=made.flash_bytes,
        sram_bytes=made.sram_bytes,
        cycles=made.cycles,
        on_cpu=made.on_cpu,
        layers=_shared_out(device, simulated, *on_npu(model, made.on_cpu), made.weight_bytes - means),
        files={name: sha256(folder / name) for name in (FILE, DEVICE_FILE)},
    )
    write_text(folder / REPORT_FILE, report.model_dump_json(indent=2))


def _shared_out(device: Device, simulated: Graph, layers: set[str], partly: set[str], total: int) -> dict[str, int]:
    """Layer -> its bytes: of Vela's total of their weights the share that is predicted, and those of its channels.

    The total has weights too that the CPU reads beside the NPU, as those of a table that is a head; they count there.
    """
    plan, weights = simulated.plan, stored_weights(simulated)[0]
    assert plan is not None  # noqa: S101 its weights are quantized
    channels = {layer.name: device.all_channels(layer) for layer in simulated.layers}
    predicted = {
        layer.name: device.coded_bytes(layer, weights[layer.name].integers, plan.scheme(layer.name))
        - channels[layer.name]
        for layer in simulated.layers
        if layer.name in layers and layer.name in weights
    }
    beside = [layer for layer in simulated.layers if layer.name in partly and layer.name in weights]
    total -= sum(device.weights_alone(layer, weights[layer.name].integers) for layer in beside)
    scale = total / max(1, sum(predicted.values()))
    return {name: round(size * scale) + channels[name] for name, size in predicted.items()}


def _report(folder: Path) -> Report:
    """The report; raises TargetMismatch where it is not of the files in the folder."""
    path = folder / REPORT_FILE
    try:
        report = Report.model_validate_json(read_bytes(path, MOST_BYTES))
    except ValidationError as error:
        raise TargetMismatch(f"{path}: damaged ({error.error_count()} errors); export again") from error
    for name in (FILE, DEVICE_FILE):
        read_bytes(folder / name, MOST_BYTES)
        if sha256(folder / name) != report.files.get(name):
            raise TargetMismatch(f"{folder / name}: not the file of {REPORT_FILE}; export again")
    return report


def load(
    folder: Path, graph: Graph | None = None, /, *, batch_size: int | None = None, default_settings: bool = False
) -> Runner:
    """Open model.tflite in LiteRT; what runs on the NPU is read from Vela's report."""
    _ethosu()
    from mixbit.targets._tflite_file import read
    from mixbit.targets._vela import between_on_cpu, who_runs

    report = _report(folder)
    model = read(folder / FILE)
    runner = _LITERT.load(folder, graph, batch_size=batch_size, default_settings=default_settings)
    sizes = {name: f"{getattr(report, name):,}" for name in FIGURES}
    between = between_on_cpu(model, report.on_cpu)
    return dataclasses.replace(
        runner,
        executed=lambda: who_runs(model, report.on_cpu),
        environment=runner.environment | {"compiler": report.compiler} | sizes,
        note="by Vela, the NPU takes {flash_bytes} bytes of flash, {sram_bytes} of SRAM and {cycles} cycles".format(
            **sizes
        )
        + (f"; between its layers the CPU runs {between}" if between else ""),
    )


def stored(folder: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes in flash of its weight, biases and factors; as model.tflite has them for layers on the CPU."""
    coded = _report(folder).layers
    rows = {name: StoredWeight(size, "int8, coded") for name, size in coded.items()}
    return _LITERT.stored(folder) | rows


def read_figures(folder: Path) -> dict[str, int]:
    """What Vela says that the NPU takes."""
    report = _report(folder)
    return {name: getattr(report, name) for name in FIGURES}


def _check_files(folder: Path) -> None:
    _report(folder)
    _LITERT.check_files(folder)


def usage(ports: Ports, environment: Mapping[str, str]) -> dict[str, str]:
    """The program that runs model.tflite on a computer."""
    first = f"# {DEVICE_FILE} is for the device, in TensorFlow Lite Micro; {FILE} is for a computer"
    return {language: f"{first}\n{code}" for language, code in _LITERT.usage(ports, environment).items()}


def configured(
    *,
    accelerator: Literal[
        "ethos-u55-32",
        "ethos-u55-64",
        "ethos-u55-128",
        "ethos-u55-256",
        "ethos-u65-256",
        "ethos-u65-512",
        "ethos-u85-128",
        "ethos-u85-256",
        "ethos-u85-512",
    ] = "ethos-u55-128",
    system: str | None = None,
    memory: str | None = None,
) -> Target:
    """The target for that NPU, in a system and with memories of SYSTEMS and MEMORIES; their first by default.

    In a larger Ethos-U85 the order of weights depends on the sizes of outputs, so none is offered. Raises InvalidInput
    for what its family does not have.
    """
    family, of = accelerator.rpartition("-")[0], f"of {accelerator}"
    system = pick(f"target ethosu: system {of}", system or SYSTEMS[family][0], SYSTEMS[family])
    memory = pick(f"target ethosu: memory {of}", memory or MEMORIES[family][0], MEMORIES[family])
    device = Device(accelerator, system, memory)
    return dataclasses.replace(
        TARGET,
        write=partial(write, device),
        weight_bytes=device.weight_bytes,
        coded_bytes=device.coded_bytes,
    )


_DEVICE = Device("ethos-u55-128", SYSTEMS["ethos-u55"][0], MEMORIES["ethos-u55"][0])
TARGET = Target(
    name="ethosu",
    files=(FILE, DEVICE_FILE, REPORT_FILE),
    most_bytes=2**31,
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(8,),
    default_choices=(
        *("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w7a8", "w8a8"),
        *("w4ta8", "w5ta8", "w6ta8", "w7ta8", "w8ta8"),
    ),
    integer_layers=_LITERT.integer_layers,
    missing_layers=_LITERT.missing_layers,
    integer_operators=_LITERT.integer_operators,
    quantized_outputs=_LITERT.quantized_outputs,
    note="every width stored in as many bytes as Vela codes its values in, int8 arithmetic on the NPU under a8; "
    "also one scale and zeros; what stays in float runs on the CPU: float16, group and zero point, a byte a weight; "
    "ethosu:accelerator=ethos-u65-256 and others for other devices",
    halves=lambda *_: "even",
    lacks=lacks,
    weight_bytes=_DEVICE.weight_bytes,
    coded_bytes=_DEVICE.coded_bytes,
    bytes_tolerance=(0.05, 96),
    require=_ethosu,
    write=partial(write, _DEVICE),
    load=load,
    stored=stored,
    program=_LITERT.program,
    file_figures=FIGURES,
    read_figures=read_figures,
    check_files=_check_files,
    load_tensors=_LITERT.load_tensors,
    usage=usage,
)
