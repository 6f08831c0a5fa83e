"""The weights of an OpenVINO model: constants as they are stored, and the operators that unpack them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixbit.core import Scheme
from mixbit.graph.graph import Graph
from mixbit.targets._integers import IntegerWeight, float_weights, integer_weights

#: Element type on disk by width; u types hold the integers plus their offset. With zero points all are u types.
TYPES = {2: "u2", 3: "u3", 4: "i4", 6: "u6", 8: "i8"}


class Weights:
    """The constants of all layers, and the operators that make of them what an operator reads."""

    def __init__(self, ov: Any, graph: Graph) -> None:
        self.ov = ov
        self.integers, self.floats = integer_weights(graph), float_weights(graph)
        self.ranged = {name for name in self.integers if graph.plan is not None and _ranged(graph.plan.scheme(name))}
        self.multiplied = {layer.name for layer in graph.layers if layer.inputs}
        self.constants: dict[tuple[str, str], Any] = {}

    def read_by(self, name: str, value: Tensor, reader: Any) -> Any:
        """The layer's weight in float32, computed from what is stored, for one operator."""
        from openvino import opset15 as ops

        if name in self.floats:
            kind = self.ov.Type.f16 if self.floats[name].dtype == torch.float16 else self.ov.Type.bf16
            return ops.convert(self._constant(name, "weight", self.floats[name].float().numpy(), kind), "f32")
        if name not in self.integers:
            return self._constant(name, "weight", value.cpu().numpy())
        apart = name not in self.ranged or reader.get_type_name() == "Gather"
        return self._unpacked(self.integers[name], whole=bool(self.ranged) and name in self.multiplied and apart)

    def _unpacked(self, weight: IntegerWeight, *, whole: bool) -> Any:
        """Constant at the plan's width -> less the offset or the zero points -> float32 -> times the scales.

        Unpacked as a `whole`, it is float32 in the compiled model. Where the plugin takes ranges at run time, it would
        otherwise quantize the inputs of all layers, and not those of a table that is a matrix too.
        """
        from openvino import opset15 as ops

        symmetric = weight.zero_column is None
        kind = TYPES[weight.bits] if symmetric else f"u{weight.bits}"
        unsigned = kind.startswith("u")
        integers = weight.unsigned if unsigned else weight.laid_out
        node = self._constant(weight.name, "integers", integers, getattr(self.ov.Type, kind))
        if symmetric and kind != "i8" and not (weight.grouped and kind == "i4"):
            node = ops.convert(node, "i8")
        if symmetric and unsigned:
            node = ops.subtract(node, self._constant(weight.name, "offset", np.array(weight.offset, dtype=np.int8)))
        if not symmetric and weight.bits not in (4, 8):  # else the plugin multiplies by them as they are
            node = ops.convert(node, "u8")
        node = ops.convert(ops.convert(node, "i32") if whole else node, "f32")
        if weight.zero_column is not None:
            zero = self._constant(weight.name, "zero_point", weight.zero_column)
            node = ops.subtract(node, ops.convert(ops.convert(zero, "i32") if whole else zero, "f32"))
        node = ops.multiply(node, self._constant(weight.name, "scale", weight.column))
        if not weight.grouped:
            return node
        node = ops.reshape(node, ops.constant(np.array(weight.channels_first)), False)
        if weight.axis == 0:
            return node
        order = [*range(1, weight.axis + 1), 0, *range(weight.axis + 1, weight.integers.ndim)]
        return ops.transpose(node, ops.constant(np.array(order)))

    def _constant(self, layer: str, part: str, array: NDArray[Any], kind: Any = None) -> Any:
        """The constant of that part of a layer, made where there is none."""
        from openvino import opset15 as ops

        if (layer, part) not in self.constants:
            constant = ops.constant(array) if kind is None else ops.constant(array, dtype=kind)
            constant.set_friendly_name(f"{layer}/{part}")
            self.constants[layer, part] = constant
        return self.constants[layer, part]


def shape_of(reader: Any, value: Tensor) -> Any:
    """The shape of a weight, as a constant; who reads the weight for it keeps the plugin from taking it as it is."""
    from openvino import opset15 as ops

    return ops.constant(np.array(value.shape), dtype=reader.get_output_element_type(0))


def _ranged(scheme: Scheme) -> bool:
    return scheme.input is not None and scheme.input.dynamic
