"""What functions of the Python interface are given, checked once."""

from typing import Any

import torch

from mixbit.errors import InvalidInput
from mixbit.graph import Graph
from mixbit.task import Task


def check_graph(graph: Any, name: str = "graph") -> None:
    """Raise InvalidInput unless it is a graph."""
    if not isinstance(graph, Graph):
        raise InvalidInput(f"{name}: a {type(graph).__name__}; give what capture() or quantize() returned")


def check_arguments(graph: Any, task: Any, seed: Any) -> None:
    """Raise InvalidInput unless they are a graph, a task or None, and a seed; or where there can be no gradients."""
    check_graph(graph)
    if task is not None and not isinstance(task, Task):
        raise InvalidInput(f"task: a {type(task).__name__}; give Task.classification() or another, or Task.named(name)")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InvalidInput(f"seed={seed!r}: give a whole number from 0 to 2**32 - 1")
    if torch.is_inference_mode_enabled():
        raise InvalidInput("in inference mode there are no gradients; call from outside torch.inference_mode()")
