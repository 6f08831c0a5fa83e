"""check.safetensors: inputs, and what the simulation returns for them, to verify a folder by."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixbit.core import (
    Batch,
    Inputs,
    InvalidInput,
    json_of,
    outputs_of,
    quoted,
    read_tensors,
    save_arrays,
)
from mixbit.graph import Graph, Reference, returned_by
from mixbit.results.result import inside_of
from mixbit.targets import Watched, first_rows

#: The file.
CHECK_FILE = "check.safetensors"
#: Types of tensors in a check set: those that torch computes with.
TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
#: Of a check set, in samples and in bytes of inputs.
MOST_SAMPLES, MOST_BYTES = 512, 16 * 2**20


@dataclass(frozen=True)
class CheckSet:
    """The first samples of the data that a run was verified on, in check.safetensors.

    Attributes:
        inputs: As the model takes them.
        outputs: Name -> output of the simulation in the form of its head [N, ..., C].
        returned: Name of each tensor that the artefact returns.
        batch_axes: Name of an output -> its dimension of samples where that is not the first.
        labels: Of the samples; None where there are none, or they are no tensor.
        watched, watched_samples: Tensors inside the simulation, of the first samples, and how many these are.
        evaluated: How many samples the run was verified on.
    """

    inputs: Inputs
    outputs: dict[str, Tensor]
    returned: list[str]
    batch_axes: dict[str, int | None]
    labels: Tensor | None
    watched: list[Watched]
    watched_samples: int
    evaluated: int

    def outputs_of(self, rows: list[int]) -> dict[str, Tensor]:
        """The outputs of those samples; one without samples stays as it is."""
        return {
            name: value if self.batch_axes.get(name, 0) is None else value[rows] for name, value in self.outputs.items()
        }

    @classmethod
    def load(cls, folder: Path) -> "CheckSet":
        """Read check.safetensors of a folder; raise InvalidInput for anything else."""
        path = inside_of(folder, CHECK_FILE)
        tensors, metadata = read_tensors(path)
        try:
            noted = {name: json_of(text, name) for name, text in metadata.items()}
            names, returned, axes = (noted[name] for name in ("names", "returned", "axes"))
            values = [tensors[f"input.{index}"] for index in range(sum(name.startswith("input.") for name in tensors))]
            inputs = Inputs((), dict(zip(names, values, strict=True))) if names else Inputs(tuple(values), {})
            outputs = {name: tensors[f"output.{name}"] for name in returned if f"output.{name}" in tensors}
            inside = [
                Watched(inner, layer, biased, tensors[f"inside.{number}"].numpy())
                for number, (inner, layer, biased) in enumerate(noted["watched"])
            ]
            check = cls(
                inputs, outputs, returned, axes, tensors.get("labels"), inside, noted["samples"], noted["evaluated"]
            )
            check.check()
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, InvalidInput) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}); quantize again") from error
        return check

    def check(self) -> None:
        """Raise InvalidInput or ValueError unless the parts fit one another."""
        count = self.inputs.batch_size
        names = [*self.returned, *self.inputs.kwargs]
        if (
            count < 1
            or not self.outputs
            or len({*self.returned}) < len(self.returned)
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"{count} samples, outputs {self.returned}")
        if not (isinstance(self.evaluated, int) and 0 <= self.watched_samples <= count):
            raise ValueError(f"evaluated {quoted(self.evaluated)}, tensors inside of {self.watched_samples} of {count}")
        tensors = (
            dict(enumerate(self.inputs.tensors))
            | self.outputs
            | ({} if self.labels is None else {"labels": self.labels})
        )
        for name, tensor in tensors.items():
            axis = self.batch_axes.get(str(name), 0) if name in self.outputs else 0
            of_samples = tensor.ndim > 0 and axis is not None
            if tensor.dtype not in TYPES or tensor.numel() == 0 or (of_samples and len(tensor) != count):
                raise ValueError(f"{name}: {tensor.dtype} {list(tensor.shape)} for {count} samples")


def first_batches(batches: Sequence[Batch]) -> Iterator[tuple[int, Batch]]:
    """Number and content of the batches that a check set holds samples of: MOST_SAMPLES or a few more.

    Where dimensions are free, those of the sizes of the first batch.
    """
    count, sizes = 0, [leaf.shape[1:] for leaf in batches[0][0].tensors]
    for number, (inputs, labels) in enumerate(batches):
        if [leaf.shape[1:] for leaf in inputs.tensors] == sizes:
            yield number, (inputs, labels)
            count += inputs.batch_size
        if count >= MOST_SAMPLES:
            break


def save_check_set(
    folder: Path, graph: Graph, batches: Sequence[Batch], simulated: Reference, inside: list[Watched], evaluated: int
) -> int:
    """Write check.safetensors: the first samples, up to MOST_SAMPLES and MOST_BYTES, their outputs, tensors inside.

    `evaluated` is how many samples there are in all. Returns how many samples the file holds.
    """
    chosen, outputs_of_chosen, count = [], [], 0
    first, _ = batches[0]
    for number, (inputs, labels) in first_batches(batches):
        chosen.append((graph.tensors(inputs), labels))
        outputs_of_chosen.append(simulated.of(number, inputs))
        count += inputs.batch_size
    columns = zip(*(tensors for tensors, _ in chosen), strict=True)
    tensors = [torch.cat(parts) if parts[0].ndim > 0 else parts[0] for parts in columns]
    per_sample = sum(tensor[:1].numel() * tensor.element_size() for tensor in tensors if tensor.ndim > 0)
    size = max(1, min(count, MOST_SAMPLES, MOST_BYTES // max(1, per_sample)))
    stored = {f"input.{i}": tensor[:size] if tensor.ndim > 0 else tensor for i, tensor in enumerate(tensors)}
    for name in outputs_of_chosen[0]:
        stored[f"output.{name}"] = torch.cat([outputs[name] for outputs in outputs_of_chosen])[:size]
    labels = [labels.cpu() for _, labels in chosen if isinstance(labels, Tensor)]
    if len(labels) == len(chosen):
        stored["labels"] = torch.cat(labels)[:size]
    samples = first_rows(first).batch_size
    inside = inside if samples <= size else []  # large samples, of which fewer are stored
    notes = {
        "names": list(graph.example.kwargs) if len(graph.example.kwargs) == len(tensors) else [],
        "returned": list(outputs_of(returned_by(graph, graph.example))),
        "axes": dict(simulated.task.batch_axes),
        "samples": samples,
        "evaluated": evaluated,
        "watched": [(tensor.name, tensor.layer, tensor.biased) for tensor in inside],
    }
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in stored.items()}
    arrays |= {f"inside.{number}": tensor.numbers for number, tensor in enumerate(inside)}
    save_arrays(folder / CHECK_FILE, arrays, {name: json.dumps(value) for name, value in notes.items()})
    return size
