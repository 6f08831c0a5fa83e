"""Arrays in files, read where they lie: .npy, .npz and .safetensors."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as numpy_format
from safetensors import safe_open

from mixbit.core import InvalidInput, users_code

#: Name of the array in a file of one.
ONLY = ""


def read_arrays(spec: str) -> Mapping[str, Any]:
    """Name -> array or tensor, mapped into memory where the file is not compressed.

    Raises InvalidInput for a file that is none of these, is damaged, or holds Python objects, which are never loaded.
    """
    path = Path(spec)
    with users_code(lambda error: InvalidInput(f"DATA {spec}: cannot be read: {error}{_way_out(error)}")):
        if path.suffix == ".npy":
            return {ONLY: numpy_format.open_memmap(path, mode="r")}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
        return _in_archive(path)


def _way_out(error: BaseException) -> str:
    of_objects = "bject" in str(error)
    return "; objects of Python are pickles and never loaded: save numbers, or texts as np.array(names)" * of_objects


def _in_archive(path: Path) -> dict[str, Any]:
    arrays = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded, path.open("rb") as file:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name.startswith("__MACOSX/"):
                continue  # no array
            mapped = _mapped(path, file, entry) if entry.compress_type == zipfile.ZIP_STORED else None
            arrays[name] = loaded[name] if mapped is None else mapped
    return arrays


def _mapped(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> Any:
    """The array of an entry that is not compressed, in the file; None where it cannot be mapped."""
    file.seek(entry.header_offset)
    header = file.read(30)  # of the entry, before its name and extra field, whose lengths end it
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    version = numpy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        return None
    read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
    shape, in_columns, dtype = read(file)
    if dtype.hasobject or 0 in shape:
        return None
    order = "F" if in_columns else "C"
    return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=order)
