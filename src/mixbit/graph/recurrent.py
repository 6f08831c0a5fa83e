"""Recurrent operators whose weights are layers, and which targets write whole: LSTM, GRU, simple RNN, and cells.

One direction of one layer becomes four operators. `read` is linear in the input, for all steps; `states` runs the steps
and returns the state before each, through which no gradient passes; `product` multiplies these by the recurrent weight;
`recurrence` returns the state behind each step. So each weight has an operator that is linear in it, as all layers
have, and whose output has the gradient that it has in the network: `recurrence` takes the product at step t to be
product_t + (h - before_t) W', with h its own state, which is before_t as long as nobody changes a product.
"""
# ruff: noqa: PLR0913, PLR0917 the arguments are those of operators

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mixbit.graph.functional import value_of
from mixbit.graph.graph import TRANSPOSES, argument, inserted, packet

_aten = torch.ops.aten
#: Functions over a sequence -> what makes a step of the gates; those of one step.
_SEQUENCES: dict[Any, str] = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "tanh", torch.rnn_relu: "relu"}
_CELLS: dict[Any, str] = {
    torch.lstm_cell: "lstm", torch.gru_cell: "gru", torch.rnn_tanh_cell: "tanh", torch.rnn_relu_cell: "relu",
}  # fmt: skip
#: Dimensions of what they read: samples, steps, numbers.
SEQUENCE = 3
#: Steps, of all layers and directions together, beyond which an LSTM with projections stays as it is.
MOST_STEPS = 128
_ZEROS = (_aten.zeros, _aten.zeros_like, _aten.new_zeros)
_State = tuple[Tensor, Tensor | None]


@torch.library.custom_op("mixbit::states", mutates_args=())
def states(
    read: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor | None, cell: Tensor | None, kind: str, back: bool
) -> Tensor:
    """[N, T, H] the hidden state before each step.

    For what the input adds to the gates [N, T, gates x H], the weight of the state [H, gates x H], its bias where that
    cannot be part of what the input adds, as in a GRU, and the state and cell [N, H] before the first step, which are
    zeros where None. The kind is that of `_step`; `back` takes the last step first.
    """
    before, _, _ = _run(lambda _, state: state @ weight, read, len(weight), bias, hidden, cell, kind, back)
    return torch.stack(before, 1)


@torch.library.custom_op("mixbit::recurrence", mutates_args=())
def recurrence(
    read: Tensor,
    product: Tensor,
    before: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    kind: str,
    back: bool,
    with_cell: bool,
) -> Tensor:
    """[N, T, H] the hidden state behind each step; [N, T + 1, H] with the last cell of an LSTM behind it.

    For the arguments of `states`, what it returned as `before`, and the product of that and the weight.
    """
    return _behind(read, product, before, weight, bias, hidden, cell, kind, back, with_cell)


def _behind(read: Tensor, product: Tensor, before: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    products, states_before = product.unbind(1), before.unbind(1)  # not one by one: each gradient would be of all steps

    def multiply(place: int, state: Tensor) -> Tensor:
        return products[place] + (state - states_before[place]) @ weight

    *given, with_cell = rest
    _, behind, last = _run(multiply, read, len(weight), *given)
    return torch.stack([*behind, last] if with_cell and last is not None else behind, 1)


def _run(
    multiply: Callable[[int, Tensor], Tensor], read: Tensor, width: int, bias: Tensor | None, hidden: Tensor | None,
    cell: Tensor | None, kind: str, back: bool, projection: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:  # fmt: skip
    """The hidden states before and behind each step, and the last cell; multiply(place, state) is state @ weight."""
    reads, zeros = read.unbind(1), read.new_zeros(read.shape[0], width)
    state = zeros if hidden is None else hidden, zeros if cell is None else cell
    before, behind = [zeros] * len(reads), [zeros] * len(reads)
    for place in reversed(range(len(reads))) if back else range(len(reads)):
        before[place] = state[0]
        state = _step(kind, reads[place], multiply(place, state[0]), bias, *state)
        if projection is not None:
            state = functional.linear(state[0], projection), state[1]
        behind[place] = state[0]
    return before, behind, state[1] if kind == "lstm" else None


def _step(
    kind: str, read: Tensor, recurrent: Tensor, bias: Tensor | None, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """The next state, as torch's operators define it: of an LSTM, a GRU, or a simple RNN with `tanh` or `relu`."""
    recurrent = recurrent if bias is None else recurrent + bias
    if kind == "gru":
        reset, update, new = read.chunk(3, -1)
        of_reset, of_update, of_new = recurrent.chunk(3, -1)
        new = (new + (reset + of_reset).sigmoid() * of_new).tanh()
        return new + (update + of_update).sigmoid() * (hidden - new), cell
    gates = read + recurrent
    if kind != "lstm":
        return getattr(torch, kind)(gates), cell
    enter, forget, new, out = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 torch gives it
    is_tensor = [isinstance(each, Tensor) for each in inputs]
    ctx.rest = [None if given else each for given, each in zip(is_tensor, inputs, strict=True)]
    ctx.places = [place for place, given in enumerate(is_tensor) if given]
    ctx.save_for_backward(*(inputs[place] for place in ctx.places))


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Those of `recurrence`, from a second run; they can be differentiated again."""
    again, results = torch.is_grad_enabled(), list[Tensor | None]([None] * len(ctx.rest))
    with torch.enable_grad():
        # views, so that a weight is not reached by what was made of it before
        tensors = [each.view_as(each) if again else each.detach().requires_grad_() for each in ctx.saved_tensors]
        given = list(ctx.rest)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            given[place] = tensor
        wanted = [(place, tensor) for place, tensor in zip(ctx.places, tensors, strict=True) if tensor.requires_grad]
        made = torch.autograd.grad(
            _behind(*given), [tensor for _, tensor in wanted], gradient, create_graph=again, allow_unused=True
        )
    for (place, _), slope in zip(wanted, made, strict=True):
        results[place] = slope
    return tuple(results)


states.register_fake(lambda read, weight, *_: read.new_empty(*read.shape[:2], weight.shape[0]))
states.register_autograd(lambda ctx, gradient: (None,) * 7)  # noqa: ARG005 none passes
recurrence.register_fake(
    lambda read, _product, _before, weight, *rest: read.new_empty(
        read.shape[0], read.shape[1] + int(rest[-1]), weight.shape[0]
    )
)
recurrence.register_autograd(_gradients, setup_context=_save)

#: The whole operator, as targets write it; torch does not run it. The weights are [gates x H, inputs] and
#: [gates x H, H], the bias is [gates x H], of a GRU two of them in a row. States are there unless they are zeros.
torch.library.define(
    "mixbit::whole_recurrence",
    "(Tensor x, Tensor of_input, Tensor of_state, Tensor bias, str kind, bool back, bool with_cell, "
    "Tensor? hidden=None, Tensor? cell=None) -> Tensor",
)
WHOLE = torch.ops.mixbit.whole_recurrence.default
_STATES, _RECURRENCE = torch.ops.mixbit.states.default, torch.ops.mixbit.recurrence.default


class InParts(TorchFunctionMode):
    """While it is entered, recurrent operators run in parts, or step by step where an LSTM has projections.

    torch.export would otherwise trace all their steps, to know what they return.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What the function returns."""
        if func in _CELLS and not kwargs:
            return _cell_in_parts(_CELLS[func], *args)
        if func in _SEQUENCES and not kwargs and _has_parts(_SEQUENCES[func], *args):
            return _sequence_in_parts(_SEQUENCES[func], *args)
        return func(*args, **(kwargs or {}))


def tidy_recurrences(graph: fx.Graph) -> None:
    """Leave out, in place, states that are zeros, and last cells that nothing reads."""
    for node in graph.find_nodes(op="call_function", target=_RECURRENCE):
        read, product, before, *rest = node.args
        given, with_cell = [_source(part) for part in rest[2:4]], rest[6]
        if all(part is None or packet(part) in _ZEROS for part in given):
            rest[2:4] = None, None
        if with_cell and all(packet(user) is _aten.slice for user in node.users):
            rest[6], node.meta["val"] = False, node.meta["val"][:, :-1]
            for whole in list(node.users):
                whole.replace_all_uses_with(node)
                graph.erase_node(whole)
        before.args, node.args = (read, *rest[:6]), (read, product, before, *rest)
    graph.eliminate_dead_code()


def _source(state: Any) -> Any:
    """What a state is a part of."""
    while isinstance(state, fx.Node) and packet(state) is _aten.select:
        state = argument(state, 0)
    return state


def is_recurrent(node: fx.Node) -> bool:
    """Whether a linear operator is part of a recurrence, so that what it reads stays in float."""
    return any(user.target is _RECURRENCE and node in user.args[:2] for user in node.users)


def recurrence_of(module: fx.GraphModule) -> tuple[str, str] | None:
    """The product of the first recurrence's state, by its node's name, and what it is: `LSTM`; None where none is."""
    for node in module.graph.find_nodes(op="call_function", target=_RECURRENCE):
        kind = node.args[7]
        return node.args[1].name, kind.upper() if kind in {"lstm", "gru"} else "simple RNN"
    return None


def is_simulated(node: fx.Node) -> bool:
    """Whether it is there for the simulation alone: a whole operator has no such tensor."""
    return node.target is _STATES or is_recurrent(node)


def join_recurrences(module: fx.GraphModule) -> None:
    """Put the whole operator, in place, where recurrences were parted, with whatever quantizes their weights."""
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=_RECURRENCE):
        read, _, _, turned, state_bias, hidden, cell, kind, back, with_cell = node.args
        x, of_input, bias = (argument(read, place) for place in range(3))
        with graph.inserting_before(node):
            if bias is None or (kind == "gru" and state_bias is None):
                value = read.meta["val"]
                module.register_buffer(f"{node.name}_zeros", torch.zeros(value.shape[-1], dtype=value.dtype))
                zeros = graph.get_attr(f"{node.name}_zeros")
                bias, state_bias = bias or zeros, state_bias or zeros
            if kind == "gru":
                for each in (bias, state_bias):
                    value_of(each)
                bias = inserted(node, _aten.cat.default, [bias, state_bias])
            states = [] if hidden is None else [hidden] if cell is None else [hidden, cell]
            of_state = argument(turned, 0) if packet(turned) in TRANSPOSES else inserted(node, _aten.t.default, turned)
            arguments = (x, of_input, of_state, bias, kind, back, with_cell, *states)
            whole = graph.call_function(WHOLE, arguments)
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _has_parts(kind: str, x: Tensor, state: Any, weights: Any, *rest: Any) -> bool:
    """Whether it is a sequence with samples, not packed; with projections, of a few steps, whose number is known."""
    if isinstance(state if kind == "lstm" else weights, Tensor) or x.ndim != SEQUENCE:
        return False
    steps = x.shape[1 if rest[-1] else 0]
    return not _projects(kind, state) or (isinstance(steps, int) and steps * state[0].shape[0] <= MOST_STEPS)


def _projects(kind: str, state: Any) -> bool:
    return kind == "lstm" and state[0].shape[-1] != state[1].shape[-1]


def _cell_in_parts(kind: str, x: Tensor, state: Any, *weights: Tensor | None) -> Any:
    """One step, as `torch.lstm_cell` and its like."""
    held = state if kind == "lstm" else (state, None)
    hidden, cell = _parted(kind, x.unsqueeze(1), weights, held, back=False)
    hidden = hidden.select(1, 0)
    return hidden if cell is None else (hidden, cell)


def _sequence_in_parts(
    kind: str, x: Tensor, state: Any, weights: Sequence[Tensor], has_biases: bool, num_layers: int, _dropout: float,
    _train: bool, both_ways: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """All steps, in both directions of all layers, as `torch.lstm` and its like."""
    held = state if kind == "lstm" else (state, None)
    each, num_directions = (4 if has_biases else 2) + int(_projects(kind, state)), 2 if both_ways else 1
    x, finals = x if batch_first else x.transpose(0, 1), list[tuple[Tensor, Tensor | None]]()
    for layer in range(num_layers):
        made = []
        for back in range(num_directions):
            number = layer * num_directions + back
            own = weights[number * each : (number + 1) * each]
            now = [None if part is None else part[number] for part in held]
            hidden, cell = _parted(kind, x, own, now, back=bool(back))
            made.append(hidden)
            finals.append((hidden.select(1, 0 if back else -1), cell))
        x = made[0] if len(made) == 1 else torch.cat(made, -1)
    stacked = [torch.stack(list(part)) for part in zip(*finals, strict=True) if part[0] is not None]
    return x if batch_first else x.transpose(0, 1), *stacked


def _parted(
    kind: str, x: Tensor, weights: Sequence[Any], state: Sequence[Tensor | None], *, back: bool
) -> tuple[Tensor, Tensor | None]:
    """[N, T, H] the hidden states of one direction of one layer, and [N, H] the last cell of an LSTM."""
    of_input, of_state, *biases = weights
    projection = biases.pop() if len(biases) % 2 else None
    bias, state_bias = biases or (None, None)
    if kind != "gru" and bias is not None:
        bias, state_bias = bias + state_bias, None
    read, turned = functional.linear(x, of_input, bias), of_state.t()
    if projection is not None:  # no target has such an operator
        multiply = lambda _, hidden: functional.linear(hidden, of_state)  # noqa: E731
        hidden, cell = state
        _, behind, last = _run(multiply, read, 0, None, hidden, cell, kind, back, projection)
        return torch.stack(behind, 1), last
    rest, with_cell = (turned, state_bias, *state, kind, back), kind == "lstm"
    before = states(read, *rest)
    made = recurrence(read, torch.matmul(before, turned), before, *rest, with_cell)
    return (_aten.slice(made, 1, 0, -1), made.select(1, -1)) if with_cell else (made, None)
