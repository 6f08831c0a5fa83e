"""What a file of ExecuTorch holds: read from its tables, none of which is believed before the file's digest fits."""

import hashlib
import json
import math
import re
import struct
import subprocess
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mixbit.core import StoredWeight, TargetMismatch, read_bytes, scratch_folder
from mixbit.targets._integers import stored_rows

MOST_BYTES, DIGITS = 2**31, 16
IDENTIFIER, MARK = b"ET12", b"MIXBIT01"
#: What ends a file, behind ExecuTorch's own data and a text on its layers: the text's length, the SHA-256 of all before
#: it, and a mark. The runtime does not read it.
_LENGTH, _END = struct.Struct("<Q"), struct.Struct("<32s8s")
#: Behind the identifier: a mark, the header's length, the program's, and where the segments begin.
_HEADER = struct.Struct("<4sIQQ")
#: In a delegate's data, behind four bytes: a mark, the header's length, where the graph begins, and its length.
_XNNPACK_HEADER = struct.Struct("<4sHII")
#: How its program writes a number without end.
_INFINITE = re.compile(r"(?<=[ -])inf\b")
#: Type of a tensor -> bytes of a number.
_BYTES = {
    "BYTE": 1, "CHAR": 1, "BOOL": 1, "SHORT": 2, "HALF": 2, "BFLOAT16": 2, "INT": 4, "FLOAT": 4, "LONG": 8, "DOUBLE": 8,
}  # fmt: skip
#: Operators that unpack a weight for another one.
_UNPACKING = ("_to_dim_order_copy", "_to_copy", "mul", "sub", "view_copy", "permute_copy", "clone", "transpose_copy")
_DATATYPES = {"xnn_datatype_qint8": "int8", "xnn_datatype_qdint8": "int8 ranged at run time"}
_SHORT = {"xnn_datatype_qcint4": "i4", "xnn_datatype_qbint4": "i4", "xnn_datatype_qcint8": "i8"}


def digest(data: bytes) -> str:
    """The beginning of its SHA-256, which tells arrays of a file apart."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def ended(data: bytes, layers: dict[str, dict[str, str]]) -> bytes:
    """ExecuTorch's file with a text on its layers, see `Program.keys`, and its end."""
    text = json.dumps(layers, separators=(",", ":")).encode()
    whole = data + text + _LENGTH.pack(len(text))
    return whole + _END.pack(hashlib.sha256(whole).digest(), MARK)


@dataclass(frozen=True)
class Constant:
    """An array in the file: its bytes, and who reads it."""

    size: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class File:
    """A file that is whole.

    Attributes:
        data: All of it.
        layers: Layer -> digest of each array that it may hold of its weight -> the type of its numbers.
    """

    data: bytes
    layers: dict[str, dict[str, str]]

    @cached_property
    def program(self) -> dict[str, Any]:
        """Its tables, as the schema names them."""
        _, _, size, _ = _HEADER.unpack_from(self.data, 8)
        return _as_json(self.data[:size], "exir/_serialize/program.fbs")

    @property
    def method(self) -> dict[str, Any]:
        """The only one."""
        return self.program["execution_plan"][0]

    def segment(self, index: int) -> bytes:
        """One of those behind the tables."""
        _, _, _, base = _HEADER.unpack_from(self.data, 8)
        place = self.program["segments"][index]
        begin = base + int(place.get("offset", 0))
        return self.data[begin : begin + int(place["size"])]

    @cached_property
    def graphs(self) -> list[dict[str, Any]]:
        """Those of XNNPACK."""
        graphs = []
        for delegate in self.method.get("delegates", []):
            if delegate["id"] == "XnnpackBackend":
                data = self.segment(delegate["processed"].get("index", 0))
                _, _, begin, size = _XNNPACK_HEADER.unpack_from(data, 4)
                schema = "backends/xnnpack/serialization/schema.fbs"
                graphs.append(_as_json(data[begin : begin + size], schema))
        return graphs

    def constants(self) -> dict[str, list[Constant]]:
        """Digest -> the arrays of that, outside of XNNPACK's graphs and in them."""
        found: dict[str, list[Constant]] = {}
        for index, value in enumerate(self.method["values"]):
            buffer = value.get("val", {}).get("data_buffer_idx", 0) if value.get("val_type") == "Tensor" else 0
            if buffer:
                data = self._constant(value["val"], buffer)
                constant = Constant(len(data), tuple(self._readers(index)))
                found.setdefault(digest(data), []).append(constant)
        for key, constant in _constants_of(self.graphs).items():
            found.setdefault(key.removeprefix("scale_")[:DIGITS], []).append(constant)
        return found

    def _constant(self, tensor: dict[str, Any], buffer: int) -> bytes:
        place = self.program["constant_segment"]
        begin = int(place["offsets"][buffer])
        size = math.prod(tensor.get("sizes", [])) * _BYTES[tensor["scalar_type"]]
        return self.segment(place.get("segment_index", 0))[begin : begin + size]

    def _readers(self, value: int) -> list[str]:
        """The operators that read a value, or what is unpacked from it."""
        texts = []
        for instruction in self.method["chains"][0]["instructions"]:
            arguments = instruction["instr_args"].get("args", [])
            if value not in arguments:
                continue
            if instruction["instr_args_type"] == "DelegateCall":
                texts.append("float32, unpacked in every run")
                continue
            if instruction["instr_args_type"] != "KernelCall" or value in arguments[-2:]:
                continue
            name = self.method["operators"][instruction["instr_args"].get("op_index", 0)]["name"].rpartition("::")[2]
            unpacks = name in _UNPACKING
            texts += self._readers(arguments[-1]) if unpacks else [f"{name} float32 (portable)"]
        return texts


def _constants_of(graphs: list[dict[str, Any]]) -> dict[str, Constant]:
    """Key -> array that XNNPACK's graphs read: each is in the file once."""
    sizes, readers = dict[str, int](), dict[str, list[str]]()
    for graph in graphs:
        tensors = [_tensor(value) for value in graph["xvalues"]]
        for entry in graph["constant_data"]:
            if entry.get("named_key"):
                sizes[entry["named_key"]] = int(entry["size"])
        for node in graph["xnodes"]:
            options = node["xnode_union"]
            if "filter_id" in options:
                weight = tensors[options["filter_id"]]
                key = graph["constant_data"][weight.get("constant_buffer_idx", 0)].get("named_key", "")
                name = node["xnode_union_type"].removeprefix("XNN")
                readers.setdefault(key, []).append(_told(name, tensors[options["input1_id"]], weight))
    return {key: Constant(size, tuple(readers.get(key, ()))) for key, size in sizes.items()}


def _tensor(value: dict[str, Any]) -> dict[str, Any]:
    union = value["xvalue_union"]
    return union.get("tensor_value", union)


def _told(name: str, read: dict[str, Any], weight: dict[str, Any]) -> str:
    kind = _DATATYPES.get(read.get("datatype", ""), "float32")
    held = _SHORT.get(weight.get("datatype", ""))
    return f"{name} {kind} (XNNPACK)" + (", weights in i4" if held == "i4" else "")


def _as_json(data: bytes, schema: str) -> dict[str, Any]:
    """A table of FlatBuffers by a schema of the package, read by the program that comes with it."""
    (root,) = find_spec("executorch").submodule_search_locations  # type: ignore[union-attr] it is installed
    with scratch_folder() as scratch:
        file = scratch / "table.bin"
        file.write_bytes(data)
        words = [f"{root}/data/bin/flatc", "--json", "--strict-json", "--raw-binary", "--defaults-json", "-o"]
        words += [str(scratch), f"{root}/{schema}", "--", str(file)]
        subprocess.run(words, capture_output=True, check=True)
        text = (scratch / "table.json").read_text(encoding="utf-8")
        return json.loads(_INFINITE.sub("Infinity", text))


def read(path: Path) -> File:
    """The file; raises InvalidInput where there is none, and TargetMismatch where it is not whole."""
    data = read_bytes(path, MOST_BYTES)
    if data[4:8] != IDENTIFIER or data[8:12] != b"eh00":
        raise TargetMismatch(f"{path}: not a file of ExecuTorch; export again")
    whole, end = data[: -_END.size], data[-_END.size :]
    if len(data) <= _END.size + _LENGTH.size or end != _END.pack(hashlib.sha256(whole).digest(), MARK):
        raise TargetMismatch(f"{path}: cut off, damaged, or not written by target executorch; export again")
    (length,) = _LENGTH.unpack(whole[-_LENGTH.size :])
    return File(data, json.loads(whole[-_LENGTH.size - length : -_LENGTH.size]))


def stored_in(file: File, path: Path) -> dict[str, StoredWeight]:
    """Layer -> bytes of its weight and scales, and their types."""
    constants, parts = file.constants(), []
    for layer, keys in file.layers.items():
        held = [(layer, each.size, kind) for key, kind in keys.items() for each in constants.get(key, ())]
        if not held:
            raise TargetMismatch(f"{path}: holds nothing of {layer}; export again")
        parts += held
    return stored_rows(parts)


def executed(file: File) -> dict[str, str]:
    """Layer -> operators, the type that they compute in, and who runs them."""
    rows, constants = {}, file.constants()
    for layer, keys in file.layers.items():
        texts = [text for key in keys for constant in constants.get(key, ()) for text in constant.readers]
        rows[layer] = ", ".join(dict.fromkeys(texts)) or "not found in the file"
    return rows
