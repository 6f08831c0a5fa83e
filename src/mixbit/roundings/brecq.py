"""BRECQ: roundings learned together for each block of layers."""

from typing import Annotated, Literal

from annotated_types import Ge, Le

from mixbit.core import method
from mixbit.graph import Graph
from mixbit.roundings._input import SIDE_BY_SIDE, RoundingInput
from mixbit.roundings._learned import learned_roundings
from mixbit.training.blockwise import Schedule


@method(SIDE_BY_SIDE, rank=3)
def brecq(
    given: RoundingInput,
    *,
    iterations: Annotated[int, Ge(1)] = 500,
    batch_size: Annotated[int, Ge(1)] = 32,
    drop: Annotated[float, Ge(0), Le(1)] = 0.5,
    fisher: bool = False,
    cache_gib: Annotated[float, Ge(0)] = 2.0,
    inputs: Literal["quantized", "float"] = "quantized",
) -> Graph:
    """Roundings learned from the output of each block, together with biases and the steps of coarse activations.

    For each block between two tensors through which everything flows, min_V E |z - z'|^2 + penalty, with z the float
    network's output of the block and z' the rounded one's, which reads what the rounded blocks before return. Biases
    are learned along, and the steps of activations of less than 8 bits; of such activations, and of what the block
    reads, a random part of the numbers stays in float in each step (QDrop). Embeddings keep their nearest rounding.

    Args:
        given: The networks and the data.
        iterations: Steps of Adam for each block. The default takes minutes on two cores for a small network, where the
            papers' 20,000 steps are meant for GPUs.
        batch_size: Samples of a step.
        drop: Chance of a number to stay in float, where activations have less than 8 bits.
        fisher: Whether errors are weighted by the squared gradients of the network's information by z: the paper's
            theory; its published code leaves that out, as the default here.
        cache_gib: GiB of activations held in memory, of each process; more go to temporary files.
        inputs: What each block reads while it learns: `quantized`, what the rounded blocks before it return, so that
            it makes up for their errors; or `float`, what the float network's do: blocks are then independent of one
            another, and several processes may share them.

    Raises:
        InvalidInput: an option out of its range, `fisher` and a loss of the user's own, or no batch.

    Sources: Y. Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021;
    X. Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", ICLR 2022.
    """
    schedule = Schedule(iterations, batch_size, cache_gib, fisher)
    return learned_roundings(given, "blocks", schedule, drop=drop, reads=inputs)
