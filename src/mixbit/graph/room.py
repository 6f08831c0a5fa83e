"""Whether a network whose weights are in files can be measured and rounded in the memory that it is given."""

import math
from collections.abc import Callable, Mapping

from mixbit.core import InvalidInput, facts_of
from mixbit.graph.graph import Graph, Layer

#: Fact about metrics and roundings: they hold one layer's weight at a time, and activations in files, so that they take
#: networks larger than memory.
LAYER_BY_LAYER = "layer by layer"
#: Bytes of a process that has loaded torch and transformers.
PROGRAM = 700 * 10**6
#: Tensors like a layer's weight, in float32, that are in memory at once: the weight itself, its rounding errors in
#: several formats, and what rounding makes on the way.
WEIGHTS = 6
#: Tensors like what a layer reads and returns, likewise: loss, gradients, and their products.
ACTIVATIONS = 6
#: Matrices of second moments in float64, likewise, where a rounding inverts them.
MOMENTS = 10


def check_by_layer(
    graph: Graph, what: str, function: Callable[..., object], others: Mapping[str, Callable[..., object]]
) -> None:
    """Raise InvalidInput where the weights are in files, and a method of that name holds more than a layer's."""
    if graph.room is not None and LAYER_BY_LAYER not in facts_of(function):
        able = ", ".join(name for name, other in others.items() if LAYER_BY_LAYER in facts_of(other))
        raise InvalidInput(f"{what}: needs the whole network in memory; with weights in files take one of {able}")


def check_room(graph: Graph, batch_size: int) -> None:
    """Raise InvalidInput, which names the largest layer and its bytes, where the graph's room is too little for it.

    Batches are taken to have so many samples, as large as those of the example.
    """
    _check(graph, {layer: _bytes(graph, layer, batch_size) for layer in graph.layers})


def check_room_for_moments(graph: Graph, numbers: Mapping[Layer, int]) -> None:
    """The same for a rounding that holds second moments, of so many numbers for each layer."""
    _check(
        graph, {layer: _bytes(graph, layer, graph.batch_size) + 8 * MOMENTS * count for layer, count in numbers.items()}
    )


def _check(graph: Graph, needed: Mapping[Layer, int]) -> None:
    if graph.room is None or not needed:
        return
    layer = max(needed, key=lambda each: needed[each])
    held = PROGRAM + needed[layer]
    if held > graph.room.memory:
        raise InvalidInput(
            f"memory {graph.room.memory / 1e9:g}GB: {layer.name} {list(layer.shape)} takes {held / 1e9:.2f}GB with the "
            "program and what is computed beside it; give as much by --memory (memory= in Python)"
        )


def _bytes(graph: Graph, layer: Layer, batch_size: int) -> int:
    """What a layer takes beside the program."""
    numbers = max(math.prod(graph.shapes[each.node]) for each in layer.operations) * batch_size // graph.batch_size
    return 4 * (WEIGHTS * layer.numel + ACTIVATIONS * numbers)
