"""Recurrent operators rewritten step by step as linear operators and elementwise functions: LSTM, GRU, simple RNN."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from mixbit.graph.graph import argument, inserted, packet, sizes_of

_aten = torch.ops.aten
#: Steps in time, of all layers and directions together, beyond which a recurrent operator stays as it is: each is about
#: a dozen operators in the file.
MOST_STEPS = 128
#: Operators over a sequence -> what makes a step of the gates; those of one step.
_SEQUENCES = {_aten.lstm: "lstm", _aten.gru: "gru", _aten.rnn_tanh: "tanh", _aten.rnn_relu: "relu"}
_CELLS = {
    _aten.lstm_cell: "lstm", _aten.gru_cell: "gru", _aten.rnn_tanh_cell: "tanh", _aten.rnn_relu_cell: "relu",
}  # fmt: skip
_ZEROS = (_aten.zeros, _aten.zeros_like, _aten.new_zeros)
#: Of one step: the hidden state, None where it is zeros; and the cell's, of an LSTM.
_State = tuple[fx.Node | None, fx.Node | None]


@torch.no_grad()
def unroll(module: fx.GraphModule) -> None:
    """Rewrite, in place, recurrent operators over at most MOST_STEPS steps, so that their weights are layers.

    What the input adds to the gates at all steps is one linear operator. What the state adds is a product at each step,
    all with one weight, and none at a first step from zeros. Biases that are only added to one another become one.
    """
    for node in list(module.graph.nodes):
        if packet(node) in _SEQUENCES:
            _unroll_sequence(node)
        elif packet(node) in _CELLS:
            _unroll_cell(node)
    module.graph.eliminate_dead_code()
    module.recompile()


@dataclass(frozen=True)
class _Cell:
    """One direction of one layer.

    Attributes:
        do: Puts an operator before the recurrent one.
        kind: One of the values of `_SEQUENCES`.
        from_input, from_state: Weights [gates x width, inputs] and [width, gates x width].
        input_bias, state_bias: [gates x width], or both None.
        projection: Weight [width of the output, width], or None.
    """

    do: Callable[..., fx.Node]
    kind: str
    from_input: fx.Node
    from_state: fx.Node
    input_bias: fx.Node | None = None
    state_bias: fx.Node | None = None
    projection: fx.Node | None = None

    def read(self, x: fx.Node) -> fx.Node:
        """[..., gates x width] what the input adds to the gates, biases included that add to it."""
        bias = self.input_bias
        if bias is not None and self.kind != "gru":
            bias = self.do(_aten.add.Tensor, bias, self.state_bias)
        return self.do(_aten.linear.default, x, self.from_input, bias)

    def step(self, read: fx.Node, state: _State) -> _State:
        """The next state."""
        hidden, cell = state
        recurrent = None
        if hidden is not None:
            recurrent = self.do(_aten.matmul.default, hidden, self.from_state)
        if self.kind == "gru":
            return self._gru(read, recurrent, hidden), None
        gates = read if recurrent is None else self.do(_aten.add.Tensor, read, recurrent)
        if self.kind != "lstm":
            return self.do(getattr(_aten, self.kind).default, gates), None
        gate_in, forget, new, out = self._parts(gates, 4)
        new = self._product(self._sigmoid(gate_in), self.do(_aten.tanh.default, new))
        if cell is not None:
            new = self.do(_aten.add.Tensor, self._product(self._sigmoid(forget), cell), new)
        hidden = self._product(self._sigmoid(out), self.do(_aten.tanh.default, new))
        return hidden if self.projection is None else self.do(_aten.linear.default, hidden, self.projection), new

    def _gru(self, read: fx.Node, recurrent: fx.Node | None, hidden: fx.Node | None) -> fx.Node:
        """Of the gates reset r, update z and new n = tanh(x_n + r h_n): n + z (h - n)."""
        if recurrent is None:
            recurrent = self.state_bias
        elif self.state_bias is not None:
            recurrent = self.do(_aten.add.Tensor, recurrent, self.state_bias)
        reset, update, new = self._parts(read, 3)
        if recurrent is not None:
            of_reset, of_update, of_new = self._parts(recurrent, 3)
            reset, update = (self.do(_aten.add.Tensor, *pair) for pair in ((reset, of_reset), (update, of_update)))
            new = self.do(_aten.add.Tensor, new, self._product(self._sigmoid(reset), of_new))
        new, update = self.do(_aten.tanh.default, new), self._sigmoid(update)
        if hidden is None:
            return self.do(_aten.sub.Tensor, new, self._product(update, new))
        change = self.do(_aten.sub.Tensor, hidden, new)
        return self.do(_aten.add.Tensor, new, self._product(update, change))

    def _parts(self, gates: fx.Node, count: int) -> list[fx.Node]:
        parts = self.do(_aten.split.Tensor, gates, sizes_of(gates)[-1] // count, -1)
        return [self.do(operator.getitem, parts, number) for number in range(count)]

    def _sigmoid(self, x: fx.Node) -> fx.Node:
        return self.do(_aten.sigmoid.default, x)

    def _product(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.do(_aten.mul.Tensor, x, y)


def _unroll_cell(node: fx.Node) -> None:
    """One step."""
    arguments: Any = (*node.args, None, None)[:6]
    x, state, *weights = arguments
    kind, hidden = _CELLS[packet(node)], state
    cell = None
    if kind == "lstm":
        hidden, cell = state
    do = partial(inserted, node)
    step = _Cell(do, kind, weights[0], do(_aten.t.default, weights[1]), *weights[2:])
    now = [None if _unless_zeros(part) is None else do(_aten.unsqueeze.default, part, 0) for part in (hidden, cell)]
    made = step.step(step.read(do(_aten.unsqueeze.default, x, 0)), (now[0], now[1]))
    made = [None if part is None else do(_aten.squeeze.dim, part, 0) for part in made]
    if kind == "lstm":
        _replace_parts(node, made)
    else:
        hidden_after: Any = made[0]
        node.replace_all_uses_with(hidden_after)
        node.graph.erase_node(node)


def _unroll_sequence(node: fx.Node) -> None:
    """All steps, where there are few enough, in both directions of all layers."""
    kind, do = _SEQUENCES[packet(node)], partial(inserted, node)
    x, state, weights, has_biases, num_layers, _, _, both_ways, batch_first = (argument(node, i) for i in range(9))
    if len(sizes_of(x)) != 3 or not isinstance(weights, Sequence):
        return
    time = 1 if batch_first else 0
    length, num_directions = sizes_of(x)[time], 2 if both_ways else 1
    if not isinstance(length, int) or length * num_layers * num_directions > MOST_STEPS:
        return
    hidden, cell = state if kind == "lstm" else (state, None)
    each = len(weights) // (num_layers * num_directions)
    has_projection = each % 2 == 1
    finals: list[_State] = []
    for layer in range(num_layers):
        made = []
        for direction in range(num_directions):
            number = layer * num_directions + direction
            own = list(weights[number * each : (number + 1) * each])
            projection = own.pop() if has_projection else None
            of_input, of_state = own[2:] if has_biases else (None, None)
            step = _Cell(do, kind, own[0], do(_aten.t.default, own[1]), of_input, of_state, projection)
            parts = do(_aten.split.Tensor, step.read(x), 1, time)
            now: _State = _part_of(do, hidden, number, time), _part_of(do, cell, number, time)
            outputs: list[Any] = [None] * length
            for place in reversed(range(length)) if direction else range(length):
                now = step.step(do(operator.getitem, parts, place), now)
                outputs[place] = now[0]
            made.append(do(_aten.cat.default, outputs, time))
            finals.append(now)
        x = made[0] if len(made) == 1 else do(_aten.cat.default, made, -1)
    states = [part for part in zip(*finals, strict=True) if part[0] is not None]
    _replace_parts(node, (x, *(_stacked(do, part, time) for part in states)))


def _part_of(do: Callable[..., fx.Node], states: fx.Node | None, number: int, time: int) -> fx.Node | None:
    """The first state of one direction of one layer, as of a sequence of one step.

    States keep the dimension of time: onnxruntime would make a product of matrices and a sum one operator in float.
    """
    if _unless_zeros(states) is None:
        return None
    state = do(_aten.slice.Tensor, states, 0, number, number + 1)
    return state if time == 0 else do(_aten.transpose.int, state, 0, 1)


def _stacked(do: Callable[..., fx.Node], states: Sequence[fx.Node], time: int) -> fx.Node:
    """The last states of all directions of all layers, each with the dimension of time, as torch returns them."""
    stacked = do(_aten.cat.default, list(states), time)
    return stacked if time == 0 else do(_aten.transpose.int, stacked, 0, 1)


def _unless_zeros(state: fx.Node | None) -> fx.Node | None:
    return None if state is None or packet(state) in _ZEROS else state


def _replace_parts(node: fx.Node, parts: Sequence[fx.Node | None]) -> None:
    """Replace what reads the parts of what the node returns."""
    for user in list(node.users):
        part: Any = parts[int(str(user.args[1]))]
        user.replace_all_uses_with(part)
        node.graph.erase_node(user)
    node.graph.erase_node(node)  # its dropout, though off, would keep it alive
