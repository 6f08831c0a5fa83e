"""Roundings: how weights become integers; one method a file."""

from collections.abc import Callable

from mixbit.graph import Graph
from mixbit.options import with_options
from mixbit.reconstruction import Reconstruction
from mixbit.rounding.adaround import adaround
from mixbit.rounding.brecq import brecq
from mixbit.rounding.gptq import gptq
from mixbit.rounding.nearest import nearest

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
