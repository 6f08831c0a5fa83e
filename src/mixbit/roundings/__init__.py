"""Roundings: how weights become integers; one method a file."""

from collections.abc import Callable

from mixbit.core import Methods
from mixbit.graph.graph import Graph
from mixbit.roundings._input import RoundingInput

Rounding = Callable[[RoundingInput], Graph]
ROUNDINGS: Methods[Rounding] = Methods("rounding", __name__)
