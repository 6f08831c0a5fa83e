"""Whether a network whose weights are in files can be measured and rounded in the memory that it is given."""

import math

from mixbit.core import InvalidInput
from mixbit.graph.graph import Graph, Layer

#: Bytes of a process that has loaded torch and transformers.
PROGRAM = 700 * 10**6
#: Tensors like a layer's weight, in float32, that are in memory at once: the weight itself, its rounding errors in
#: several formats, and what rounding makes on the way.
WEIGHTS = 6
#: Tensors like what a layer reads and returns, likewise: loss, gradients, and their products.
ACTIVATIONS = 6


def check_room(graph: Graph) -> None:
    """Raise InvalidInput, which names the largest layer and its bytes, where the graph's room is too little for it."""
    room = graph.room
    if room is None or not graph.layers:
        return
    layer = max(graph.layers, key=lambda layer: _bytes(graph, layer))
    needed = PROGRAM + _bytes(graph, layer)
    if needed > room.memory:
        raise InvalidInput(
            f"memory {room.memory / 1e9:g}GB: {layer.name} {list(layer.shape)} takes {needed / 1e9:.1f}GB with what is "
            f"computed beside it; give as much by --memory (memory= in Python)"
        )


def _bytes(graph: Graph, layer: Layer) -> int:
    """What a layer takes beside the program, for the example's batch."""
    numbers = max(math.prod(graph.shapes[operation.node]) for operation in layer.operations)
    return 4 * (WEIGHTS * layer.numel + ACTIVATIONS * numbers)
