"""Rounding to the nearest integer."""

from mixbit.core import method
from mixbit.graph import Graph
from mixbit.roundings._input import RoundingInput


@method(rank=1)
def nearest(inputs: RoundingInput) -> Graph:
    """Every weight to the nearest integer, ties to even; without data."""
    return inputs.simulated
