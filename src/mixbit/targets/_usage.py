"""Programs that run a written file by its runtime alone: the parts that they share."""

import json

from mixbit.core import Port, Ports

#: Type of numbers -> its name in C++.
CPP_TYPES = {
    "float32": "float", "float64": "double", "int64": "int64_t", "int32": "int32_t", "int16": "int16_t",
    "int8": "int8_t", "uint8": "uint8_t", "bool": "bool",
}  # fmt: skip
#: Lines of a program that set inputs: more would not fit into ten lines.
FEW = 2


def given_in_python(ports: Ports) -> str:
    """The line that makes the inputs: name -> array."""
    arrays = [f"{port.name!r}: np.zeros({list(port.shape)}, {port.dtype!r})" for port in ports.inputs]
    return f"inputs = {{{', '.join(arrays)}}}  # your data in their place"


def names_in_python(ports: Ports) -> str:
    """The list of the outputs' names."""
    return repr([port.name for port in ports.outputs])


def in_cpp_type(port: Port) -> str:
    """The type of its numbers in C++; as torch calls it where there is none."""
    return CPP_TYPES.get(port.dtype, port.dtype)


def in_cpp(text: str) -> str:
    """The text as a literal of C++."""
    return json.dumps(text, ensure_ascii=False)


def shape_in_cpp(port: Port) -> str:
    """The sizes as C++ initialises them."""
    return f"{{{', '.join(map(str, port.shape))}}}"


def lines_in_cpp(lines: list[str], ports: Ports) -> list[str]:
    """One line for each input, if there are few; else the first, and a comment."""
    if len(lines) <= FEW:
        return lines
    return [lines[0], f"// and the other {len(lines) - 1} inputs, from {ports.inputs[1].name} on, in the same way"]
