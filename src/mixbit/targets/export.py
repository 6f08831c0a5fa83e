"""Targets: one runtime a file, each with TARGET, write(), load() and stored()."""

from pathlib import Path

import torch

from mixbit.core import InvalidInput, UnsupportedModel, target_module, whole_folder
from mixbit.graph.graph import Graph
from mixbit.quantization.assemble import quantizers_of
from mixbit.targets._integers import FURTHER, SEPARATOR


def export(graph: Graph, *, target: str, path: str | Path, force: bool = False) -> Path:
    """Write the quantized graph as the target's files, with plan.json beside them.

    Args:
        graph: What `quantize` returned.
        target: Name of the target, the one that the plan was made for.
        path: Folder; made where it does not exist.
        force: Whether files of the same names may be replaced in a folder that is not empty.

    Returns:
        Path of the artefact.

    Raises:
        InvalidInput: the graph is not quantized, in training or for another target, the folder cannot be used, or the
            target's runtime is not installed.
        UnsupportedModel: the model is not in float32, or the runtime cannot express it.
    """
    module = target_module(target)
    check_exportable(graph)
    if graph.plan is None:
        raise InvalidInput("graph: not quantized; call quantize() before export()")
    if graph.plan.target != target:
        raise InvalidInput(f"target {target!r}: the plan is for {graph.plan.target}; plan again for {target}")
    folder = Path(path)
    with whole_folder(folder, force=force) as temporary:
        module.write(graph, temporary)
        graph.plan.save(temporary / "plan.json")
    return folder / module.TARGET.artefact


def check_exportable(graph: Graph) -> None:
    """Raise unless every parameter is float32, has a name that no file gives a meaning to, and no scale is learned."""
    if any(quantizer.learns for quantizer in quantizers_of(graph)):
        raise InvalidInput("graph: its scales are parameters in training; export what mixbit.settled() makes")
    for name, parameter in graph.module.named_parameters():
        if any(mark in name for mark in (SEPARATOR, FURTHER, "/", "__metadata__")):
            raise UnsupportedModel(f"{name!r}: files give {SEPARATOR} {FURTHER} / a meaning; rename the parameter")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedModel(f"{name}: {parameter.dtype}; targets compute in float32: use model.float()")
