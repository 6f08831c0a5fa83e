"""What the network loses with every unit of channels, where the others make up for it: Fisher information of masks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import track
from mixbit.core.batches import Batch
from mixbit.core.task import Task
from mixbit.graph.backward import run_for_gradients
from mixbit.graph.graph import Graph
from mixbit.graph.sample_axis import group_samples, sample_axis
from mixbit.pruning.prediction import Prediction, rows_last
from mixbit.pruning.units import Channels, Reader


def importance(
    graph: Graph, channels: Channels, batches: list[Batch], predictions: dict[str, Prediction], *, task: Task, seed: int
) -> Tensor:
    """Expected KL divergence in nats, to second order, when a unit's channels are no longer read: [units], float64.

    Cutting unit u puts its prediction p_u(x) from the other channels in the place of all that layers read of it, so
    that with l_i the loss of sample i and labels drawn from the model, KL ~ 1/2 E_i[(sum over readers and positions of
    <dl_i/dx_u, x_u - p_u(x)>)^2]: the Fisher information of one mask variable.

    Source: L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787, 2018
    (of a channel's mask); P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.

    Args:
        graph: A graph in float.
        channels: Of the graph.
        batches: Samples; labels only where the task's loss is the user's own.
        predictions: Node of a reader -> how what it reads is predicted.
        task: Whose labels are drawn.
        seed: Of the draws.
    """
    scores = _Scores(channels.num_units, predictions)
    around = {
        reader.operation.node: partial(scores.around, graph.node(reader.operation.node), reader)
        for reader in channels.cuttable_readers
    }
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(channels.num_units, dtype=torch.float64), 0
    for inputs, labels in track(batches, "measure channels"):
        with torch.enable_grad():
            loss = task.information(run_for_gradients(graph, inputs, around), labels, generator)
            if loss.requires_grad:  # it depends on what some reader reads
                loss.backward()
        total += scores.take_squares() / 2
        count += inputs.batch_size
    return total / count


class _Scores:
    """Collects, in backward, the derivative of each sample's loss by the mask of every unit."""

    def __init__(self, num_units: int, predictions: dict[str, Prediction]) -> None:
        self.num_units, self.predictions = num_units, predictions
        #: [N, units] of the samples, and [1, units] of what cannot be told apart by sample.
        self.scores: dict[bool, Tensor] = {}

    def around(self, node: fx.Node, reader: Reader, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a reader on what it reads, watched."""
        position = reader.operation.data
        return run(*args[:position], self._watched(node, reader, args[position]), *args[position + 1 :])

    def _watched(self, node: fx.Node, reader: Reader, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        own = x.view_as(x)  # others may read the same tensor
        missing = self.predictions[node.name].missing(rows_last(own.detach(), reader.operation))
        own.register_hook(lambda gradient: self._add(reader, node, rows_last(gradient, reader.operation) * missing))
        return own

    @torch.no_grad()
    def _add(self, reader: Reader, node: fx.Node, values: Tensor) -> None:
        axis = sample_axis(reader.data(node))
        if axis is not None and axis.axis > 0 and not reader.operation.channels_last:
            axis = None  # what a convolution reads has its samples first or nowhere
        sums = group_samples(axis, values).flatten(1, -2).sum(1, dtype=torch.float64).cpu()
        empty = torch.zeros(len(sums), self.num_units, dtype=torch.float64)
        self.scores.setdefault(axis is not None, empty).index_add_(1, reader.units, sums)

    def take_squares(self) -> Tensor:
        """[units]: sum over the samples of the batch just run backward; forgets it."""
        total = torch.zeros(self.num_units, dtype=torch.float64)
        for scores in self.scores.values():
            total += scores.square().sum(0)
        self.scores.clear()
        return total
