"""What the network loses with every unit of channels when the others make up for it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.core import Batch, Task, track
from mixbit.graph import Graph, Walker, group_samples, run_backward, sample_axis, seen
from mixbit.pruning.channels import Channels, Reader
from mixbit.quantization.statistics import Moments, inverse_factor

#: Added to the diagonal of the second moments, as a share of its mean: channels that are nearly sums of others.
DAMPING = 1e-3
#: Share of its channels that every tensor keeps, one at least: an empty layer cuts the network in two.
LEAST_SHARE = 0.1
#: Channels of a tensor beyond which each is predicted by its mean alone: the moments would take over 128 MiB.
MOST_CHANNELS = 4096


@dataclass(frozen=True)
class Prediction:
    """Every channel of a tensor as a linear function of the others: m_u + sum over v of a_uv (x_v - m_v).

    With P the inverse of the damped covariance of the channels that stay, least squares give a_uv = -P_uv / P_uu.

    Attributes:
        precision: [C, C] P, zero for channels that are gone; [C] its diagonal where only means predict.
        mean: [C] m; zero where the reader has no bias that could take it up: the covariance is then not centred.
        sample: What the reader reads, in the mean over samples; without channels that are gone.
    """

    precision: Tensor
    mean: Tensor
    sample: Tensor

    def missing(self, rows: Tensor) -> Tensor:
        """What the prediction misses, x_u - p_u(x) = sum over v of P_uv (x_v - m_v) / P_uu; [..., C] as the rows."""
        off = rows - self.mean.to(rows)
        if self.precision.ndim == 1:
            return off * (self.precision > 0).to(rows)
        diagonal = self.precision.diagonal()
        return off @ (self.precision / torch.where(diagonal > 0, diagonal, 1)).to(rows)

    def coefficients(self, gone: Tensor) -> Tensor:
        """[number of gone, C] a: how the channels that stay stand in for those that go together, `gone` [C]."""
        coefficients = torch.zeros(int(gone.sum()), len(gone), dtype=torch.float64, device=gone.device)
        if self.precision.ndim == 2:
            rows = self.precision[gone]
            coefficients[:, ~gone] = -torch.linalg.solve(rows[:, gone], rows[:, ~gone])
        return coefficients


@torch.no_grad()
def predict(graph: Graph, channels: Channels, batches: Sequence[Batch], keep: Tensor) -> dict[str, Prediction]:
    """Node of a reader -> how what it reads is predicted, from the units [units] that are not gone.

    The graph is in float, and its readers read no channel that is gone; raises InvalidInput for NaN or inf.
    """
    statistics: dict[fx.Node, _Statistics] = {}
    for reader in channels.cuttable_readers:
        statistics.setdefault(reader.source(graph), _Statistics(reader))
    walker = Walker(graph.module, {node.name: seen(tensor.see) for node, tensor in statistics.items()})
    for inputs, _ in track(batches, "take moments of channels"):
        walker.returned(graph.leaves(inputs))
    return {
        reader.operation.node: statistics[reader.source(graph)].prediction(reader, keep[reader.units].to(graph.device))
        for reader in channels.cuttable_readers
    }


class _Statistics:
    """Moments of the channels of a tensor over samples and positions, and the sum of its samples."""

    def __init__(self, reader: Reader) -> None:
        self.operation, self.moments, self.count = reader.operation, Moments(), 0
        self.alone = len(reader.units) > MOST_CHANNELS or len(reader.units.unique()) < len(reader.units)
        self.total = torch.zeros((), dtype=torch.float64)

    def see(self, x: Tensor, _: Any) -> None:
        rows = x.movedim(self.operation.channels, -1).flatten(0, -2)
        self.moments.update(rows.T.unsqueeze(2) if self.alone else rows.unsqueeze(0))
        samples = rows if self.operation.channels_last else x
        self.total = self.total.to(x.device) + samples.sum(0, dtype=torch.float64)
        self.count += len(samples)

    def prediction(self, reader: Reader, stays: Tensor) -> Prediction:
        """Of what one of the tensor's readers reads, from the channels [C] that stay."""
        centred = reader.operation.takes_bias
        hessian = self.moments.hessian(reader.layer.name, centred=centred)[0] / self.moments.count
        mean = self.moments.mean.flatten() * stays * centred
        sample = self.total / self.count
        sample = sample * stays.reshape(-1, *[1] * (sample.ndim - 1))
        if self.alone:
            return Prediction(stays.double(), mean, sample)
        factor = inverse_factor(hessian[stays][:, stays].unsqueeze(0), DAMPING)[0]
        precision = torch.zeros_like(hessian)
        precision[stays.unsqueeze(1) & stays] = (factor.T @ factor).flatten()
        return Prediction(precision, mean, sample)


def importance(
    graph: Graph,
    channels: Channels,
    batches: Sequence[Batch],
    predictions: dict[str, Prediction],
    *,
    task: Task,
    seed: int,
) -> Tensor:
    """Expected KL divergence in nats, to second order, when a unit's channels are no longer read: [units], float64.

    Cutting unit u replaces all that layers read of it by its prediction p_u(x) from the other channels, so that with
    l_i the loss of sample i and labels drawn from the model, KL ~ 1/2 E_i[(sum over readers and positions of
    <dl_i/dx_u, x_u - p_u(x)>)^2]: the Fisher information of one mask variable.

    Source: L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787, 2018
    (of a channel's mask); P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.

    The graph is in float. `predictions` holds, by the node of a reader, how what it reads is predicted. The task says
    how labels are drawn; the batches need some only where its loss is the user's own.
    """
    generator = torch.Generator().manual_seed(seed)
    nothing = torch.zeros(channels.num_units, dtype=torch.float64)
    total, count = nothing.clone(), 0
    for inputs, labels in track(batches, "measure channels"):
        watched = _Watched(graph, channels.num_units, predictions, inputs.batch_size)
        around = {reader.operation.node: partial(watched.around, reader) for reader in channels.cuttable_readers}
        run_backward(graph, inputs, around, partial(task.information, labels=labels, generator=generator))
        total += sum((scores.square().sum(0) for scores in watched.scores.values()), nothing) / 2
        count += inputs.batch_size
    return total / count


class _Watched:
    """Collects, in backward, the derivative of each sample's loss by the mask of every unit, for one batch."""

    def __init__(self, graph: Graph, num_units: int, predictions: dict[str, Prediction], count: int) -> None:
        self.graph, self.num_units, self.predictions, self.count = graph, num_units, predictions, count
        #: [N, units] of the samples, and [1, units] of what cannot be told apart by sample.
        self.scores: dict[bool, Tensor] = {}

    def around(self, reader: Reader, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a reader on what it reads, watched."""
        operation, position = reader.operation, reader.operation.data
        x = args[position] if args[position].requires_grad else args[position].detach().requires_grad_()
        own = x.view_as(x)  # others may read the same tensor
        missing = self.predictions[operation.node].missing(own.detach().movedim(operation.channels, -1))
        own.register_hook(lambda gradient: self._add(reader, gradient.movedim(operation.channels, -1) * missing))
        return run(*args[:position], own, *args[position + 1 :])

    @torch.no_grad()
    def _add(self, reader: Reader, values: Tensor) -> None:
        axis = sample_axis(reader.source(self.graph))
        if axis is not None and axis.axis > 0 and not reader.operation.channels_last:
            axis = None  # what a convolution reads has its samples first or nowhere
        sums = group_samples(axis, values, self.count).flatten(1, -2).sum(1, dtype=torch.float64).cpu()
        empty = torch.zeros(len(sums), self.num_units, dtype=torch.float64)
        self.scores.setdefault(axis is not None, empty).index_add_(1, reader.units, sums)


@torch.no_grad()
def make_up(
    graph: Graph, channels: Channels, predictions: Mapping[str, Prediction], before: Tensor, after: Tensor
) -> None:
    """Let readers read the channels that stay instead of those that go: their weights and biases change, in place.

    With S the channels of the units [units] that were there `before` and go `after`, W_v <- W_v + sum over u in S of
    a_uv W_u for the others, W_u <- 0; the bias takes up the difference between the mean outputs.
    """
    for reader in channels.cuttable_readers:
        layer, operation = reader.layer, reader.operation
        gone = (before & ~after)[reader.units].to(graph.device)
        if not gone.any():
            continue
        prediction, weight = predictions[operation.node], graph.parameter(layer.name)
        read = weight.double().movedim(1 - layer.axis, 0)
        changed = read + torch.tensordot(prediction.coefficients(gone).T, read[gone], 1)
        changed[gone] = 0
        if operation.takes_bias:
            difference = (read - changed).movedim(0, 1 - layer.axis)
            sample = prediction.sample if operation.channels_last else prediction.sample.unsqueeze(0)
            shift = graph.run(operation, sample, difference)
            shift = shift if operation.channels_last else shift[0].flatten(1).mean(1)
            bias = graph.bias(operation)
            shift = shift.to(weight) if bias is None else graph.parameter(bias) + shift.to(weight)
            graph.set_bias(layer, operation, shift)
        weight.copy_(changed.movedim(0, 1 - layer.axis))
    graph.module.recompile()


def choose(losses: Tensor, able: Tensor, channels: Channels, keep: Tensor, count: int) -> Tensor:
    """[units] which of `keep` stay after one round: at most `count` of the `able` go, in the order of their losses."""
    members: list[Counter[int]] = [Counter() for _ in range(channels.num_units)]
    spare = []
    for index, units in enumerate({tuple(place.units.tolist()) for place in channels.tensors.values()}):
        spare.append(int(keep[list(units)].sum()) - max(1, math.ceil(LEAST_SHARE * len(units))))
        for unit in units:
            members[unit][index] += 1
    keep, able = keep.clone(), keep & able
    for unit in torch.argsort(losses, stable=True).tolist():
        if not able[unit] or count < 1 or any(spare[index] < n for index, n in members[unit].items()):
            continue
        keep[unit] = False
        count -= 1
        for index, number in members[unit].items():
            spare[index] -= number
    return keep
