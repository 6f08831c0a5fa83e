"""What a run's folder holds beside plan, table and artefact: result.json with every figure, and check.safetensors."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import InvalidInput, Scheme, StoredWeight, read_model, save_arrays
from mixbit.core.batches import Batch
from mixbit.core.task import output_of
from mixbit.graph.graph import Graph
from mixbit.pruning.prune import Removal

RESULT_FILE, CHECK_FILE = "result.json", "check.safetensors"
#: Of a check set, in samples and in bytes of inputs.
MOST_SAMPLES, MOST_BYTES = 512, 16 * 2**20


class LayerRow(BaseModel):
    """One layer: its scheme, its bytes as predicted and in the file, how it is stored and how it was executed."""

    model_config = ConfigDict(extra="forbid")

    scheme: str
    predicted_bytes: Annotated[int, Field(ge=0)]
    weight_bytes: int
    stored: str
    executed: str


@dataclass(frozen=True)
class Pruned(Removal):
    """What was removed before quantization, and what that alone did on the evaluation data.

    Attributes:
        dense: `accuracy` of the network with all channels.
        pruned: `accuracy` of the network without them, in float, and `divergence` from the other (nats).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    dense: dict[str, float]
    pruned: dict[str, float]

    def __str__(self) -> str:
        cost = f"{self.pruned['divergence']:.3g} nats from the network with all channels"
        if "accuracy" in self.dense and "accuracy" in self.pruned:
            accuracies = f"{self.dense['accuracy']:.2%} -> {self.pruned['accuracy']:.2%}"
            cost = f"accuracy in float {accuracies}, {cost}"
        return f"channels removed: {super().__str__()}; {cost}"


class Result(BaseModel):
    """The file result.json. Parts are plain dictionaries, without the figures that do not apply.

    Attributes:
        target: Name of the target.
        task: Name of the task.
        model: MODEL of the command line, its file as an absolute path; None where a module was handed over.
        chosen: Why this plan was deployed, in a sentence.
        float_: `accuracy`, `weight_bytes`, `file_bytes`, `latency_ms` of the float network in the same runtime.
        simulated: `accuracy`, `divergence` (nats) of the simulation.
        untrained: The same before fine-tuning; empty where there was none.
        deployed: `accuracy`, `agreement`, `max_abs_diff`, `relative_rms`, `weight_bytes`, `predicted_bytes`,
            `file_bytes`, `latency_ms` of the artefact.
        uniform: The uniform plans within the budget: `scheme`, as `w4a8` or `w8a8d (w8 elsewhere)`, `accuracy`,
            `divergence`, `held_out_divergence`, `predicted_bytes`.
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
        return read_model(folder / RESULT_FILE, cls, "a result")

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @property
    def schemes(self) -> dict[str, str]:
        """Layer -> its scheme."""
        return {name: row.scheme for name, row in self.layers.items()}

    @property
    def predicted_bytes(self) -> dict[str, int]:
        """Layer -> bytes of its weight and scales, as predicted."""
        return {name: row.predicted_bytes for name, row in self.layers.items()}


def figures(**values: float | None) -> dict[str, float]:
    """The figures that apply: those that are finite numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


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


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on, in check.safetensors.

    Attributes:
        inputs: One tensor per input of the graph, samples first.
        names: Their keywords; empty where the model takes them by position.
        outputs: [N, ..., C] of the simulation.
        output: Which of the tensors that the artefact returns `outputs` is about.
        labels: [N, ...], or None.
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
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        save_arrays(folder / CHECK_FILE, arrays, {"names": json.dumps(self.names), "output": str(self.output)})

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
            outputs, labels = tensors["outputs"], tensors.get("labels")
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}); quantize again") from error
        sizes = {len(tensor) for tensor in (*inputs, labels) if tensor is not None and tensor.ndim > 0}
        if not inputs or outputs.ndim < 2 or len(outputs) == 0 or sizes - {len(outputs)}:
            raise InvalidInput(f"{path}: not a set of inputs and outputs; quantize again")
        return cls(inputs, names, outputs, output, labels)


def check_set(graph: Graph, batches: list[Batch], outputs: Tensor) -> CheckSet:
    """The first samples, one or more, at most MOST_SAMPLES and MOST_BYTES of inputs, with these outputs [N, ..., C]."""
    chosen, count = [], 0
    for inputs, labels in batches:
        if count < MOST_SAMPLES:
            chosen.append((graph.tensors(inputs), labels))
            count += inputs.batch_size
    columns = zip(*(tensors for tensors, _ in chosen), strict=True)
    tensors = [torch.cat(parts) if parts[0].ndim > 0 else parts[0] for parts in columns]
    per_sample = sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
    size = max(1, min(count, MOST_SAMPLES, MOST_BYTES // max(1, per_sample)))
    labels = [labels.cpu() for _, labels in chosen if labels is not None]
    return CheckSet(
        inputs=[tensor[:size] if tensor.ndim > 0 else tensor for tensor in tensors],
        names=list(graph.example.kwargs) if len(graph.example.kwargs) == len(tensors) else [],
        outputs=outputs[:size],
        output=_number_of_output(graph),
        labels=torch.cat(labels)[:size] if len(labels) == len(chosen) else None,
    )


def _number_of_output(graph: Graph) -> int:
    """Which of the tensors that the graph returns the task is about."""
    with torch.no_grad():
        returned = graph(*graph.example.args, **graph.example.kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]
    wanted = output_of(returned)
    return next(number for number, tensor in enumerate(tensors) if tensor is wanted)
