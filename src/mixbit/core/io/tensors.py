"""Files of safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import file_errors, open_file
from mixbit.core.io.json_files import json_of

#: Largest header of a file, in bytes.
MOST_HEADER = 16 * 2**20


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
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]])
