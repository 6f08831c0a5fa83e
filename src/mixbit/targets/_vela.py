"""Vela, Arm's compiler for Ethos-U: run in a process of its own, and what it reports."""

import csv
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixbit.core import UnsupportedModel, scratch_folder
from mixbit.targets._integers import SEPARATOR
from mixbit.targets._tflite_file import UNPACKING, Model, read

KIB = 1024
#: Vela's name of the tensor that holds all that the NPU reads but activations, whatever memory the mode has it in.
_CONSTANTS = "read_only"
#: Positions that Vela averages at once, and rows of them.
MOST_POSITIONS, MOST_ROWS = 4096, 64
#: Columns of the report on operators before the last, which is the name of a tensor and may hold commas.
_COLUMNS = 15


@dataclass(frozen=True)
class Compiled:
    """What Vela made of a file.

    Attributes:
        data: The file for the device.
        weight_bytes: Of all weights on the NPU, without biases and factors.
        flash_bytes: Of the constants that the NPU reads: coded weights, biases and factors.
        sram_bytes: Of activations and buffers in SRAM.
        cycles: Of one inference, as Vela estimates them.
        on_cpu: Names of tensors that operators return which the CPU runs.
    """

    data: bytes
    weight_bytes: int
    flash_bytes: int
    sram_bytes: int
    cycles: int
    on_cpu: tuple[str, ...]


def compiled(model: Model, accelerator: str, system: str, memory: str) -> Compiled:
    """The file, compiled for these, as Vela names them; raises UnsupportedModel where Vela ends without it."""
    with scratch_folder() as scratch:
        source = scratch / "model.tflite"
        source.write_bytes(model.data)
        words = [
            *(sys.executable, "-m", "ethosu.vela", str(source), "--output-dir", str(scratch)),
            *("--accelerator-config", accelerator, "--config", "Arm/vela.ini", "--verbose-performance"),
            *("--system-config", system, "--memory-mode", memory),
        ]
        done = subprocess.run(words, capture_output=True, check=False, text=True, errors="replace", cwd=scratch)
        made, summaries = scratch / "model_vela.tflite", sorted(scratch.glob("model_summary_*.csv"))
        if done.returncode or not made.exists():
            raise UnsupportedModel(
                f"Vela cannot compile the network for {accelerator} (exit status {done.returncode}): "
                f"{_reason(done.stderr or done.stdout)}; take other choices, write what it names otherwise, or take "
                "target litert"
            )
        figures = _summary(summaries[0]) if summaries else {}
        whole = read(made)
        return Compiled(
            whole.data,
            weight_bytes=round(figures.get("total_npu_encoded_weights", 0)),
            flash_bytes=sum(
                int(tensor.shape[0]) for index, tensor in enumerate(whole.tensors) if whole.name(index) == _CONSTANTS
            ),
            sram_bytes=round(KIB * figures.get("sram_memory_used", 0)),
            cycles=round(figures.get("cycles_total", 0)),
            on_cpu=_on_cpu(scratch / "model_per-layer.csv", model),
        )


def _reason(text: str) -> str:
    """The lines from the one on that names the error, or the last."""
    lines = [line.strip() for line in text.strip().splitlines()] or ["it says nothing"]
    first = next((place for place, line in enumerate(lines) if "Error: " in line), len(lines) - 1)
    return " ".join(lines[first:])[:300]


def _summary(path: Path) -> dict[str, float]:
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items() if _is_number(value)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _on_cpu(path: Path, model: Model) -> tuple[str, ...]:
    """Names of the tensors that the report says the CPU makes; all of them where there is no report."""
    if not path.exists():
        return tuple(model.name(int(index)) for operator in model.graph.operators for index in operator.outputs)
    rows = [line.split(",", _COLUMNS) for line in path.read_text().splitlines()[1:]]
    return tuple(name for *_, target, name in ((*row[:3], row[-1]) for row in rows) if target == "CPU")


def who_runs(model: Model, on_cpu: tuple[str, ...]) -> dict[str, str]:
    """Layer -> its operators, the type that they compute in, and NPU or CPU."""
    rows = {}
    for index, tensor in enumerate(model.tensors):
        layer, separator, _ = model.name(index).rpartition(SEPARATOR)
        if separator and tensor.buffer:
            texts = [_told(model, operator, on_cpu) for operator in _readers(model, index)]
            rows[layer] = ", ".join(dict.fromkeys(texts))
    return rows


def on_npu(model: Model, on_cpu: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Layers whose operators the NPU runs all, and those of which it runs some; it decodes the weights of both."""
    texts = {layer: (text, "(NPU)" in text, "(CPU)" in text) for layer, text in who_runs(model, on_cpu).items()}
    whole = {layer for layer, (text, _, on_cpu) in texts.items() if text and not on_cpu}
    return whole, {layer for layer, (_, on_npu, on_cpu) in texts.items() if on_npu and on_cpu}


def between_on_cpu(model: Model, on_cpu: tuple[str, ...]) -> str:
    """The operators that the CPU runs between those of the NPU, with their numbers; "" where there are none."""
    ends = {int(index) for index in (*model.graph.inputs, *model.graph.outputs)}
    kinds = Counter(
        model.operator(operator)
        for operator in model.graph.operators
        if model.name(int(operator.outputs[0])) in on_cpu
        and not ends & {int(operator.inputs[0]), int(operator.outputs[0])}
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def ones_on_npu(model: Model, on_cpu: tuple[str, ...]) -> list[tuple[int, int, int]]:
    """(channels, height, width) of each mean that the NPU runs: MEAN becomes a depthwise convolution with ones too."""
    found = []
    for operator in model.graph.operators:
        kind, read = model.operator(operator), int(operator.inputs[0])
        if model.name(int(operator.outputs[0])) in on_cpu:
            continue
        shape = [int(size) for size in model.tensors[read].shape]
        if kind == "MEAN":
            axes = model.numbers(int(operator.inputs[1]))
            channels = 1 if len(shape) - 1 in axes else shape[-1]
            found += [(channels, *sides) for sides in _strips([shape[axis] for axis in axes])]
        elif kind == "DEPTHWISE_CONV_2D" and SEPARATOR not in model.name(kernel := int(operator.inputs[1])):
            _, height, width, channels = (int(size) for size in model.tensors[kernel].shape)
            found.append((channels, height, width))
    return found


def _strips(sizes: list[int]) -> set[tuple[int, int]]:
    """Heights and widths of the parts in which Vela takes a mean over these sizes, each coded once."""
    height, width = sizes if len(sizes) == 2 else (math.prod(sizes), 1)
    if len(sizes) != 2 or height * width <= MOST_POSITIONS:
        return {(height, width)}
    rows = min(MOST_POSITIONS // width, height, MOST_ROWS)
    return {(count, width) for count in (rows, height % rows) if count}


def _readers(model: Model, tensor: int) -> list[Any]:
    """The operators that read a tensor, or what is unpacked from it."""
    found = []
    for operator in model.graph.operators:
        if tensor in operator.inputs:
            unpacks = model.operator(operator) in UNPACKING
            found += _readers(model, int(operator.outputs[0])) if unpacks else [operator]
    return found


def _told(model: Model, operator: Any, on_cpu: tuple[str, ...]) -> str:
    made = int(operator.outputs[0])
    read = {model.kind(int(index)) for index in operator.inputs if index >= 0} - {"INT32"}
    computes = "int8" if read == {"INT8"} == {model.kind(made)} else model.kind(made).lower()
    return f"{model.operator(operator)} {computes} ({'CPU' if model.name(made) in on_cpu else 'NPU'})"
