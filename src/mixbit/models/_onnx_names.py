"""Names of parameters as users know them, from the names in an ONNX file."""

import keyword
import re
from collections.abc import Collection
from typing import Any

from torch import fx

#: Names that exporters count up, or that say nothing.
_NOTHING = re.compile(r"onnx::.*|(val|tensor|const|constant|initializer|input|t|c|w|p|_v|_inlfunc.*)?_?\d+|")
#: What exporters of TensorFlow put around a name.
_AROUND = re.compile(r"^StatefulPartitionedCall/|(/ReadVariableOp(_\d+)?)?(:0)?$")
#: Where the modules are noted from whose code an operator comes.
_SCOPES = "pkg.torch.onnx.name_scopes"
#: What the input at that place of an operator is.
_PLACES = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}
_BIASES = ("Add", "Sub")
#: What the code of a graph calls by these names.
_CALLED = ("self", "torch", "device", "pytree", "fx_pytree", "inf", "nan", "math", "operator")
#: Attributes of modules that their classes do not show.
_OWN = ("training", "_parameters", "_buffers", "_modules", "graph")


def parameter_name(name: str, reader: Any, place: int) -> str:
    """A name that torch can hold: that of the file, or where it says nothing of the operator that reads it.

    Example:
        >>> parameter_name("model/conv1/Conv2D/ReadVariableOp:0", None, 1)
        'model.conv1.Conv2D'
    """
    if _NOTHING.fullmatch(name) and reader is not None:
        scope = scope_of(reader)
        what = "bias" if reader.op_type in _BIASES else "weight" if reader.op_type == "Gather" else _PLACES.get(place)
        if scope:
            return f"{scope}.{what or 'weight'}"
    return clean_name(name)


def clean_name(name: str) -> str:
    """The name with slashes and double colons as dots, and underscores for all that is no letter, number or dot."""
    name = _AROUND.sub("", name.removeprefix("onnx::"))
    parts = re.sub(r"/|::|\.", ".", name).split(".")
    return ".".join(filter(None, (re.sub(r"\W", "_", part) for part in parts))) or "parameter"


def scope_of(node: Any) -> str:
    """Path of the module that the operator belongs to, as torch's exporters note it; empty where nothing is noted."""
    scopes = next((each.value for each in node.metadata_props if each.key == _SCOPES), "")
    listed = re.findall(r"'([^']*)'", scopes)[:-1]
    if listed and listed[-1]:
        return clean_name(listed[-1])
    path: list[str] = []
    for part in filter(None, node.name.split("/")[:-1]):
        if path and part.startswith(f"{path[-1]}."):
            path.pop()  # in a Sequential the old exporter repeats the names of what is around
        path.append(part)
    return clean_name("/".join(path)) if path else ""


def identifier(name: str, taken: Collection[str]) -> str:
    """A name of an argument in Python that hides nothing which the code of a graph calls."""
    made = re.sub(r"\W", "_", re.sub(r":0$", "", name)) or "x"
    made = f"_{made}" if made[0].isdigit() or keyword.iskeyword(made) or made in _CALLED else made
    while made in taken:
        made += "_"
    return made


def free_name(name: str, taken: Collection[str], inside: Collection[str]) -> str:
    """The name with underscores behind its parts, where a module has such an attribute or another tensor the name.

    Args:
        name: With dots.
        taken: Names of all tensors before it.
        inside: Names of all modules that hold these.
    """
    parts = [f"{part}_" if hasattr(fx.GraphModule, part) or part in _OWN else part for part in name.split(".")]
    for end in range(1, len(parts)):
        while ".".join(parts[:end]) in taken:
            parts[end - 1] += "_"
    while ".".join(parts) in taken or ".".join(parts) in inside:
        parts[-1] += "_"
    return ".".join(parts)
