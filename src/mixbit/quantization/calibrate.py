"""One pass over calibration batches, and what it decides: ranges of activations and scales of weights."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Batch, Format, InvalidInput, Sparsity, checked, split_all, track
from mixbit.graph.graph import FEW_ELEMENTS, Graph, Layer, Operation, argument, check_graph, sample_axis
from mixbit.graph.layers import observable, run_stacked, stack_weights
from mixbit.graph.walk import Walker, seen
from mixbit.quantization.affine import (
    SMALLEST_SCALE,
    along,
    choose_mask,
    dequantize,
    least_scale,
    min_max_factors,
    misfit,
    quantize,
)
from mixbit.quantization.quantizer import Quantizer, run_time_quantizer
from mixbit.quantization.ranges import RANGES, Histogram, RangeMethod, mse
from mixbit.quantization.rows import rows_of
from mixbit.quantization.statistics import Moments

#: Samples of an operator's input to choose scales on: enough for POSITIONS outputs a channel, within these bounds.
POSITIONS = 512
FEWEST_SAMPLES = 4
MOST_SAMPLES = 64
#: Shares of the widest scale that are tried: as many as take RATIOS_WORK multiplications, within these bounds. The
#: weights of a channel may cancel out on smooth inputs, and few of them only do so when rounded at a lucky scale. With
#: more than the fewest, scales go beyond min-max, since 8 bits hold nearly as much in coarser steps, and clip nothing.
FEWEST_RATIOS, MOST_RATIOS = 12, 100
MOST_RATIO = 1.3
RATIOS_WORK = 2**28
#: Least share of the min-max scale that is tried. Clipping shrinks large weights together, an error that adds up over
#: layers and that one layer's output does not show, so it is kept small; with two bits rounding costs more than that.
LEAST_RATIO = {2: 0.45}
LEAST_RATIO_OTHERWISE = 0.6
#: The finest input format, whose scale is the smallest.
FINEST_INPUT = Format(8, "tensor", symmetric=False)


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
        moments: Node name of a convolution -> second moments of what its weight's rows are multiplied with, on its
            samples; filled when first needed.
        masks: (layer, sparsity) -> which weights stay; from `mixbit.quantization.masks`, or by magnitude when needed.
        batches: The data itself, with labels where it has any, for metrics, roundings and sequential correction.
    """

    histograms: dict[str, Histogram]
    mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]]
    samples: dict[str, tuple[Tensor, ...]]
    num_samples: int
    scales: dict[tuple[str, Format], Tensor] = field(default_factory=dict)
    ranges: dict[tuple[str, Format], tuple[float, int]] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
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
        scale = max(scale, SMALLEST_SCALE)  # in float32 it may be 0
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


@checked
def calibrate(
    graph: Graph,
    batches: Iterable[Any],
    *,
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
        ranges: Name of the method that chooses ranges of activations, as `mse` or `percentile:share=0.999`, or a
            function from a `Histogram` and a `Format` to a scale and a zero point.
        samples: How many of the first samples to take; all where None.
        folder: Where the file is; that for temporary files where None.

    Raises:
        InvalidInput: no batch, no end of them, one that does not fit the graph or makes a layer's input NaN or inf; an
            unknown method.
    """
    check_graph(graph)
    _, range_method = RANGES.find(ranges)
    recorder, place = _Recorder(graph), None if folder is None else Path(folder)
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
    calibration = Calibration(
        recorder.histograms,
        recorder.mean_inputs,
        {name: _of_each_shape(samples, graph.operations[name][1]) for name, samples in recorder.samples.items()},
        num_samples=sum(pairs.sizes),
        range_method=range_method,
        batches=pairs,
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

    def __init__(self, graph: Graph) -> None:
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
        self.observed = observable(graph)
        self.watched = self.observed | self.operations.keys()
        self.histograms: dict[str, Histogram] = {}
        self.mean_inputs: dict[str, dict[tuple[int, ...], tuple[Tensor, int]]] = {}
        self.samples: dict[str, list[Tensor]] = {}

    def see(self, name: str, value: Tensor, args: tuple[Any, ...]) -> None:
        """Take in what a node returns and reads."""
        if name in self.observed:
            self.histograms.setdefault(name, Histogram()).update(value)
        operation = self.operations.get(name)
        if operation is not None:
            x, samples, axis = args[operation.data], self.samples.setdefault(name, []), self.axes[name]
            if axis is None:  # its samples cannot be told apart: the latest tensor as a whole
                samples[:] = [x]
            else:
                reservoir = self.reservoirs[name]
                grouped = axis.group(x, reservoir.count)
                for slot, index in reservoir.replacements:
                    samples[slot : slot + 1] = [grouped[index].clone()]
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


@torch.no_grad()
def weight_quantizer(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration | None) -> Quantizer:
    """The quantizer of one layer's weight.

    Of `shares` r of the min-max scales, each channel takes the one with the least mean square of
    op(x, Q_r(W) - W) over the calibration's sample inputs, less its mean where bias correction takes that off. The
    groups of a channel share r, and a tensor with one scale takes the best r for all channels. The error of the weight
    alone is no guide: it prefers clipping that costs accuracy. Scales are min-max for a weight that no operator reads
    through a tensor of floats (an embedding), and without a calibration. No scale is so small that the bias would not
    fit into 32 bits.

    A sparse format's zeros are part of Q: scales are those of the weights that stay, errors are those of all. A layer
    that the format's blocks do not fit is rounded without zeros; `measure` offers it no such choice.
    """
    if fmt.floating is not None:
        scale = torch.ones(1, device=graph.device)
        return Quantizer(layer.name, fmt, layer.axis, scale, torch.zeros_like(scale))
    mask, weight = weight_mask(graph, layer, fmt, calibration), graph.parameter(layer.name).detach()
    pruned = weight if mask is None else weight * mask
    scale, zero_point = min_max_factors(pruned, layer.axis, fmt)
    if calibration is not None:
        if (layer.name, fmt) not in calibration.scales:
            factors = scale, zero_point
            calibration.scales[layer.name, fmt] = _best_scales(graph, layer, fmt, calibration, pruned, factors)
        scale = calibration.scales[layer.name, fmt]
    return Quantizer(layer.name, fmt, layer.axis, scale, zero_point, mask)


def weight_mask(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration | None) -> Tensor | None:
    """Which weights of the layer stay in that format; None where all do, or where its blocks do not fit the layer.

    As the calibration holds it; otherwise chosen by magnitude, and stored there.
    """
    sparsity = fmt.sparsity
    if sparsity is None or misfit(layer.shape, layer.axis, sparsity) is not None:
        return None
    masks = {} if calibration is None else calibration.masks
    if (layer.name, sparsity) not in masks:
        importance = graph.parameter(layer.name).detach().abs()
        masks[layer.name, sparsity] = choose_mask(importance, layer.axis, sparsity)
    return masks[layer.name, sparsity]


def _best_scales(
    graph: Graph, layer: Layer, fmt: Format, calibration: Calibration, pruned: Tensor, factors: tuple[Tensor, Tensor]
) -> Tensor:
    """The best shares of the widest scales for the weight with its zeros, raised where a bias needs it."""
    (scale, zero_point), zeroed = factors, pruned - graph.parameter(layer.name)
    operations = [each for each in layer.operations if each.input is not None and each.axis == layer.axis]
    if not operations:
        return scale
    ratios = shares(graph, layer, fmt, calibration).to(scale)
    totals = []
    for some in ratios.split(max(1, FEW_ELEMENTS // pruned.numel())):
        errors = _rounding_errors(pruned, [ratio * scale for ratio in some], zero_point, layer.axis, fmt) + zeroed
        each = [_output_errors(graph, layer, operation, calibration, errors) for operation in operations]
        totals.append(torch.stack(each).sum(0))
    total = torch.cat(totals)
    best = (total.sum(1, keepdim=True) if fmt.granularity == "tensor" else total).argmin(0)
    scale = scale * along(ratios[best], 0, scale.shape)
    if fmt.granularity == "group":
        return scale
    for operation in operations:  # runtimes hold biases in integers of the channels' scales
        bias = graph.bias(operation)
        if bias is not None:
            step = calibration.quantizer(str(operation.input), FINEST_INPUT, graph.device).scale
            least = least_scale(graph.parameter(bias), step, layer.shape[layer.axis]).to(scale)
            scale = torch.maximum(scale, least.amax() if fmt.granularity == "tensor" else least)
    return scale


def shares(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration) -> Tensor:
    """[R] the shares of the min-max scales that are tried for a layer: 1, and others evenly over a range."""
    columns = layer.numel // layer.shape[layer.axis]
    rows = [_num_rows(graph, each, calibration) for each in layer.operations if each.node in calibration.samples]
    work = max(1, layer.numel * min(columns, max(rows)))
    count = min(MOST_RATIOS, max(FEWEST_RATIOS, RATIOS_WORK // work))
    least = LEAST_RATIO.get(fmt.bits, LEAST_RATIO_OTHERWISE)
    if count == FEWEST_RATIOS:
        return torch.linspace(1.0, least, count)
    return torch.cat([torch.ones(1), torch.linspace(MOST_RATIO, least, count - 1)])


def _num_rows(graph: Graph, operation: Operation, calibration: Calibration) -> int:
    """Rows that the operator multiplies its weight's with, on the calibration's samples."""
    samples, shape = calibration.samples[operation.node], graph.shapes[operation.node]
    if operation.channels_last:
        return sum(x.numel() // x.shape[-1] for x in samples)
    return sum(map(len, samples)) * max(1, math.prod(shape) // shape[operation.channels] // graph.batch_size)


def _rounding_errors(weight: Tensor, scales: list[Tensor], zero_point: Tensor, axis: int, fmt: Format) -> Tensor:
    """[R, *weight]: Q(W) - W for R scales, all at once."""
    channels_first = weight.movedim(axis, 0)
    tiled = channels_first.expand(len(scales), *channels_first.shape).flatten(0, 1)
    shape = (len(channels_first), *zero_point.shape[1:])
    scale = torch.cat([scale.expand(shape) for scale in scales])
    zero = torch.cat([zero_point.expand(shape)] * len(scales))
    errors = dequantize(quantize(tiled, scale, zero, 0, *fmt.integer_range), scale, zero, 0) - tiled
    return errors.unflatten(0, (len(scales), -1)).movedim(1, axis + 1)


def _output_errors(
    graph: Graph, layer: Layer, operation: Operation, calibration: Calibration, errors: Tensor
) -> Tensor:
    """[R, channels of the weight's axis] mean square of the operator's output for each error.

    Its mean is taken off where a bias does so.
    """
    samples = calibration.samples[operation.node]
    if operation.channels_last:  # by the second moments of the rows where that is less work
        (x,) = samples
        rows, errors = x.flatten(0, -2), errors.movedim(layer.axis + 1, 1)
        if operation.takes_bias:
            rows = rows - rows.mean(0)
        if len(rows) > rows.shape[1]:
            return ((errors @ (rows.T @ rows / len(rows))) * errors).sum(2)
        return (errors @ rows.T).square().mean(2)
    moments = _moments(graph, layer, operation, calibration)
    if moments is not None:
        rows = errors.movedim(layer.axis + 1, 1).flatten(2).unflatten(1, (len(moments), -1))
        return ((rows @ moments) * rows).sum(3).flatten(1)
    read = argument(graph.node(operation.node), operation.data).name
    numel = sum(x.numel() for x in samples)
    elements = max(1, numel * math.prod(graph.shapes[operation.node]) // math.prod(graph.shapes[read]))
    squares = []
    for some in errors.split(max(1, FEW_ELEMENTS // elements)):
        stacked = stack_weights(operation, list(some))
        parts = [run_stacked(graph, operation, x, stacked, len(some)) for x in samples]
        if len(parts) > 1:  # [R, 1, channels, positions of all]
            parts = [torch.cat([part.movedim(2, 1).flatten(2) for part in parts], 2).unsqueeze(1)]
        (outputs,) = parts
        positions = [1, *range(3, outputs.ndim)]
        if operation.takes_bias:
            outputs = outputs - outputs.mean(positions, keepdim=True)
        squares.append(outputs.square().mean(positions))
    # Where a transposed convolution has groups, each index of the weight's axis is one channel of every group.
    return torch.cat(squares).unflatten(1, (-1, layer.shape[layer.axis])).sum(1)


def _moments(graph: Graph, layer: Layer, operation: Operation, calibration: Calibration) -> Tensor | None:
    """[groups, columns, columns] mean of x x' over the samples' rows x, less their mean where a bias takes that off.

    None where there are more columns than rows, or the convolution is transposed.
    """
    few_rows = _num_rows(graph, operation, calibration) <= layer.numel // layer.shape[layer.axis]
    if few_rows or operation.kind.name.startswith("conv_transpose"):
        return None
    if operation.node not in calibration.moments:
        sums = Moments()
        for x in calibration.samples[operation.node]:
            for rows in rows_of(graph.node(operation.node), operation, x, layer.shape[2:]):
                sums.update(rows)
        moments = sums.hessian(layer.name, centred=operation.takes_bias) / sums.count
        calibration.moments[operation.node] = moments.to(graph.parameter(layer.name).dtype)
    return calibration.moments[operation.node]
