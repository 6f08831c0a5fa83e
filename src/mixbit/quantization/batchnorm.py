"""Statistics of batch norms, taken again from data before they are folded."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from mixbit.core import InvalidInput
from mixbit.core.batches import split_batches
from mixbit.graph.capture import exported, running_statistics
from mixbit.graph.graph import Graph
from mixbit.graph.walk import in_order
from mixbit.quantization.statistics import RunningMean


@torch.no_grad()
def reestimated(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of the model, in eval mode, whose batch norms hold the statistics of these data.

    mean = E[x] and variance = E[(x - mean)^2] of each channel of what a norm reads, over all samples of all batches and
    all positions: pooled, so that it does not matter how the data is cut into batches. The norms are taken one after
    the other, in execution order, each on inputs as the norms before make them with their new statistics: so in eval
    mode every norm returns mean 0 and variance 1 on the data (before its own scale and shift). The data is gone through
    once. A channel that is constant on the data keeps its variance. (Wu and Johnson 2021, section 3, arXiv 2105.07576,
    who divide by the statistics of the batch instead.)

    Args:
        model: The trained network; it is left as it is.
        batches: Calibration batches; labels are allowed and not needed. Held in memory.

    Returns:
        The copy.

    Raises:
        InvalidInput: there is no batch norm with running statistics, no batch, a single value for a channel, NaN or
            inf; or the model cannot be copied, or fails on a batch.
        UnsupportedModel: `torch.export` cannot follow the code.
    """
    batches = [inputs for inputs, _ in split_batches(model, batches)]
    try:
        result = copy.deepcopy(model).eval()
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"batch norms: the model cannot be copied: {error}; leave re-estimation out") from error
    module, example, _ = exported(model, batches[0].args or dict(batches[0].kwargs))
    graph = Graph(module, example, {})
    calls: dict[str, list[str]] = defaultdict(list)
    variances = {}
    for node in module.graph.nodes:
        statistics = running_statistics(node)
        if statistics is not None:
            name, variances[name] = statistics
            calls[name].append(node.name)
    if not calls:
        raise InvalidInput("the model runs no batch norm with running statistics; leave their re-estimation out")
    nodes, moments = list(calls.values()), {name: RunningMean(graph.parameter(name).shape) for name in calls}
    owners = {node: name for name, its in calls.items() for node in its}

    def see(_: int, node: fx.Node, __: Callable[..., Any], args: tuple[Any, ...]) -> None:
        moments[owners[node.name]].update(args[0].movedim(1, -1).flatten(0, -2))

    for turns in in_order(graph, owners, nodes, batches, see, "re-estimate batch norms"):
        for turn in turns:
            name = owners[nodes[turn][0]]
            _set_statistics(graph, name, variances[name], moments[name])
    for name in (*variances, *variances.values()):
        result.get_buffer(name).copy_(graph.parameter(name))
    return result


def _set_statistics(graph: Graph, mean_name: str, variance_name: str, moments: RunningMean) -> None:
    norm = mean_name.rpartition(".")[0]
    if moments.count < 2:
        raise InvalidInput(
            f"{norm}: sees a single value for each channel, which has no variance; give more samples, or leave the "
            "re-estimation of batch norms out"
        )
    mean, variance = moments.mean, moments.squares / moments.count
    if not (mean.isfinite().all() and variance.isfinite().all()):
        raise InvalidInput(f"{norm}: reads NaN or inf on the data; clean it, or leave re-estimation out")
    previous = graph.parameter(variance_name)
    graph.parameter(mean_name).copy_(mean)
    previous.copy_(torch.where(variance > 0, variance, previous.cpu().double()))
