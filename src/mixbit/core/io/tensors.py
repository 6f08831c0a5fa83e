"""Files of safetensors."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import file_errors, open_file
from mixbit.core.io.json_files import json_of

#: Largest header of a file, in bytes.
MOST_HEADER = 16 * 2**20
#: Types of numpy, without their order of bytes -> as files name them.
_NAMES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8", "b1": "BOOL",
}  # fmt: skip
#: Bytes that are copied at once.
_PIECE = 2**24


def safetensors_bytes(path: Path) -> int:
    """How many bytes a safetensors file takes, by its header; raises as `safetensors_header` does."""
    tensors, start = safetensors_header(path)
    try:
        return start + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(f"{path}: not a safetensors file (its header names no data_offsets)") from error


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Name -> entry of each tensor in a safetensors file, and where the header of at most MOST_HEADER bytes ends.

    The library parses a header of any length up to 100 MB, and takes one of two values of a key. Raises InvalidInput
    for another file.
    """
    with open_file(path) as file, file_errors(f"{path}: cannot be read"):
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MOST_HEADER else b""
    if not 2 <= len(header) == length:
        raise InvalidInput(f"{path}: not a safetensors file (no header of at most {MOST_HEADER:,} bytes)")
    tensors = json_of(header.rstrip(b" "), path)
    if not isinstance(tensors, dict):
        raise InvalidInput(f"{path}: not a safetensors file (its header names no data_offsets)")
    return {name: entry for name, entry in tensors.items() if name != "__metadata__"}, 8 + length


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write safetensors with the permissions of any other new file; the library's own are the owner's alone."""
    path.write_bytes(with_metadata(safetensors.numpy.save(dict(arrays)), metadata))


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A file of safetensors with this metadata, in the order of names: the library's own order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(content[8 : 8 + size])
    return b"".join([_header_bytes(header), memoryview(content)[8 + size :]])


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    """What a file begins with: the length of its header, and the header."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return len(text).to_bytes(8, "little") + text


class TensorFile:
    """A file of safetensors that is written tensor by tensor, so that one of them at a time is in memory.

    The tensors wait in a file without a name beside it, since a header with all their places comes first; both together
    take their bytes twice for a while. Larger types come first, so that each tensor begins at a multiple of its type.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place, TensorFile(Path(place) / "one.safetensors") as file:
        ...     file.add("conv.weight", np.ones((2, 3), np.float32))
        ...     file.finish({"format": "pt"})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 closed at the end of the block
        #: Type, shape, and where the bytes begin and end.
        self._entries: dict[str, tuple[np.dtype[Any], tuple[int, ...], int, int]] = {}

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.close()

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Add a tensor under a new name; one that has the name already is replaced."""
        start = self._waiting.tell()
        self._waiting.write(np.ascontiguousarray(array).data)
        self._entries[name] = array.dtype, array.shape, start, self._waiting.tell()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the file, with the metadata in the order of names."""
        order = sorted(self._entries, key=lambda name: (-self._entries[name][0].itemsize, name))
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        end = 0
        for name in order:
            dtype, shape, first, last = self._entries[name]
            begin, end = end, end + last - first
            header[name] = {"dtype": _NAMES[dtype.str[1:]], "shape": list(shape), "data_offsets": [begin, end]}
        with open(self.path, "wb") as file:
            file.write(_header_bytes(header))
            for name in order:
                _, _, first, last = self._entries[name]
                self._waiting.seek(first)
                file.writelines(self._waiting.read(min(_PIECE, last - start)) for start in range(first, last, _PIECE))
