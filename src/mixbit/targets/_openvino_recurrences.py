"""Recurrences as OpenVINO's own operators over a sequence, which the plugin runs in float32."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov

_ops: Any = ov.opset15
#: Order of the gates in OpenVINO, by their places in torch; and rows of gates in the bias.
_GATES = {"lstm": (1, 0, 2, 3), "gru": (1, 0, 2), "tanh": (0,), "relu": (0,)}
_BIASES = {"gru": 6}


def recurrence(context: Any) -> list[Any]:
    """What stands for `mixbit.graph.recurrent.WHOLE`."""
    x, of_input, of_state, bias, kind = (context.get_input(place) for place in range(5))
    kind = bytes(kind.get_node().data).decode()
    back, with_cell = (context.get_values_from_const_input(place) for place in (5, 6))
    states = [_ops.unsqueeze(context.get_input(place), [1]) for place in range(7, context.get_input_size())]
    order = _GATES[kind]
    count = _BIASES.get(kind, len(order))
    width = bias.get_partial_shape()[0].get_length() // count
    samples, steps = (_ops.gather(_ops.shape_of(x, output_type="i64"), [axis], 0) for axis in (0, 1))
    if not states:
        zeros = _ops.broadcast(np.float32(0), _ops.concat([samples, np.array([1, width])], 0))
        states = [zeros] * (2 if kind == "lstm" else 1)
    given = [x, *states, _ops.broadcast(steps, samples)]
    given += [_ops.unsqueeze(_joined(_parts(weight, len(order)), order), [0]) for weight in (of_input, of_state)]
    parts, direction = _parts(bias, count), "reverse" if back else "forward"
    if kind == "gru":
        reset, update = (_ops.add(parts[place], parts[place + 3]) for place in (0, 1))
        given.append(_ops.unsqueeze(_ops.concat([update, reset, parts[2], parts[5]], 0), [0]))
        made = _ops.gru_sequence(*given, width, direction, linear_before_reset=True)
    else:
        given.append(_ops.unsqueeze(_joined(parts, order), [0]))
        if kind == "lstm":
            made = _ops.lstm_sequence(*given, width, direction)
        else:
            made = _ops.rnn_sequence(*given, width, direction, activations=[kind])
    behind = _ops.squeeze(made.output(0), [1])
    return (_ops.concat([behind, made.output(2)], 1) if with_cell else behind).outputs()


def _parts(rows: Any, count: int) -> list[Any]:
    """The rows of each gate."""
    return list(_ops.split(rows, 0, count).outputs()) if count > 1 else [rows]


def _joined(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """The rows of all gates in that order."""
    return _ops.concat([parts[place] for place in order], 0) if len(order) > 1 else parts[0]
