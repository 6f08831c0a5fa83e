"""One pass over calibration batches, and what it decides: ranges of activations and scales of weights."""

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Batch, Format, InvalidInput, Sparsity, Spilled, Target, checked, find_target, split_all, track
from mixbit.graph.graph import Graph, Layer, Operation, argument, check_graph, sample_axis
from mixbit.graph.layers import observable
from mixbit.graph.stored import Waiting, scratch
from mixbit.graph.walk import Walker, seen
from mixbit.quantization.affine import (
    SMALLEST_SCALE,
)
from mixbit.quantization.quantizer import Quantizer, run_time_quantizer
from mixbit.quantization.ranges import RANGES, Histogram, RangeMethod, mse

#: Outputs of a channel to choose scales on, and the samples of an operator's input kept for them, within these bounds.
POSITIONS = 512
FEWEST_SAMPLES = 4
MOST_SAMPLES = 64


@dataclass(frozen=True)
class Calibration:
    """What the float graph showed on the calibration data.

    Attributes:
        histograms: Node name -> histogram of its tensor, for every activation that a plan may quantize.
        mean_inputs: Node name of an operator -> mean of the tensor it reads, one per shape, with the number of rows
            behind it: over all positions where the channels are last, over samples before a convolution.
        samples: Node name of an operator -> the tensor it reads, for a few samples drawn evenly from the data.
        num_samples: Samples seen.
        weight_factors: (layer, format, coded) -> scales and zero points of its weight; filled when first needed.
        ranges: (node, format) -> scale and zero point of its tensor; filled when first needed.
        range_method: Chooses them from the histogram.
        masks: (layer, sparsity) -> which weights stay; from `mixbit.quantization.masks`, or by magnitude when needed.
        batches: The data itself, with labels where it has any, for metrics, roundings and sequential correction.
        coded: Whether scales of weights are those for a target that codes their integers.
    """

    histograms: dict[str, Histogram]
    mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]]
    samples: MutableMapping[str, tuple[Tensor, ...]]
    num_samples: int
    weight_factors: MutableMapping[tuple[str, Format, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)
    ranges: dict[tuple[str, Format], tuple[float, int]] = field(default_factory=dict)
    range_method: RangeMethod = mse
    masks: dict[tuple[str, Sparsity], Tensor] = field(default_factory=dict)
    batches: Sequence[Batch] = ()
    coded: bool = False

    def for_target(self, target: Target) -> "Calibration":
        """The same, with scales of weights that suit what the target stores."""
        coded = target.coded_bytes is not None
        return self if coded == self.coded else replace(self, coded=coded)

    def quantizer(self, node: str, fmt: Format, device: torch.device, *, zero_points: bool = True) -> Quantizer:
        """The quantizer of one activation, on the range that the method chooses, or on its own at run time.

        Without `zero_points`, its integers are signed where the tensor has numbers below 0.
        """
        if fmt.dynamic:
            return run_time_quantizer(node, fmt, device)
        if not zero_points and self.histogram(node).low < 0:
            fmt = replace(fmt, symmetric=True)
        if (node, fmt) not in self.ranges:
            self.ranges[node, fmt] = self.range_method(self.histogram(node), fmt)
        scale, zero_point = self.ranges[node, fmt]
        scale = max(scale, SMALLEST_SCALE)  # in float32 it may be 0
        factors = torch.tensor(scale, device=device), torch.tensor(float(zero_point), device=device)
        return Quantizer(node, fmt, None, *factors)

    def histogram(self, node: str) -> Histogram:
        """The histogram of that node's tensor; raises InvalidInput where the calibration was for another target."""
        if node not in self.histograms:
            raise InvalidInput(
                f"calibration: for another target, without {node}; call calibrate() with this one, or with none"
            )
        return self.histograms[node]

    def check_layers(self, layers: tuple[Layer, ...]) -> None:
        """Raise InvalidInput unless it is of this graph and every tensor that the layers read was finite."""
        for layer in layers:
            for name in layer.inputs:
                if name not in self.histograms:
                    raise InvalidInput(f"calibration: of another graph, without {name}, which {layer.name} reads")
                if not self.histograms[name].finite:
                    raise InvalidInput(f"{layer.name}: its input {name} holds NaN or inf on the calibration data")


@checked
def calibrate(
    graph: Graph,
    batches: Iterable[Any],
    *,
    target: str | None = None,
    ranges: str | RangeMethod = "mse",
    samples: int | None = None,
    folder: str | Path | None = None,
) -> Calibration:
    """Run the float graph over the batches. The result holds them; what else it holds does not grow with them.

    A list of batches stays where it is. Other data is gone through once and written to a file without a name, from
    which all that follows reads: memory does not grow with it, and a loader that shuffles or augments anew in each pass
    gives all of them the same.

    Args:
        graph: In float; it is left as it is.
        batches: What the model takes, with or without labels: a tensor, a tuple that may end with labels, or a dict.
        target: Name of the target that the plans are for; where None, of all, which keeps more histograms.
        ranges: Name of the method that chooses ranges of activations, as `mse` or `percentile:share=0.999`, or a
            function from a `Histogram` and a `Format` to a scale and a zero point.
        samples: How many of the first samples to take; all where None.
        folder: Where the file is; that for temporary files where None.

    Raises:
        InvalidInput: no batch, no end of them, one that does not fit the graph or makes a layer's input NaN or inf; an
            unknown target or method.
    """
    check_graph(graph)
    _, range_method = RANGES.find(ranges)
    runtime = None if target is None else find_target(target)
    kinds = () if runtime is None else (runtime.quantized_outputs, runtime.integer_operators)
    recorder, place = _Recorder(graph, observable(graph, *kinds)), None if folder is None else Path(folder)
    pairs = split_all(batches, len(graph.example.args), samples=samples, folder=place)
    walker = Walker(graph.module, {name: seen(partial(recorder.see, name)) for name in recorder.watched})
    with torch.no_grad():
        for number, (inputs, _) in enumerate(track(pairs, "calibrate")):
            leaves = graph.leaves(inputs, f"batch {number}")
            for reservoir in set(recorder.reservoirs.values()):
                reservoir.choose(inputs.batch_size)
            try:
                walker.returned(leaves)
            except (IndexError, RuntimeError) as error:
                raise InvalidInput(f"batch {number}: the model fails on it: {str(error).splitlines()[0]}") from error
    samples_of, factors = ({}, {}) if graph.room is None else tuple(Spilled(scratch(graph.room)) for _ in range(2))
    for name, held in recorder.samples.items():
        samples_of[name] = _of_each_shape([each() for each in held], graph.operations[name][1])
    calibration = Calibration(
        recorder.histograms,
        recorder.mean_inputs,
        samples_of,
        num_samples=sum(pairs.sizes),
        weight_factors=factors,
        range_method=range_method,
        batches=pairs,
        coded=runtime is not None and runtime.coded_bytes is not None,
    )
    calibration.check_layers(graph.layers)
    return calibration


def _of_each_shape(samples: list[Tensor], operation: Operation) -> tuple[Tensor, ...]:
    """The samples as one tensor for each shape, of rows alone where the channels are last."""
    if operation.channels_last and len({sample.shape[1:] for sample in samples}) > 1:
        samples = [sample.flatten(0, -2) for sample in samples]
    shapes = dict.fromkeys(sample.shape[1:] for sample in samples)
    return tuple(torch.cat([sample for sample in samples if sample.shape[1:] == shape]) for shape in shapes)


class _Recorder:
    """Collects what a calibration holds, from one batch after another."""

    def __init__(self, graph: Graph, observed: frozenset[str]) -> None:
        self.operations = {name: each for name, (_, each) in graph.operations.items() if each.kind.input is not None}
        self.axes = {
            name: sample_axis(argument(graph.node(name), operation.data)) for name, operation in self.operations.items()
        }
        reservoir_of = cache(_Reservoir)
        self.reservoirs: dict[str, _Reservoir] = {}
        for name, operation in self.operations.items():
            shape = graph.shapes[name]
            positions = max(1, math.prod(shape) // shape[operation.channels] // graph.batch_size)
            self.reservoirs[name] = reservoir_of(max(FEWEST_SAMPLES, min(MOST_SAMPLES, -(-POSITIONS // positions))))
        self.observed = observed
        self.watched = self.observed | self.operations.keys()
        self.histograms: dict[str, Histogram] = {}
        self.mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]] = {}
        self.samples: dict[str, list[Callable[[], Tensor]]] = {}
        self.waiting = Waiting(graph.room)

    def see(self, name: str, value: Tensor, args: tuple[Any, ...]) -> None:
        """Take in what a node returns and reads."""
        if name in self.observed:
            self.histograms.setdefault(name, Histogram()).update(value)
        operation = self.operations.get(name)
        if operation is not None:
            x, samples, axis = args[operation.data], self.samples.setdefault(name, []), self.axes[name]
            if axis is None:  # its samples cannot be told apart: the latest tensor as a whole
                samples[:] = [self.waiting.hold(x)]
            else:
                reservoir = self.reservoirs[name]
                grouped = axis.group(x, reservoir.count)
                for slot, index in reservoir.replacements:
                    samples[slot : slot + 1] = [self.waiting.hold(grouped[index].clone())]
            if operation.takes_bias:
                rows = x.flatten(0, -2) if operation.channels_last else x
                per_shape, shape = self.mean_inputs.setdefault(name, {}), tuple(rows.shape[1:])
                mean, count = per_shape.get(shape, (torch.zeros_like(rows[:1]), 0))
                total = count + len(rows)
                per_shape[shape] = (mean + (rows.sum(0, keepdim=True) - len(rows) * mean) / total, total)


class _Reservoir:
    """Keeps `size` of the samples seen so far, each with the same chance (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self.size, self.seen, self.generator = size, 0, torch.Generator().manual_seed(0)
        self.count, self.replacements = 0, list[tuple[int, int]]()

    def choose(self, batch_size: int) -> None:
        """Set `replacements`: (slot, index in the batch) of the samples to keep from the next batch, in order."""
        self.count, chosen = batch_size, dict[int, int]()
        for index in range(batch_size):
            slot = self.seen
            if slot >= self.size:
                slot = int(torch.randint(0, self.seen + 1, (), generator=self.generator))
            if slot < self.size:
                chosen[slot] = index
            self.seen += 1
        self.replacements = sorted(chosen.items())


def mean_output(graph: Graph, operation: Operation, calibration: Calibration, weight: Tensor) -> Tensor:
    """[channels] mean over calibration samples and positions of the operator's output for another weight.

    The operator is linear in its input, so this is its output for the mean input: exact, and one forward of one sample.
    """
    total, count = torch.zeros((), device=weight.device), 0
    for mean, rows in calibration.mean_inputs[operation.node].values():
        output = graph.run(operation, mean, weight)
        channels = output.movedim(operation.channels, 0).flatten(1)
        total, count = total + channels.sum(1) * rows, count + channels.shape[1] * rows
    return total / count
