"""What the network loses with every unit of channels: Fisher information of masks, and the means that stay behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from mixbit.batches import Batch
from mixbit.graph import Graph
from mixbit.nodes import argument, get_tensor
from mixbit.operators import can_take_bias, run_operation
from mixbit.progress import track
from mixbit.pruning.channels import Channels, Reader
from mixbit.samples import SampleAxis, group_samples, sample_axis
from mixbit.task import Task


@dataclass(frozen=True)
class Cut:
    """What is removed.

    Attributes:
        keep: [units] whether each stays.
        shifts: Node of a reader -> what its bias takes up, [outputs].
    """

    keep: Tensor
    shifts: Mapping[str, Tensor] = field(default_factory=dict)


class Masked(fx.Interpreter):
    """The graph in which readers see zeros in place of the units that are cut, and add the shifts.

    Args:
        graph: What is run; its parameters take no gradients.
        channels: Of the graph.
        cut: What is removed.
        at_input: (node, reader, tensor) -> the tensor that the reader reads in place of that one.
        at_output: Called with a reader's node, reader and output.
    """

    def __init__(
        self,
        graph: Graph,
        channels: Channels,
        cut: Cut,
        at_input: Callable[[fx.Node, Reader, Tensor], Tensor] = lambda _node, _reader, x: x,
        at_output: Callable[[fx.Node, Reader, Tensor], None] = lambda _node, _reader, _output: None,
    ) -> None:
        super().__init__(graph.module)
        self.readers = {one.operation.node: one for one in channels.readers if channels.free[one.units].any()}
        self.cut, self.at_input, self.at_output = cut, at_input, at_output

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Read a parameter or buffer, without its gradient."""
        return super().get_attr(target, args, kwargs).detach()

    def run_node(self, n: fx.Node) -> Any:
        """Run an operator, masked where it is a reader."""
        if n.name not in self.readers:
            return super().run_node(n)
        reader = self.readers[n.name]
        operation, keep = reader.operation, self.cut.keep[reader.units]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x = args[operation.data]
        if not keep.all():
            x = x * keep.to(x).reshape(-1, *[1] * (0 if operation.channels_last else x.ndim - 2))
        arguments = (*args[: operation.data], self.at_input(n, reader, x), *args[operation.data + 1 :])
        output = self.call_function(n.target, arguments, kwargs)  # type: ignore[arg-type] an operator is callable
        if n.name in self.cut.shifts:
            output = output + operation.along_channels(self.cut.shifts[n.name], output.ndim)
        self.at_output(n, reader, output)
        return output


@torch.no_grad()
def mean_outputs(graph: Graph, channels: Channels, batches: list[Batch], cut: Cut) -> dict[str, Tensor]:
    """What every channel that a reader reads adds to each of its outputs, in the mean over samples and positions.

    Padding counts as a runtime computes it. Readers that cannot take a bias are left out.

    Returns:
        Node of the reader -> [outputs, what it reads].
    """
    readers: dict[str, Reader] = {}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(node: fx.Node, reader: Reader, x: Tensor) -> Tensor:
        if can_take_bias(node, reader.operation):
            readers[node.name] = reader
            rows = x.flatten(0, -2) if reader.operation.channels_last else x
            sums[node.name] = sums.get(node.name, 0) + rows.sum(0, dtype=torch.float64)
            counts[node.name] = counts.get(node.name, 0) + len(rows)
        return x

    reading = Masked(graph, channels, cut, add)
    for inputs, _ in track(batches, "take means of channels"):
        reading.run(*graph.leaves(inputs), enable_io_processing=False)
    return {name: _outputs_of(graph, reader, sums[name] / counts[name]) for name, reader in readers.items()}


def _outputs_of(graph: Graph, reader: Reader, x: Tensor) -> Tensor:
    """[outputs, inputs]: the mean over positions of the operator's output for each channel of one input alone.

    With m[c, k] the mean of what tap k of a kernel sees of channel c, that is sum_k w[o, c, k] m[c, k]; and m is the
    gradient of the mean output by the weight of an operator with a single output.
    """
    layer, node = reader.layer, graph.node(reader.operation.node)
    weight = get_tensor(graph.module, layer.name).detach()
    single = torch.zeros_like(weight.narrow(layer.axis, 0, 1)).requires_grad_()
    with torch.enable_grad():
        mean = run_operation(node, reader.operation, x.to(weight).unsqueeze(0), single).mean()
    (taps,) = torch.autograd.grad(mean, single)
    return (weight * taps).movedim(layer.axis, 0).unsqueeze(2).flatten(2).sum(2)


def importance(
    graph: Graph,
    channels: Channels,
    batches: list[Batch],
    means: Mapping[str, Tensor],
    cut: Cut,
    *,
    task: Task,
    seed: int,
) -> Tensor:
    """Expected KL divergence in nats, to second order, when a unit's channels are no longer read: [units], float64.

    Cutting unit u puts d = -x_u in the place of all that layers read of it, so that with l_i the loss of sample i and
    labels drawn from the model, KL ~ 1/2 E_i[(sum over readers and positions of <dl_i/dx_u, x_u>)^2]: the Fisher
    information of one mask variable. Where `means` has the reader, the mean of its output stays, so that
    <dl_i/dout, mean output> is taken off.

    Source: L. Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787, 2018
    (of a channel's mask); P. Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.

    Args:
        graph: A graph in float.
        channels: Of the graph.
        batches: Samples; labels only where the task's loss is the user's own.
        means: As `mean_outputs` takes them with the same cut; empty where biases stay as they are.
        cut: What is removed already.
        task: Whose labels are drawn.
        seed: Of the draws.
    """
    scores = _Scores(channels.num_units, means)
    masked = Masked(graph, channels, cut, scores.at_input, scores.at_output)
    generator = torch.Generator().manual_seed(seed)
    total, count = torch.zeros(channels.num_units, dtype=torch.float64), 0
    for inputs, labels in track(batches, "measure channels"):
        leaves = [
            leaf.detach().requires_grad_(leaf.is_floating_point()) if isinstance(leaf, Tensor) else leaf
            for leaf in graph.leaves(inputs)
        ]
        with torch.enable_grad():
            loss = task.information(masked.run(*leaves, enable_io_processing=False), labels, generator)
            if loss.requires_grad:  # it depends on what some reader reads
                loss.backward()
        total += scores.take_squares() / 2
        count += inputs.batch_size
    return total / count


class _Scores:
    """Collects, in backward, the derivative of each sample's loss by the mask of every unit."""

    def __init__(self, num_units: int, means: Mapping[str, Tensor]) -> None:
        self.num_units, self.means = num_units, means
        #: [N, units] of the samples, and [1, units] of what cannot be told apart by sample.
        self.scores: dict[bool, Tensor] = {}

    def at_input(self, node: fx.Node, reader: Reader, x: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        own = x.view_as(x)  # others may read the same tensor
        value, before = own.detach(), argument(node, reader.operation.data)
        own.register_hook(lambda gradient: self._add(reader, before, gradient * value, None))
        return own

    def at_output(self, node: fx.Node, reader: Reader, output: Tensor) -> None:
        mean = self.means.get(node.name)
        if mean is not None:
            output.register_hook(lambda gradient: self._add(reader, node, gradient, -mean.double()))

    @torch.no_grad()
    def _add(self, reader: Reader, node: fx.Node, values: Tensor, weights: Tensor | None) -> None:
        channels_last = reader.operation.channels_last
        axis = sample_axis(node)
        if axis is not None and axis.axis > 0 and not channels_last:
            axis = None
        sums = _sums(axis, values, channels_last=channels_last)
        sums = (sums if weights is None else sums @ weights).cpu()
        empty = torch.zeros(len(sums), self.num_units, dtype=torch.float64)
        self.scores.setdefault(axis is not None, empty).index_add_(1, reader.units, sums)

    def take_squares(self) -> Tensor:
        """[units]: sum over the samples of the batch just run backward; forgets it."""
        total = torch.zeros(self.num_units, dtype=torch.float64)
        for scores in self.scores.values():
            total += scores.square().sum(0)
        self.scores.clear()
        return total


def _sums(axis: SampleAxis | None, x: Tensor, *, channels_last: bool) -> Tensor:
    """[N, channels]: sums over the positions of each sample, float64."""
    rows = group_samples(axis, x)
    rows = rows.flatten(1, -2) if channels_last else rows.flatten(3).sum(3, dtype=torch.float64)
    return rows.sum(1, dtype=torch.float64)
