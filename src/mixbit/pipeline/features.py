"""What each layer of a network is, for searches that learn from it."""

import math

import numpy as np

from mixbit.core import FloatArray
from mixbit.graph import Graph, argument
from mixbit.searches import FEATURES


def layer_features(graph: Graph) -> FloatArray:
    """[L, F] in the order of FEATURES, of each layer's first operator.

    Strides and kernels are those of the first spatial dimension, 0 and 1 where there is none; the size of the input is
    its spatial extent, or else its last dimension, and 1 for indices.
    """
    rows = []
    for layer in graph.layers:
        operation = layer.operations[0]
        spatial, groups = not operation.channels_last, operation.groups
        outputs = layer.shape[layer.axis] * (groups if operation.kind.name.startswith("conv_transpose") else 1)
        inputs = math.prod(layer.shape) * groups // math.prod((outputs, *(layer.shape[2:] if spatial else ())))
        source = () if operation.input is None else graph.shapes[operation.input]
        stride = argument(graph.node(operation.node), 3, 1) if spatial else 0  # the fourth argument of a convolution
        features = {
            "depthwise": spatial and groups > 1 and groups == inputs,
            "input_channels": inputs,
            "output_channels": outputs,
            "stride": stride[0] if isinstance(stride, list | tuple) else stride,
            "kernel": layer.shape[2] if spatial else 1,
            "num_weights": layer.numel,
            "input_size": math.prod(source[2:] if spatial else source[-1:]),
        }
        rows.append([float(features[name]) for name in FEATURES])
    return np.array(rows)
