"""Rounding to the nearest integer."""

from mixbit.core import method
from mixbit.graph import LAYER_BY_LAYER, Graph
from mixbit.roundings._input import RoundingInput


@method(LAYER_BY_LAYER, rank=1)
def nearest(inputs: RoundingInput) -> Graph:
    """Every weight to the nearest integer, ties to even; without data."""
    return inputs.simulated
