"""result.json: every figure of a run, for people and programs."""

import math
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixbit.errors import InvalidInput
from mixbit.files import read_json
from mixbit.scheme import Scheme
from mixbit.sensitivity import first_problem
from mixbit.target import StoredWeight
from mixbit.verification import Comparison

FILE_NAME = "result.json"


class LayerRow(BaseModel):
    """One layer: its scheme, its bytes as predicted and in the file, how it is stored and how it was executed."""

    model_config = ConfigDict(extra="forbid")

    scheme: str
    predicted_bytes: Annotated[int, Field(ge=0)]
    weight_bytes: int
    stored: str
    executed: str


class Pruned(BaseModel):
    """What was removed before quantization, before and after it, and what that alone did on the evaluation data.

    Attributes:
        layers: Layer -> its output channels.
        parameters: Numbers in all parameters.
        macs: Multiply-accumulates of one sample.
        dense: `accuracy` of the network with all channels.
        pruned: `accuracy` of the network without them, in float, and `divergence` from the other (nats).
    """

    model_config = ConfigDict(extra="forbid")

    layers: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    dense: dict[str, float]
    pruned: dict[str, float]


class Result(BaseModel):
    """The file. Parts that hold figures are plain dictionaries, without the figures that do not apply.

    Attributes:
        target: Name of the target.
        task: Name of the task.
        model: MODEL of the command line, its file as an absolute path; None where a module was handed over.
        chosen: How the plan was chosen against the uniform ones, in a sentence.
        float_: `accuracy`, `weight_bytes`, `file_bytes`, `latency_ms` of the float network in the same runtime.
        simulated: `accuracy`, `divergence` (nats) of the simulation.
        untrained: The same before fine-tuning; empty where there was none.
        deployed: `accuracy`, `agreement`, `max_abs_diff`, `relative_rms`, `weight_bytes`, `predicted_bytes`,
            `file_bytes`, `latency_ms` of the artefact.
        uniform: The uniform plans within the budget: `scheme`, as `w4a8` or `w8a8d (w8 elsewhere)`, `accuracy`,
            `divergence`, `predicted_bytes`.
        layers: Layer -> LayerRow.
        pruned: What was removed before quantization; None where nothing was. `float` is the network without it.
        uncovered: What no layer covers, with their shares of work and storage.
        files: Name of each file beside this one -> its SHA-256.
        seconds: Step -> seconds.
        environment: Versions, machine and settings.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    version: Annotated[int, Field(ge=1, le=1)] = 1
    target: str
    task: str
    model: str | None
    chosen: str
    float_: Annotated[dict[str, float], Field(alias="float")]
    simulated: dict[str, float]
    untrained: dict[str, float] = {}
    deployed: dict[str, float]
    uniform: list[dict[str, float | str]]
    layers: dict[str, LayerRow]
    pruned: Pruned | None = None
    uncovered: list[dict[str, Any]]
    files: dict[str, str]
    seconds: dict[str, float]
    environment: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read result.json of a folder; raise InvalidInput for anything else."""
        path = folder / FILE_NAME
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise InvalidInput(f"{path}: not a result: {first_problem(error)}") from error

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def figures(**values: float | None) -> dict[str, float]:
    """The figures that apply: those that are finite numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def deployed_figures(comparison: Comparison, latency_ms: float) -> dict[str, float]:
    """The part `deployed`."""
    wanted = ("accuracy", "agreement", "max_abs_diff", "relative_rms", "weight_bytes", "predicted_bytes", "file_bytes")
    values = asdict(comparison)
    return figures(**{name: values[name] for name in wanted}, latency_ms=latency_ms)


def layer_rows(
    schemes: dict[str, str], predicted: dict[str, int], stored: dict[str, StoredWeight], executed: dict[str, str]
) -> dict[str, LayerRow]:
    """The part `layers`."""
    nothing = StoredWeight(0, "not found")
    return {
        name: LayerRow(
            scheme=scheme,
            predicted_bytes=predicted[name],
            weight_bytes=stored.get(name, nothing).weight_bytes,
            stored=stored.get(name, nothing).types,
            executed=executed.get(name, "not reported"),
        )
        for name, scheme in schemes.items()
    }


def in_float(layers: dict[str, LayerRow]) -> list[str]:
    """Layers with a quantized input whose operators the runtime executed in float; lookups compute nothing."""
    return [
        name
        for name, row in layers.items()
        if Scheme.parse(row.scheme).input is not None and "int8" not in row.executed and "Gather" not in row.executed
    ]


def environment() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
