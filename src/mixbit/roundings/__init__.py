"""Roundings: how weights become integers; one method a file."""

from collections.abc import Callable

from mixbit.core import with_options
from mixbit.graph.graph import Graph
from mixbit.roundings._input import Reconstruction
from mixbit.roundings.adaround import adaround
from mixbit.roundings.brecq import brecq
from mixbit.roundings.gptq import gptq
from mixbit.roundings.nearest import nearest

Rounding = Callable[[Reconstruction], Graph]
ROUNDINGS: dict[str, Rounding] = {
    "nearest": nearest,
    "adaround": adaround,
    "brecq": brecq,
    "gptq": gptq,
}


def find_rounding(rounding: str | Rounding) -> tuple[str, Rounding]:
    """Name and function of a rounding; raises InvalidInput for an unknown name or option."""
    return with_options("rounding", rounding, ROUNDINGS)
