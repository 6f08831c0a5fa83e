"""One forward pass over calibration batches: ranges of activations and mean inputs of operators."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Format, InvalidInput, Sparsity, track
from mixbit.core.batches import Batch, split_all
from mixbit.graph.graph import Graph, Layer, Operation, argument, check_graph, sample_axis
from mixbit.graph.layers import observable
from mixbit.graph.walk import Walker, seen
from mixbit.quantization.histogram import Histogram
from mixbit.quantization.quantizer import Quantizer, run_time_quantizer
from mixbit.quantization.ranges import RANGES, RangeMethod, mse

#: Samples of an operator's input to choose scales on: enough for POSITIONS outputs a channel, within these bounds.
POSITIONS = 512
FEWEST_SAMPLES = 4
MOST_SAMPLES = 64


@dataclass(frozen=True)
class Calibration:
    """What the float graph showed on the calibration data.

    Attributes:
        histograms: Node name -> histogram of its tensor, for every activation.
        mean_inputs: Node name of an operator -> mean of the tensor it reads, one per shape, with the number of rows
            behind it: over all positions where the channels are last, over samples before a convolution.
        samples: Node name of an operator -> the tensor it reads, for a few samples drawn evenly from the data.
        num_samples: Samples seen.
        scales: (layer, format) -> scales of its weight; filled when first needed.
        ranges: (node, format) -> scale and zero point of its tensor; filled when first needed.
        range_method: Chooses them from the histogram.
        masks: (layer, sparsity) -> which of its weights stay; filled by `mixbit.quantization.masks`, or by magnitude
            when first needed.
        batches: The data itself, with labels where it has any, for metrics, roundings and sequential correction.
    """

    histograms: dict[str, Histogram]
    mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]]
    samples: dict[str, Tensor]
    num_samples: int
    scales: dict[tuple[str, Format], Tensor] = field(default_factory=dict)
    ranges: dict[tuple[str, Format], tuple[float, int]] = field(default_factory=dict)
    range_method: RangeMethod = mse
    masks: dict[tuple[str, Sparsity], Tensor] = field(default_factory=dict)
    batches: Sequence[Batch] = ()

    def quantizer(self, node: str, fmt: Format, device: torch.device) -> Quantizer:
        """The quantizer of one activation, on the range that the method chooses, or on its own at run time."""
        if fmt.dynamic:
            return run_time_quantizer(node, fmt, device)
        if (node, fmt) not in self.ranges:
            self.ranges[node, fmt] = self.range_method(self.histograms[node], fmt)
        scale, zero_point = self.ranges[node, fmt]
        scale = max(scale, torch.finfo(torch.float32).tiny)  # in float32 it may be 0
        factors = torch.tensor(scale, device=device), torch.tensor(float(zero_point), device=device)
        return Quantizer(node, fmt, None, *factors)

    def check_layers(self, layers: tuple[Layer, ...]) -> None:
        """Raise InvalidInput unless it is of this graph and every tensor that the layers read was finite."""
        for layer in layers:
            for name in layer.inputs:
                if name not in self.histograms:
                    raise InvalidInput(f"calibration: of another graph, without {name}, which {layer.name} reads")
                if not self.histograms[name].finite:
                    raise InvalidInput(f"{layer.name}: its input {name} holds NaN or inf on the calibration data")


def calibrate(graph: Graph, batches: Iterable[Any], *, ranges: str | RangeMethod = "mse") -> Calibration:
    """Run the float graph over the batches, which the calibration holds; what else it holds does not grow with them.

    Args:
        graph: In float; it is left as it is.
        batches: What the model takes, with or without labels: a tensor, a tuple that may end with labels, or a dict.
        ranges: Name of the method that chooses ranges of activations, as `mse` or `percentile:share=0.999`, or a
            function from a `Histogram` and a `Format` to a scale and a zero point.

    Returns:
        What was seen.

    Raises:
        InvalidInput: no batch at all, one that is not understood or does not fit the graph, or one that makes a layer's
            input NaN or inf; or an unknown method.
    """
    check_graph(graph)
    _, range_method = RANGES.find(ranges)
    recorder, pairs = _Recorder(graph), split_all(batches, len(graph.example.args))
    walker = Walker(graph.module, {name: seen(partial(recorder.see, name)) for name in recorder.watched})
    with torch.no_grad():
        for number, (inputs, _) in enumerate(track(pairs, "calibrate")):
            leaves = graph.leaves(inputs, f"batch {number}")
            recorder.choose_samples(inputs.batch_size)
            try:
                walker.returned(leaves)
            except (IndexError, RuntimeError) as error:
                raise InvalidInput(f"batch {number}: the model fails on it: {str(error).splitlines()[0]}") from error
    calibration = Calibration(
        recorder.histograms,
        recorder.mean_inputs,
        {name: torch.cat(samples) for name, samples in recorder.samples.items()},
        recorder.num_samples,
        range_method=range_method,
        batches=pairs,
    )
    calibration.check_layers(graph.layers)
    return calibration


class _Recorder:
    """Collects what a calibration holds, from one batch after another."""

    def __init__(self, graph: Graph) -> None:
        self.operations = {
            operation.node: operation
            for layer in graph.layers
            for operation in layer.operations
            if operation.kind.input is not None
        }
        self.wanted = {name: _num_samples(graph, operation) for name, operation in self.operations.items()}
        self.axes = {
            name: sample_axis(argument(graph.node(name), operation.data)) for name, operation in self.operations.items()
        }
        self.observed = observable(graph)
        self.watched = self.observed | self.operations.keys()
        self.histograms: dict[str, Histogram] = {}
        self.mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]] = {}
        self.samples: dict[str, list[Tensor]] = {}
        self.num_samples = 0
        self.reservoirs = {wanted: _Reservoir(wanted) for wanted in self.wanted.values()}

    def choose_samples(self, batch_size: int) -> None:
        """Decide which samples of the next batch to keep."""
        for reservoir in self.reservoirs.values():
            reservoir.choose(batch_size)
        self.num_samples += batch_size

    def see(self, name: str, value: Tensor, args: tuple[Any, ...]) -> None:
        """Take in what a node returns and reads."""
        if name in self.observed:
            self.histograms.setdefault(name, Histogram()).update(value)
        operation = self.operations.get(name)
        if operation is not None:
            x = args[operation.data]
            self._keep_samples(name, x)
            if operation.takes_bias:
                self._add_to_mean(operation, x)

    def _keep_samples(self, node: str, x: Tensor) -> None:
        samples, axis = self.samples.setdefault(node, []), self.axes[node]
        if axis is None:  # its samples cannot be told apart: the latest tensor as a whole
            samples[:] = [x]
            return
        grouped = axis.group(x)
        for slot, index in self.reservoirs[self.wanted[node]].replacements:
            samples[slot : slot + 1] = [grouped[index].clone()]

    def _add_to_mean(self, operation: Operation, x: Tensor) -> None:
        rows = x.flatten(0, -2) if operation.channels_last else x
        per_shape = self.mean_inputs.setdefault(operation.node, {})
        mean, count = per_shape.get(tuple(rows.shape[1:]), (torch.zeros_like(rows[:1]), 0))
        total = count + len(rows)
        per_shape[tuple(rows.shape[1:])] = (mean + (rows.sum(0, keepdim=True) - len(rows) * mean) / total, total)


class _Reservoir:
    """Keeps `size` of the samples seen so far, each with the same chance (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 0
        self.generator = torch.Generator().manual_seed(0)
        self.replacements: list[tuple[int, int]] = []

    def choose(self, batch_size: int) -> None:
        """Set `replacements`: (slot, index in the batch) of the samples to keep from the next batch, in order."""
        chosen: dict[int, int] = {}
        for index in range(batch_size):
            slot = self.seen
            if slot >= self.size:
                slot = int(torch.randint(0, self.seen + 1, (), generator=self.generator))
            if slot < self.size:
                chosen[slot] = index
            self.seen += 1
        self.replacements = sorted(chosen.items())


def _num_samples(graph: Graph, operation: Operation) -> int:
    shape = graph.shapes[operation.node]
    channels = shape[-1 if operation.channels_last else 1]
    positions = max(1, math.prod(shape) // channels // graph.batch_size)
    return max(FEWEST_SAMPLES, min(MOST_SAMPLES, -(-POSITIONS // positions)))


def mean_output(graph: Graph, operation: Operation, calibration: Calibration, weight: Tensor) -> Tensor:
    """[channels] mean over calibration samples and positions of the operator's output for another weight.

    The operator is linear in its input, so this is its output for the mean input: exact, and one forward of one sample.
    """
    total, count = torch.zeros((), device=weight.device), 0
    for mean, rows in calibration.mean_inputs[operation.node].values():
        output = graph.run(operation, mean, weight)
        channels = output.movedim(-1 if operation.channels_last else 1, 0).flatten(1)
        total, count = total + channels.sum(1) * rows, count + channels.shape[1] * rows
    return total / count
