"""Nearest: every weight to the closest integer."""

from mixbit.core import method
from mixbit.graph.graph import Graph
from mixbit.roundings._input import Reconstruction


@method(rank=1)
def nearest(asked: Reconstruction) -> Graph:
    """Every weight to the nearest integer, ties to even; without data."""
    return asked.simulated
