"""DATA as arrays: .npz and .safetensors with the names of the model's inputs, .npy of its only one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import InvalidInput, did_you_mean, say
from mixbit.datasets._archives import ONLY, read_arrays
from mixbit.datasets._inputs import batch_of, by_position, names_of
from mixbit.datasets._labels import labels_of_array
from mixbit.datasets._samples import Samples
from mixbit.datasets.load import DataForm, LoadedData, Reading, normalised
from mixbit.models.load import LoadedModel

ENDINGS = (".npy", ".npz", ".safetensors")
#: Names of the array of labels; the second, and others, may be that of an input instead.
LABELS = ("labels", "y")
#: Types that torch computes little with, and the next wider one.
_WIDER = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.int64}


def _load(spec: str, model: LoadedModel, reading: Reading) -> LoadedData:
    if not Path(spec).is_file():
        raise InvalidInput(f"DATA {spec}: no such file")
    arrays = {model.arguments.get(name, name): array for name, array in read_arrays(spec).items()}
    names, required = names_of(model)
    key = next((name for name in LABELS if name in arrays and (name == LABELS[0] or name not in names)), None)
    labels, classes = None, None
    if key is not None:
        labels, classes = labels_of_array(spec, arrays.pop(key), model, reading)
    inputs = _inputs(spec, arrays, names, required, model)
    sizes = {name: list(array.shape) for name, array in arrays.items()}
    if labels is not None:
        sizes[LABELS[0]] = list(labels.shape)
    if not all(sizes.values()) or len({shape[0] for shape in sizes.values()}) != 1:
        told = ", ".join(f"{name} {shape}".strip() for name, shape in sizes.items())
        raise InvalidInput(
            f"DATA {spec}: {told}; the first dimension of each array must be the samples, as many in all"
        )
    if (reading.mean or reading.std) and not any(map(_in_bytes, inputs.values())):
        raise InvalidInput(f"DATA {spec}: --mean and --std are for pictures in bytes, and no input is; leave them out")
    order = [ONLY] if ONLY in inputs else by_position(model, list(inputs))
    rows_of = {name: _rows(spec, name, array, model, reading) for name, array in inputs.items()}

    def read(numbers: Sequence[int]) -> Any:
        rows = {name: rows(numbers) for name, rows in rows_of.items()}
        inputs = rows if order is None else [rows[name] for name in order]
        return batch_of(inputs, None if labels is None else labels[list(numbers)])

    size = next(iter(sizes.values()))[0]
    return LoadedData(Samples(spec, size, read, reading), classes, _words(spec, reading), size)


def _words(spec: str, reading: Reading) -> str:
    """What is done to the numbers of the file."""
    if reading.mean is None and reading.std is None:
        return f"numbers as {Path(spec).name} holds them"
    return f"bytes as {Path(spec).name} holds them, {normalised(reading.mean, reading.std)}"


def _inputs(
    spec: str, arrays: Mapping[str, Any], names: list[str], required: list[str], model: LoadedModel
) -> dict[str, Any]:
    """Name of an input -> its array; ONLY for the name of one that is given by position."""
    if not arrays:
        raise InvalidInput(f"DATA {spec}: holds no array of inputs; the model takes {', '.join(names) or '*args'}")
    if arrays.keys() <= set(names) and set(required) <= arrays.keys():
        return dict(arrays)
    if len(arrays) == 1 and len(required) <= 1:
        (array,) = arrays.values()
        return {required[0] if isinstance(model.example, Mapping) else ONLY: array}
    unknown = next((name for name in arrays if name not in names), None)
    near = did_you_mean(unknown, names) if unknown not in (None, ONLY) else ""
    held = ", ".join(repr(name) for name in arrays if name != ONLY) or "one array without a name"
    raise InvalidInput(
        f"DATA {spec}: holds {held}{near}; the model takes {', '.join(names)}, and needs {', '.join(required)}: name "
        "arrays as its inputs, and that of labels `labels`"
    )


def _rows(spec: str, name: str, array: Any, model: LoadedModel, reading: Reading) -> Callable[[Sequence[int]], Tensor]:
    """A function from numbers of samples to their rows, in the type that the model takes; a row is read when asked for.

    Floats of any width become 32-bit ones. Bytes stay bytes where the model takes them, as its example says, or as is
    tried where it has none; with means and deviations they become floats.
    """
    called, wanted = f"DATA {spec}: {name or 'the array'}", _wanted(name, model)
    numeric = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"
    if not numeric:
        raise InvalidInput(f"{called} holds values of type {array.dtype}; inputs are real numbers")
    if _in_bytes(array):
        return _rows_of_bytes(called, array, wanted, reading)

    def rows(numbers: Sequence[int]) -> Tensor:
        tensor = _as_tensor(array, numbers)
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor if wanted is None or tensor.is_floating_point() else tensor.to(wanted)

    return rows


def _rows_of_bytes(
    called: str, array: Any, wanted: torch.dtype | None, reading: Reading
) -> Callable[[Sequence[int]], Tensor]:
    if reading.mean is not None or reading.std is not None:
        if wanted == torch.uint8:
            raise InvalidInput(f"{called} holds bytes, as the model takes them; leave out --mean and --std")
        mean, std = (_along_channels(called, array, each) for each in (reading.mean or (0.0,), reading.std or (1.0,)))
        return lambda numbers: (_as_tensor(array, numbers).float() / 255 - mean) / std
    way_out = "--mean 0 --std 1 make them floats of 0 to 1, other numbers normalise them further"
    if wanted is not None and wanted.is_floating_point:
        raise InvalidInput(f"{called} holds bytes, the model takes floats; {way_out}")
    if wanted is None and array.ndim == 4:
        say(f"{called} holds bytes, and is given to the model so; {way_out}")
    return lambda numbers: _as_tensor(array, numbers) if wanted is None else _as_tensor(array, numbers).to(wanted)


def _along_channels(called: str, array: Any, values: tuple[float, ...]) -> Tensor:
    """The values in a shape that goes with [N, C, ...] or [N, ..., C]."""
    if len(values) == 1:
        return torch.tensor(values[0])
    if array.ndim > 1 and array.shape[1] == len(values):
        return torch.tensor(values).reshape(-1, *[1] * (array.ndim - 2))
    if array.shape[-1] == len(values):
        return torch.tensor(values)
    raise InvalidInput(
        f"{called} {list(array.shape)} has no dimension of {len(values)} channels, as --mean or --std has"
    )


def _as_tensor(array: Any, numbers: Sequence[int]) -> Tensor:
    """Rows of an array or tensor in types that torch computes with."""
    rows = array[list(numbers)]
    if isinstance(rows, Tensor):
        return rows
    kind = rows.dtype.newbyteorder("=")
    wider = np.float32 if kind.kind == "f" else _WIDER.get(kind, kind)
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=wider))


def _in_bytes(array: Any) -> bool:
    return array.dtype in (torch.uint8, np.uint8)


def _wanted(name: str, model: LoadedModel) -> torch.dtype | None:
    """Type of the input of that name, or of the only one, where the model's file tells."""
    example = model.example[name] if isinstance(model.example, Mapping) else model.example
    if isinstance(example, tuple | list) and len(example) == 1:
        (example,) = example
    return example.dtype if isinstance(example, Tensor) else None


FORM = DataForm(
    "data.npz, data.npy or data.safetensors",
    lambda spec: spec.endswith(ENDINGS),
    _load,
    uses=("batch_size", "mean", "std"),
)
