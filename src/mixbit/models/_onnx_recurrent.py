"""LSTM, GRU and RNN of an ONNX file as torch's own, with torch's order of gates and names of weights."""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import quoted
from mixbit.models._onnx_builder import Builder, Held, Stored
from mixbit.models._onnx_layers import GRU, LSTM, RNN
from mixbit.models._onnx_names import identifier, scope_of
from mixbit.models._onnx_numbers import is_number


def recurrent(builder: Builder, node: Any, attributes: dict[str, Any]) -> fx.Node:
    """An LSTM, GRU or RNN as torch's own, with torch's order of gates and names of weights."""
    kind, names = node.op_type, [*node.input, *[""] * 8]
    x = builder.read(names[0], node, 0)
    if names[4]:
        _check_lengths(builder, builder.read(names[4], node, 4), x, attributes)
    parts = [_fixed(builder, name) for name in names[1:4]]
    weights = _gates(builder, node, *parts)
    states = [builder.read(name, node, 5) if name else None for name in names[5 : 7 if kind == "LSTM" else 6]]
    options = {
        "both_ways": attributes.get("direction") == "bidirectional",
        "with_biases": parts[2] is not None,
        "layout": attributes.get("layout", 0),
    }
    if kind == "RNN":
        options["kind"] = attributes.get("activations", ["Tanh"])[0].lower()
    made = builder.call({"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[kind], [x, *states, *weights], options)
    return made if len(node.output) > 1 else builder.call(operator.getitem, [made, 0], {})


def _check_lengths(builder: Builder, lengths: Any, x: fx.Node, attributes: dict[str, Any]) -> None:
    steps = builder.known[x][0].shape[1 if attributes.get("layout") else 0]
    if not is_number(lengths) or set(lengths) != {steps}:
        raise ValueError("sequences of lengths of their own are not followed; pad them to one length")


def _fixed(builder: Builder, name: str) -> Tensor | None:
    """The constant of that name."""
    value = builder.values[name] if name else None
    if value is None or isinstance(value, Stored):
        return None if value is None else builder.tensors[value.name]
    if isinstance(value, fx.Node) and value in builder.fixed:
        return builder.known[value][0]
    raise ValueError(f"the weights {quoted(name)} depend on the data; store them in the file")


def _gates(builder: Builder, node: Any, of_input: Any, of_state: Any, biases: Any) -> list[fx.Node]:
    """Torch's weights: of input and state, and two biases, for each direction."""
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[node.op_type]  # iofc -> ifgo, zrh -> rzn
    scope = scope_of(node) or identifier(node.name or node.output[0], ())
    layer = builder.layers[scope]
    builder.layers[scope] += 1
    nodes = []
    for back in range(len(of_input)):
        parts = {"weight_ih": of_input[back], "weight_hh": of_state[back]}
        if biases is not None:
            parts |= dict(zip(("bias_ih", "bias_hh"), biases[back].chunk(2), strict=True))
        for what, part in parts.items():
            gates = part.chunk(len(order))
            turned = torch.cat([gates[place] for place in order])
            name = f"{scope}.{what}_l{layer}{'_reverse' if back else ''}"
            nodes.append(builder.hold(f"{node.output[0]} {name}", Held(turned, name, None, 0, True)))
    return nodes
