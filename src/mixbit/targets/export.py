"""export(): write a quantized graph as the files of its target."""

from pathlib import Path

import torch

from mixbit.core import TARGETS, InvalidInput, Plan, Target, UnsupportedModel, checked, find_target, whole_folder
from mixbit.graph import Graph, check_graph
from mixbit.quantization.quantizer import quantizers_of
from mixbit.targets._integers import FURTHER, SEPARATOR, plan_of


@checked
def export(graph: Graph, path: str | Path, *, force: bool = False) -> Path:
    """Write the quantized graph as the files of its plan's target, with plan.json beside them.

    Args:
        graph: What `quantize` returned.
        path: Folder; made where it does not exist.
        force: Whether files of the same names may be replaced in a folder that is not empty.

    Returns:
        Path of the artefact.

    Raises:
        InvalidInput: the graph is not quantized, or in training, the folder cannot be used, or the runtime is missing.
        UnsupportedModel: the model is not in float32, or the runtime cannot express it; or its file cannot hold so
            many weights.
    """
    check_graph(graph)
    plan, folder = plan_of(graph), Path(path)
    target = find_target(plan.target)
    check_exportable(graph)
    if graph.room is not None:
        check_written_by_layer(target)
    check_fits(graph, plan)
    with whole_folder(folder, last="plan.json", force=force, also=target.more_files) as temporary:
        target.write(graph, temporary)
        plan.save(temporary / "plan.json")
    return folder / target.files[0]


def check_written_by_layer(target: Target) -> None:
    """Raise InvalidInput for a target whose file takes all weights in memory."""
    if not target.writes_by_layer:
        others = ", ".join(name for name in TARGETS if find_target(name).writes_by_layer)
        raise InvalidInput(
            f"target {target.name}: its file is written with all weights in memory; with weights in files take one of "
            f"{others}"
        )


def check_fits(graph: Graph, plan: Plan, what: str = "the weights") -> None:
    """Raise UnsupportedModel where the weights under the plan are too many for the one file of its target.

    `what` is how the error calls them.
    """
    target = find_target(plan.target)
    if target.most_bytes is None:
        return
    sizes = {
        layer.name: target.weight_bytes(layer.shape, layer.axis, plan.scheme(layer.name).weight)
        for layer in graph.layers
    }
    in_float = {name: 4 * parameter.numel() for name, parameter in graph.module.named_parameters()}
    if (size := sum((in_float | sizes).values())) > target.most_bytes:
        raise UnsupportedModel(
            f"target {target.name}: {what} take {size:,} bytes, and its file ends at "
            f"{target.most_bytes:,}; take onnxruntime, openvino or packed, whose files may be larger"
        )


def check_exportable(graph: Graph) -> None:
    """Raise unless every parameter is float32, has a name that no file gives a meaning to, and no scale is learned."""
    if any(quantizer.learns for quantizer in quantizers_of(graph)):
        raise InvalidInput("graph: its scales are parameters in training; export what mixbit.training.settled() makes")
    for name, parameter in graph.module.named_parameters():
        if any(mark in name for mark in (SEPARATOR, FURTHER, "/", "__metadata__")):
            raise UnsupportedModel(f"{name!r}: files give {SEPARATOR} {FURTHER} / a meaning; rename the parameter")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedModel(f"{name}: {parameter.dtype}; targets compute in float32: use model.float()")
