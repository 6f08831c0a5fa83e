"""What a layer is, in numbers: what the agent of AutoQ sees."""

import math
from typing import Any

import numpy as np

from mixbit.graph import Graph
from mixbit.layers import Layer
from mixbit.nodes import argument
from mixbit.search.autoq import FEATURES
from mixbit.sensitivity import FloatArray

#: Where a convolution keeps its strides.
_STRIDE = 3


def layer_features(graph: Graph, layers: tuple[Layer, ...]) -> FloatArray:
    """[L, F] in the order of `mixbit.search.autoq.FEATURES`, of each layer's first operator.

    Strides and kernels are those of the first spatial dimension, 0 and 1 where there is none; the size of the input is
    its spatial extent, or else its last dimension, and 1 for indices.
    """
    return np.array([[float(_features(graph, layer)[name]) for name in FEATURES] for layer in layers])


def _features(graph: Graph, layer: Layer) -> dict[str, Any]:
    operation = layer.operations[0]
    node = graph.node(operation.node)
    spatial = not operation.channels_last
    groups = operation.groups(node)
    outputs = layer.shape[layer.axis] * (groups if operation.kind.name.startswith("conv_transpose") else 1)
    inputs = math.prod(layer.shape) * groups // math.prod((outputs, *(layer.shape[2:] if spatial else ())))
    source = () if operation.input is None else graph.shapes[operation.input]
    stride = argument(node, _STRIDE, 1) if spatial else 0
    return {
        "depthwise": spatial and groups > 1 and groups == inputs,
        "input_channels": inputs,
        "output_channels": outputs,
        "stride": stride[0] if isinstance(stride, list | tuple) else stride,
        "kernel": layer.shape[2] if spatial else 1,
        "num_weights": layer.numel,
        "input_size": math.prod(source[2:] if spatial else source[-1:]),
    }
