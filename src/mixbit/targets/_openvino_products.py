"""Zero points of what products read, moved into their biases."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

_ops: Any = ov.opset15
#: Operators that may stand between a quantizer and a product.
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
#: Where a file holds, by a quantizer's name, the least number that was moved out of it.
_MOVED = "moved_zero_points"


def move_zero_points(model: Any, sums: Mapping[str, Callable[[], NDArray[np.float64]]]) -> None:
    """Let a quantizer return numbers from 0 on, where only products with a weight and additions read what it returns.

    A quantizer with zero point z returns (q - z) s, at least l = -z s. It now returns q s, so a bias b becomes
    b + l sum_k w_ck, and additions get l back: the same numbers. The CPU plugin fuses scale and bias into a product of
    integers only where these have no zero point; else every output is shifted, scaled and shifted again behind it
    (OpenVINO 2026.4). The range that a quantizer reads stays what it is: it differs from the one that it returns where
    an x + c or x c before it was fused into it.

    Args:
        model: It is changed in place, and holds l by the quantizer's name.
        sums: Name of a product with a weight -> what computes [C] sums of the weight over what is summed.
    """
    for quantizer in [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]:
        low, high = (quantizer.input_value(place).get_node() for place in (3, 4))
        if any(end.get_type_name() != "Constant" or end.data.size != 1 for end in (low, high)):
            continue
        biases, additions = [], []
        for port in quantizer.output(0).get_target_inputs():
            product = _behind_moves(port)
            bias = _bias(product.get_node()) if product.get_index() == 0 else None
            if product.get_node().get_friendly_name() in sums and bias is not None:
                biases.append((sums[product.get_node().get_friendly_name()], bias))
            elif port.get_node().get_type_name() == "Add":
                additions.append(port)
            else:
                break
        else:
            least, most = (np.float32(end.data.item()) for end in (low, high))
            if least != 0 and biases:
                _shift(quantizer, least, most, biases, additions)
                model.set_rt_info(str(least), [_MOVED, quantizer.get_friendly_name()])


def restored(model: Any, operator: Any) -> Any:
    """The operator, and behind a quantizer the addition of what was moved out of it; the model may be read anew."""
    place = [_MOVED, operator.get_friendly_name()]
    if not model.has_rt_info(place):
        return operator
    return _ops.add(operator, np.float32(model.get_rt_info(place).astype(str)))


def _shift(quantizer: Any, least: np.float32, most: np.float32, biases: list[Any], additions: list[Any]) -> None:
    x, low, high = (quantizer.input_value(place) for place in range(3))
    shifted = _ops.fake_quantize(x, low, high, np.float32(0), most - least, quantizer.get_levels())
    shifted.set_friendly_name(quantizer.get_friendly_name())
    back = _ops.add(shifted, least) if additions else shifted
    for port in additions:
        port.replace_source_output(back.output(0))
    quantizer.output(0).replace(shifted.output(0))
    for sums, port in biases:
        bias = port.get_source_output().get_node()
        moved = bias.data + (float(least) * sums()).reshape(bias.get_output_shape(0))
        port.replace_source_output(_ops.constant(moved.astype(np.float32)).output(0))


def _behind_moves(port: Any) -> Any:
    """The port behind all moves that one operator reads each."""
    while port.get_node().get_type_name() in _MOVES and port.get_index() == 0:
        (*others, behind) = port.get_node().output(0).get_target_inputs()
        if others:
            break
        port = behind
    return port


def _bias(product: Any) -> Any:
    """The port of the constant, a number for each channel, that is added to the product and to it alone; or None."""
    readers = list(product.output(0).get_target_inputs()) if product.get_type_name() == "MatMul" else []
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    channels = product.get_output_partial_shape(0)[-1]
    for port in readers[0].get_node().inputs():
        source = port.get_source_output().get_node()
        shape = source.get_output_partial_shape(0)
        if source.get_type_name() == "Constant" and len(shape) > 0 and shape[-1] == channels:
            return port if source.data.size == channels.get_length() else None
    return None
