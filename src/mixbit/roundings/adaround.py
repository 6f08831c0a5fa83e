"""AdaRound: the rounding of each layer's weights, learned from its output."""

from typing import Annotated, Literal

from annotated_types import Ge, Le

from mixbit.core import method
from mixbit.graph import Graph
from mixbit.roundings._input import SIDE_BY_SIDE, RoundingInput
from mixbit.roundings._learned import learned_roundings
from mixbit.training.blockwise import Schedule


@method(SIDE_BY_SIDE, rank=2)
def adaround(
    given: RoundingInput,
    *,
    iterations: Annotated[int, Ge(1)] = 500,
    batch_size: Annotated[int, Ge(1)] = 32,
    drop: Annotated[float, Ge(0), Le(1)] = 0.5,
    cache_gib: Annotated[float, Ge(0)] = 2.0,
    inputs: Literal["quantized", "float"] = "quantized",
) -> Graph:
    """Roundings learned from each layer's output, together with biases and the steps of coarse activations.

    For each operator with a weight W, and a function f of each number right behind it,
    min_V E |f(op(x, W)) - f(op(x', W'))|^2 + penalty, W' = s (clip(floor(W / s) + h(V) + z) - z), with x' from the
    layers that are rounded already.

    Args:
        given: The networks and the data.
        iterations: Steps of Adam for each layer.
        batch_size: Samples of a step.
        drop: Chance of a number to stay in float, where activations have less than 8 bits.
        cache_gib: GiB of activations held in memory, of each process; more go to temporary files.
        inputs: What each layer reads while it learns: `quantized`, what the rounded layers before it return, so that
            it makes up for their errors; or `float`, what the float network's do: layers are then independent of one
            another, and several processes may share them.

    Raises:
        InvalidInput: an option out of its range, or no batch.

    Source: M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
    """
    schedule = Schedule(iterations, batch_size, cache_gib)
    return learned_roundings(given, "layers", schedule, drop=drop, reads=inputs)
