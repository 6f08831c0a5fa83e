"""result.json: every figure of a run, for people and programs."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, Scheme, StoredWeight, first_problem, read_json, save_arrays
from mixbit.core.batches import Batch
from mixbit.core.task import output_of
from mixbit.graph.graph import Graph
from mixbit.targets.verify import Comparison

RESULT_FILE = "result.json"


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
        path = folder / RESULT_FILE
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


CHECK_FILE = "check.safetensors"
MOST_SAMPLES = 512
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on.

    Attributes:
        inputs: One tensor per input of the graph, samples first.
        names: Their keywords; empty where the model takes them by position.
        outputs: [N, ..., C] of the simulation.
        output: Which of the tensors that the artefact returns `outputs` is about.
        labels: [N], or None.
    """

    inputs: list[Tensor]
    names: list[str]
    outputs: Tensor
    output: int
    labels: Tensor | None

    @property
    def example(self) -> Any:
        """The inputs as the model takes them."""
        return dict(zip(self.names, self.inputs, strict=True)) if self.names else tuple(self.inputs)

    def rows(self, count: int) -> list[Tensor]:
        """The inputs of that many samples, over and over where there are fewer."""
        index = torch.arange(count) % len(self.outputs)
        return [tensor[index] if tensor.ndim > 0 else tensor for tensor in self.inputs]

    def save(self, folder: Path) -> None:
        """Write check.safetensors into the folder."""
        tensors = {f"input.{index}": tensor for index, tensor in enumerate(self.inputs)} | {"outputs": self.outputs}
        if self.labels is not None:
            tensors["labels"] = self.labels
        metadata = {"names": json.dumps(self.names), "output": str(self.output)}
        save_arrays(folder / CHECK_FILE, {name: one.detach().cpu().numpy() for name, one in tensors.items()}, metadata)

    @classmethod
    def load(cls, folder: Path) -> "CheckSet":
        """Read check.safetensors of a folder; raise InvalidInput for anything else."""
        path = folder / CHECK_FILE
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
            names, output = json.loads(metadata["names"]), int(metadata["output"])
            inputs = [tensors[f"input.{index}"] for index in range(sum(name.startswith("input.") for name in tensors))]
            outputs = tensors["outputs"]
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}); quantize again") from error
        labels = tensors.get("labels")
        counted = [one for one in (*inputs, labels) if one is not None and one.ndim > 0]
        if not inputs or outputs.ndim < 2 or len(outputs) == 0 or any(len(one) != len(outputs) for one in counted):
            raise InvalidInput(f"{path}: not a set of inputs and outputs; quantize again")
        return cls(inputs, names, outputs, output, labels)


def check_set(graph: Graph, batches: list[Batch], outputs: Tensor) -> CheckSet:
    """The first samples, one or more, at most MOST_SAMPLES and MOST_BYTES of inputs, with these outputs [N, ..., C]."""
    kept: list[list[Tensor]] = []
    labels: list[Tensor | None] = []
    count = 0
    for inputs, given in batches:
        if count >= MOST_SAMPLES:
            break
        kept.append(graph.tensors(inputs))
        labels.append(given)
        count += inputs.batch_size
    tensors = [torch.cat(parts) if parts[0].ndim > 0 else parts[0] for parts in zip(*kept, strict=True)]
    per_sample = sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
    size = max(1, min(count, MOST_SAMPLES, MOST_BYTES // max(1, per_sample)))
    known = [one.cpu() for one in labels if one is not None]
    return CheckSet(
        inputs=[tensor[:size] if tensor.ndim > 0 else tensor for tensor in tensors],
        names=list(graph.example.kwargs) if len(graph.example.kwargs) == len(tensors) else [],
        outputs=outputs[:size],
        output=_number_of_output(graph),
        labels=torch.cat(known)[:size] if len(known) == len(labels) else None,
    )


def _number_of_output(graph: Graph) -> int:
    with torch.no_grad():
        returned = graph(*graph.example.args, **graph.example.kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]
    wanted = output_of(returned)
    return next(number for number, tensor in enumerate(tensors) if tensor is wanted)
