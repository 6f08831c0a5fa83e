"""Reading files in ONNX: what they hold, where their weights lie, and the operators in them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, TargetMismatch, open_file, quoted, read_bytes, real_path
from mixbit.targets._integers import mismatch

#: Of a file: messages of Protocol Buffers end there.
MOST_BYTES = 2**31
#: Whole numbers that say where a tensor lies.
_PLACE = re.compile("[0-9]{1,18}")


def read_file(path: Path, data: str = "") -> Any:
    """The file; weights in the file `data` beside it stay there, and others would be read from wherever it says.

    Raises:
        InvalidInput: a file is missing, cannot be read, or is a link out of the folder.
        TargetMismatch: it is no ONNX file, some weight lies elsewhere, or the file `data` ends before a weight does.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    with mismatch(f"{path}: not an ONNX file", DecodeError):
        proto = onnx.ModelProto.FromString(read_bytes(path, MOST_BYTES))
    if outside := [tensor for tensor in _get_all_tensors(proto) if uses_external_data(tensor)]:
        _check_outside(path, data, outside)
    return proto


def bytes_of(tensor: Any) -> int:
    """Bytes of the tensor's numbers, in the file or beside it."""
    from onnx.external_data_helper import uses_external_data

    return int(_place(tensor)["length"]) if uses_external_data(tensor) else len(tensor.raw_data)


def _check_outside(path: Path, data: str, tensors: Sequence[Any]) -> None:
    """Raise, see `read_file`, unless all of these tensors lie in the file `data` beside the path."""
    ends = {}
    for tensor in tensors:
        place, name = _place(tensor), quoted(tensor.name)
        if not data or place.get("location") != data:
            raise TargetMismatch(f"{path}: {name} is stored in another file; export again")
        numbers = [place.get(key, "") for key in ("offset", "length")]
        if not all(map(_PLACE.fullmatch, numbers)):
            raise TargetMismatch(f"{path}: does not say at which bytes of {data} {name} lies; export again")
        ends[name] = sum(map(int, numbers))
    beside, last = path.with_name(data), max(ends, key=lambda name: ends[name])
    if not real_path(beside).is_relative_to(real_path(path).parent):
        raise InvalidInput(f"{beside}: a link out of the folder; put the file itself there")
    if not beside.exists():
        raise InvalidInput(f"{beside}: is missing; it holds weights of {path.name}: copy it there, or export again")
    with open_file(beside) as file:
        size = os.fstat(file.fileno()).st_size
    if size < ends[last]:
        raise TargetMismatch(
            f"{beside}: ends at byte {size:,}, and {last} at {ends[last]:,}: copy it again, or export again"
        )


def _place(tensor: Any) -> dict[str, str]:
    """What the file says of where the tensor lies."""
    return {entry.key: entry.value for entry in tensor.external_data}


def last_of(node: Any, readers: dict[str, list[Any]], biased: bool) -> Any:
    """The operator that returns what a layer's operator does, with its scale and bias."""
    wanted = ["Cast", "Mul"] if node.op_type == "MatMulInteger" else []
    wanted += ["Add"] if biased and (node.op_type == "MatMulNBits" or len(node.input) < 3 or wanted) else []
    for kind in wanted:
        after = [reader for reader in readers.get(node.output[0], ()) if reader.op_type == kind]
        node = after[0] if after else node
    return node
