"""Tensors that stay in files of safetensors, and are read when they are needed; how much memory may be taken."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import file_errors, open_file
from mixbit.core.io.json_files import read_json
from mixbit.core.io.memory import release_memory, resident_bytes
from mixbit.core.io.tensors import safetensors_header

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
#: Types as files of safetensors name them.
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
#: Numbers that are read at once, beside the tensor that they become.
PIECE = 2**22
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Room:
    """What a run may take whose weights do not fit into memory.

    Attributes:
        memory: Bytes of the process, as the system counts them.
        scratch: Folder for what does not fit; None for that of temporary files.
    """

    memory: int
    scratch: Path | None = None

    def let_go(self) -> None:
        """Give freed memory back to the system where the process has more than half of what it may take.

        The allocator keeps it between tensors that stay, and takes more for larger ones: the process would grow.
        """
        if (resident_bytes() or 0) > self.memory / 2:
            release_memory()


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a file.

    Attributes:
        name: In the file.
        path: The file.
        offset: Of its first byte.
        dtype: In the file; floating-point numbers are read as float32.
        shape: Of the tensor.
        room: For what is in memory at once; None where that does not matter.
    """

    name: str
    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    room: Room | None = None

    @property
    def read_as(self) -> torch.dtype:
        """The type of what `read` returns."""
        return torch.float32 if self.dtype.is_floating_point else self.dtype

    def read(self) -> Tensor:
        """A new tensor; raises InvalidInput for a file that was cut, or numbers that are NaN or inf.

        It is read by calls, piece by piece: pages of a mapped file would count as the process's own memory.
        """
        if self.room is not None:
            self.room.let_go()
        result = torch.empty(self.shape, dtype=self.read_as)
        flat, position = result.view(-1), self.offset
        buffer = torch.empty(min(PIECE, flat.numel()), dtype=self.dtype)
        with open_file(self.path) as file, file_errors(f"{self.path}: cannot be read"):
            for start in range(0, flat.numel(), PIECE):
                part = flat[start : start + PIECE]
                numbers = buffer[: part.numel()]
                position += _read_into(numbers, file.fileno(), position, self.path)
                if not numbers.isfinite().all():
                    raise InvalidInput(f"{self.path}: {self.name} holds NaN or inf; train or load the model again")
                part.copy_(numbers)
        return result


def _read_into(numbers: Tensor, handle: int, position: int, path: Path) -> int:
    """Fill the tensor from that place of the file; returns its bytes."""
    content, done = numbers.view(torch.uint8).numpy(), 0
    while done < len(content):
        read = os.preadv(handle, [content.data[done:]], position + done)
        if not read:
            raise InvalidInput(f"{path}: was cut short; keep it as it is while a run lasts")
        done += read
    return done


def stored_tensors(place: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, of a file of safetensors, or of all that a folder's index names.

    A folder without an index has model.safetensors, or any files of safetensors. Raises InvalidInput where there is
    none, where one is damaged or shorter than its header says, or where two hold a tensor of one name.
    """
    found: dict[str, StoredTensor] = {}
    for path in _files(place):
        header, start = safetensors_header(path)
        size = path.stat().st_size
        for name, entry in header.items():
            if name in found:
                raise InvalidInput(f"{path}: {name} is in {found[name].path.name} too; leave one of them")
            found[name] = _tensor(path, name, entry, start, size)
    return found


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    if (place / INDEX).is_file():
        index = read_json(place / INDEX)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(isinstance(each, str) for each in names.values()):
            raise InvalidInput(f'{place / INDEX}: has no "weight_map" of files')
        return [place / Path(name).name for name in sorted(set(names.values()))]
    files = [place / WEIGHTS] if (place / WEIGHTS).is_file() else sorted(place.glob("*.safetensors"))
    if not files:
        raise InvalidInput(f"{place}: no *.safetensors there; give the folder that save_pretrained wrote")
    return files


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape, (first, last) = _TYPES[entry["dtype"]], tuple(map(int, entry["shape"])), entry["data_offsets"]
        fits = first >= 0 and last - first == dtype.itemsize * torch.Size(shape).numel() and start + last <= size
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {name} has no type, shape and place that are known ({error})") from error
    if not fits:
        raise InvalidInput(f"{path}: {name} does not fit the file of {size:,} bytes; copy it again")
    return StoredTensor(name, path.absolute(), start + first, dtype, shape)


def num_bytes(text: str, what: str) -> int:
    """The bytes of `4GB`, `3.5GiB`, or a number; raises InvalidInput, which begins with what it is of."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise InvalidInput(f"{what} {text}: give bytes, as 4GB or 3.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
