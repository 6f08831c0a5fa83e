"""check.safetensors: inputs and simulated outputs by which an artefact is verified anywhere, without the model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.batches import Batch
from mixbit.errors import InvalidInput
from mixbit.files import save_arrays
from mixbit.graph import Graph
from mixbit.task import output_of

FILE_NAME = "check.safetensors"
MOST_SAMPLES = 512
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on.

    Attributes:
        inputs: One tensor per input of the graph, samples first.
        names: Their keywords; empty where the model takes them by position.
        outputs: [N, C] of the simulation.
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
        save_arrays(folder / FILE_NAME, {name: one.detach().cpu().numpy() for name, one in tensors.items()}, metadata)

    @classmethod
    def load(cls, folder: Path) -> "CheckSet":
        """Read check.safetensors of a folder; raise InvalidInput for anything else."""
        path = folder / FILE_NAME
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
        if not inputs or outputs.ndim != 2 or len(outputs) == 0 or any(len(one) != len(outputs) for one in counted):
            raise InvalidInput(f"{path}: not a set of inputs and outputs; quantize again")
        return cls(inputs, names, outputs, output, labels)


def check_set(graph: Graph, batches: list[Batch], outputs: Tensor) -> CheckSet:
    """The first samples, at most MOST_SAMPLES and MOST_BYTES of inputs (one at least), with these outputs [N, C]."""
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
