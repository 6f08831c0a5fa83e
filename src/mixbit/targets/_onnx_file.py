"""Reading files in ONNX, and the operators in them."""

from pathlib import Path
from typing import Any

from mixbit.core import TargetMismatch, quoted, read_bytes
from mixbit.targets._integers import mismatch

#: Of a file: messages of Protocol Buffers end there.
MOST_BYTES = 2**31


def read_file(path: Path) -> Any:
    """The file; weights in other files would be read from wherever it says."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    with mismatch(f"{path}: not an ONNX file", DecodeError):
        proto = onnx.ModelProto.FromString(read_bytes(path, MOST_BYTES))
    if outside := [tensor.name for tensor in _get_all_tensors(proto) if uses_external_data(tensor)]:
        raise TargetMismatch(f"{path}: {quoted(outside[0])} is stored in another file; export again")
    return proto


def last_of(node: Any, readers: dict[str, list[Any]], biased: bool) -> Any:
    """The operator that returns what a layer's operator does, with its scale and bias."""
    wanted = ["Cast", "Mul"] if node.op_type == "MatMulInteger" else []
    wanted += ["Add"] if biased and (node.op_type == "MatMulNBits" or len(node.input) < 3 or wanted) else []
    for kind in wanted:
        after = [reader for reader in readers.get(node.output[0], ()) if reader.op_type == kind]
        node = after[0] if after else node
    return node
