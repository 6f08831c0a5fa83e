"""check.safetensors: inputs and simulated outputs by which an artefact is verified anywhere, without the model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixbit.batches import Batch
from mixbit.errors import InvalidInput

FILE_NAME = "check.safetensors"
MOST_SAMPLES = 512
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on.

    Attributes:
        inputs: One tensor per input of the graph, samples first.
        outputs: [N, C] of the simulation.
        labels: [N], or None.
    """

    inputs: list[Tensor]
    outputs: Tensor
    labels: Tensor | None

    def save(self, folder: Path) -> None:
        """Write check.safetensors into the folder."""
        tensors = {f"input.{index}": tensor.contiguous() for index, tensor in enumerate(self.inputs)}
        tensors["outputs"] = self.outputs.contiguous()
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        save_file(tensors, folder / FILE_NAME)

    @classmethod
    def load(cls, folder: Path) -> "CheckSet":
        """Read check.safetensors of a folder; raise InvalidInput for anything else."""
        path = folder / FILE_NAME
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        except (OSError, SafetensorError) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}); quantize again") from error
        inputs = [tensors[name] for name in sorted(tensors) if name.startswith("input.")]
        if not inputs or "outputs" not in tensors or any(len(one) != len(tensors["outputs"]) for one in inputs):
            raise InvalidInput(f"{path}: not a set of inputs and outputs; quantize again")
        return cls(inputs, tensors["outputs"], tensors.get("labels"))


def check_set(batches: list[Batch], outputs: Tensor) -> CheckSet:
    """The first samples, at most MOST_SAMPLES and MOST_BYTES of inputs (one at least), with these outputs [N, C]."""
    kept: list[list[Tensor]] = []
    labels: list[Tensor | None] = []
    count = 0
    shapes = [leaf.shape[1:] for leaf in batches[0][0].tensors]
    for inputs, given in batches:
        if count >= MOST_SAMPLES or [leaf.shape[1:] for leaf in inputs.tensors] != shapes:
            break
        kept.append(inputs.tensors)
        labels.append(given)
        count += inputs.batch_size
    tensors = [torch.cat(parts).cpu() for parts in zip(*kept, strict=True)]
    per_sample = sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors)
    size = max(1, min(count, MOST_SAMPLES, MOST_BYTES // max(1, per_sample)))
    known = [one.cpu() for one in labels if one is not None]
    return CheckSet(
        [tensor[:size].clone() for tensor in tensors],
        outputs[:size].clone(),
        torch.cat(known)[:size].clone() if len(known) == len(labels) else None,
    )
