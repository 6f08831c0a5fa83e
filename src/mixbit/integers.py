"""The integer weights of a quantized graph, as the writers of targets need them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixbit.graph import Graph
from mixbit.nodes import get_tensor
from mixbit.simulate import quantizers_of


@dataclass(frozen=True)
class IntegerWeight:
    """One layer's weight in integers: weight = integers x scale along axis.

    Attributes:
        name: Full name of the parameter.
        integers: int8, between -2^(bits-1) and 2^(bits-1)-1.
        scale: [channels] float32.
        axis: The channels' axis.
        bits: Width in the file.
        mask: Where the integers of a sparse format stay, in their shape; the others are 0. None elsewhere.
    """

    name: str
    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int
    bits: int
    mask: NDArray[np.bool_] | None = None

    @property
    def unsigned(self) -> NDArray[np.uint8]:
        """The integers plus `offset`: 0 .. 2^bits-1."""
        return (self.integers.astype(np.int16) + self.offset).astype(np.uint8)

    @property
    def offset(self) -> int:
        """2^(bits-1)."""
        return 2 ** (self.bits - 1)

    @property
    def column(self) -> NDArray[np.float32]:
        """The scale, shaped to multiply the integers."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.scale.reshape(shape)


def integer_weights(graph: Graph) -> dict[str, IntegerWeight]:
    """Name of the parameter -> its integers, for every quantized weight of the graph."""
    weights = {}
    for quantizer in quantizers_of(graph):
        if quantizer.axis is not None:
            name = quantizer.tensor
            integers = quantizer.integers(get_tensor(graph.module, name).detach())
            scale = quantizer.scale.detach().float().cpu().numpy()
            mask = None if quantizer.mask is None else quantizer.mask.cpu().numpy()
            weights[name] = IntegerWeight(
                name, integers.cpu().numpy().astype(np.int8), scale, quantizer.axis, quantizer.format.bits, mask
            )
    return weights
