"""Scales of weights: chosen per output channel by the error of the operator's output."""

import math

import torch
from torch import Tensor

from mixbit.core import Format
from mixbit.graph.graph import Graph, Layer, Operation, argument, tensor_of
from mixbit.graph.layers import FEW_ELEMENTS, run_stacked, stack_weights
from mixbit.quantization.affine import LARGEST_BIAS, along, dequantize, min_max_factors, quantize
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.sparsity import choose_kept, magnitude, misfit

NUM_RATIOS = 12
#: Least share of the min-max scale that is tried. Clipping shrinks large weights together, an error that adds up over
#: layers and that one layer's output does not show, so it is kept small; with two bits rounding costs more than that.
LEAST_RATIO = {2: 0.45}
LEAST_RATIO_OTHERWISE = 0.6
#: The finest input format, whose scale is the smallest.
FINEST_INPUT = Format(8, "tensor", symmetric=False)


def weight_quantizer(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration | None) -> Quantizer:
    """The quantizer of one layer's weight.

    Of NUM_RATIOS shares r of the min-max scales, for each channel the one with the least mean square of
    op(x, Q_r(W) - W) over the calibration's sample inputs, its mean taken off where bias correction does so; the groups
    of a channel take the same share, and a tensor with one scale the best for all channels. The error of the weight
    alone is no guide: it prefers clipping that costs accuracy. A weight that no operator reads through a tensor of
    floats (an embedding) keeps min-max scales, and so does all without a calibration. No scale is so small that the
    bias would not fit into 32 bits.

    A sparse format's zeros are part of Q: scales are those of the weights that stay, errors are those of all. A layer
    that the format's blocks do not fit is rounded without zeros; `measure` offers it no such choice.
    """
    if fmt.floating is not None:
        scale = torch.ones(1, device=graph.device)
        return Quantizer(layer.name, fmt, layer.axis, scale, torch.zeros_like(scale))
    mask, weight = weight_mask(graph, layer, fmt, calibration), graph.parameter(layer.name).detach()
    pruned = weight if mask is None else weight * mask
    widest, zero_point = min_max_factors(pruned, layer.axis, fmt)
    if calibration is None:
        return Quantizer(layer.name, fmt, layer.axis, widest, zero_point, mask)
    scale = calibration.scales.get((layer.name, fmt))
    if scale is None:
        scale = _least_output_error(graph, layer, fmt, calibration, pruned, (widest, zero_point))
        if fmt.granularity != "group":  # runtimes hold biases in integers of the channels' scales
            for operation in layer.operations:
                least = _least_for_bias(graph, layer, operation, calibration).to(scale)
                scale = torch.maximum(scale, least.amax() if fmt.granularity == "tensor" else least)
        calibration.scales[layer.name, fmt] = scale
    return Quantizer(layer.name, fmt, layer.axis, scale, zero_point, mask)


def weight_mask(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration | None) -> Tensor | None:
    """Which weights of the layer stay in that format; None where all do, or where its blocks do not fit the layer.

    As the calibration holds it; where it holds none, chosen by magnitude and stored there.
    """
    sparsity = fmt.sparsity
    if sparsity is None or misfit(layer.shape, layer.axis, sparsity) is not None:
        return None
    masks = {} if calibration is None else calibration.masks
    if (layer.name, sparsity) not in masks:
        importance = magnitude(graph.parameter(layer.name).detach())
        masks[layer.name, sparsity] = choose_kept(importance, layer.axis, sparsity)
    return masks[layer.name, sparsity]


@torch.no_grad()
def _least_for_bias(graph: Graph, layer: Layer, operation: Operation, calibration: Calibration) -> Tensor:
    """[channels] the scale at which the operator's bias is LARGEST_BIAS steps; 0 where it has none."""
    node = graph.node(operation.node)
    bias = argument(node, operation.kind.bias)
    if bias is None or operation.input is None or operation.axis != layer.axis or not operation.takes_bias:
        return torch.zeros(())
    step = calibration.quantizer(operation.input, FINEST_INPUT, graph.device).scale * LARGEST_BIAS
    return (tensor_of(graph.module, bias).abs() / step).reshape(-1, layer.shape[layer.axis]).amax(0)


@torch.no_grad()
def _least_output_error(
    graph: Graph, layer: Layer, fmt: Format, calibration: Calibration, pruned: Tensor, factors: tuple[Tensor, Tensor]
) -> Tensor:
    """The best share of the widest scales for the weight with its zeros, which err from the weight as it was."""
    (widest, zero_point), zeroed = factors, pruned - graph.parameter(layer.name).detach()
    operations = [each for each in layer.operations if each.input is not None and each.axis == layer.axis]
    if not operations:
        return widest
    ratios = torch.linspace(1.0, LEAST_RATIO.get(fmt.bits, LEAST_RATIO_OTHERWISE), NUM_RATIOS).to(widest)
    totals = []
    for some in ratios.split(max(1, FEW_ELEMENTS // pruned.numel())):
        errors = _rounding_errors(pruned, [ratio * widest for ratio in some], zero_point, layer.axis, fmt) + zeroed
        each = [_output_errors(graph, layer, operation, calibration, errors) for operation in operations]
        totals.append(torch.stack(each).sum(0))
    total = torch.cat(totals)
    best = (total.sum(1, keepdim=True) if fmt.granularity == "tensor" else total).argmin(0)
    return widest * along(ratios[best], 0, widest.shape)


def _rounding_errors(weight: Tensor, scales: list[Tensor], zero_point: Tensor, axis: int, fmt: Format) -> Tensor:
    """[R, *weight]: Q(W) - W for R scales, all in one go."""
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
    x = calibration.samples[operation.node]
    centred = operation.takes_bias
    if operation.channels_last:
        return _matrix_errors(x.flatten(0, -2), errors.movedim(layer.axis + 1, 1), centred=centred)
    read = argument(graph.node(operation.node), operation.data).name
    elements = max(1, x.numel() * math.prod(graph.shapes[operation.node]) // math.prod(graph.shapes[read]))
    rows = []
    for some in errors.split(max(1, FEW_ELEMENTS // elements)):
        outputs = run_stacked(graph, operation, x, stack_weights(operation, list(some)), len(some))
        positions = [1, *range(3, outputs.ndim)]
        if centred:
            outputs = outputs - outputs.mean(positions, keepdim=True)
        rows.append(outputs.square().mean(positions))
    # Where a transposed convolution has groups, each index of the weight's axis is one channel of every group.
    return torch.cat(rows).unflatten(1, (-1, layer.shape[layer.axis])).sum(1)


def _matrix_errors(x: Tensor, errors: Tensor, *, centred: bool) -> Tensor:
    """[R, channels] mean square over the rows of x of x @ error', by the rows' second moments where that is less."""
    if centred:
        x = x - x.mean(0)
    if len(x) > x.shape[1]:
        return ((errors @ (x.T @ x / len(x))) * errors).sum(2)
    return (errors @ x.T).square().mean(2)
