"""Scales of weights: the share of the widest that keeps the operators' outputs best, and the quantizers they make."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial, reduce

import torch
from torch import Tensor

from mixbit.core import Format
from mixbit.graph.graph import FEW_ELEMENTS, Graph, Layer, Operation, argument
from mixbit.graph.layers import run_stacked, stack_weights
from mixbit.quantization.affine import choose_mask, least_scale, min_max_factors, misfit, rounded
from mixbit.quantization.calibrate import POSITIONS, Calibration
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.rows import few_rows_of

#: Shares of the widest scale that are tried: as many as take RATIOS_WORK multiplications, within these bounds. The
#: weights of a channel may cancel out on smooth inputs, and few of them only do so when rounded at a lucky scale. With
#: more than the fewest, scales go beyond min-max, since 8 bits hold nearly as much in coarser steps, and clip nothing.
FEWEST_RATIOS, MOST_RATIOS = 12, 100
MOST_RATIO = 1.3
RATIOS_WORK, WORK_OF_ROUNDING = 2**26, 64
#: Columns of a weight up to which second moments are taken whole, and main components of them that others are known by.
MOST_COLUMNS, RANK = 64, 32
#: Least share of the min-max scale that is tried. Clipping shrinks large weights together, an error that adds up over
#: layers and that one layer's output does not show, so it is kept small; with two bits rounding costs more than that.
LEAST_RATIO = {2: 0.45}
LEAST_RATIO_OTHERWISE = 0.6
#: The finest input format, whose scale is the smallest.
FINEST_INPUT = Format(8, "tensor", symmetric=False)
#: From errors of some channels' weights [R, channels, columns] to the mean square of the output that each makes, or
#: that each group of its weights makes alone [R, channels, 1 or groups]. The channels are all of them, in the order of
#: the weight's axis, or some of a layer whose operators have no groups.
_Judge = Callable[[Tensor], Tensor]


@torch.no_grad()
def weight_quantizer(graph: Graph, layer: Layer, fmt: Format, calibration: Calibration | None) -> Quantizer:
    """The quantizer of one layer's weight.

    Of `shares` r of the min-max scales, each channel takes the one with the least mean square of
    op(x, Q_r(W) - W) over the calibration's sample inputs, less its mean where bias correction takes that off. Each
    group of a channel's weights takes an r of its own, that of the least square with all others in float; those of
    transposed convolutions share one. A tensor with one scale takes the best r for all channels. The error of the
    weight alone is no guide: it prefers clipping that costs accuracy. For a target that codes integers it is the least
    square times `growth`, but of groups and with zero points, which are not coded, and of sparse formats. Scales are
    min-max for a weight that no operator reads through a tensor of floats (an embedding), and without a calibration. No
    scale is so small that the bias would not fit into 32 bits.

    A sparse format's zeros are part of Q: scales are those of the weights that stay, errors are those of all. A layer
    that the format's blocks do not fit is rounded without zeros; `measure` offers it no such choice.
    """
    if fmt.floating is not None:
        scale = torch.ones(1, device=graph.device)
        return Quantizer(layer.name, fmt, layer.axis, scale, torch.zeros_like(scale))
    mask = weight_mask(graph, layer, fmt, calibration)
    if calibration is None:
        weight = graph.parameter(layer.name).detach()
        factors = min_max_factors(weight if mask is None else weight * mask, layer.axis, fmt)
    else:
        choose_scales(graph, layer, [fmt], calibration)
        factors = calibration.weight_factors[layer.name, fmt, calibration.coded]
    return Quantizer(layer.name, fmt, layer.axis, *factors, mask)


@torch.no_grad()
def choose_scales(graph: Graph, layer: Layer, formats: Iterable[Format], calibration: Calibration) -> None:
    """Choose the scales of one weight in all these formats at once, as `weight_quantizer` says, where not known yet."""
    coded = calibration.coded
    missing = [
        fmt for fmt in formats if fmt.floating is None and (layer.name, fmt, coded) not in calibration.weight_factors
    ]
    operations = [each for each in layer.operations if each.kind.input is not None and each.axis == layer.axis]
    judges = cache(lambda groups: [_judge(graph, layer, operation, calibration, groups) for operation in operations])
    # whether channels can be judged a few at a time
    is_apart = all(each.groups == 1 and not each.kind.name.startswith("conv_transpose") for each in operations)
    for fmt in missing:
        mask, weight = weight_mask(graph, layer, fmt, calibration), graph.parameter(layer.name).detach()
        pruned = weight if mask is None else weight * mask
        scale, zero_point = min_max_factors(pruned, layer.axis, fmt)
        if operations:
            rows, wanted = (tensor.movedim(layer.axis, 0).flatten(1) for tensor in (pruned, weight))
            ratios = shares(layer, fmt).to(scale)
            groups = 1 if fmt.group is None else scale.shape[1]
            # no step changes the error that zeroing makes, so a share of it says nothing of bits
            weigh = coded and fmt.group is None and fmt.symmetric and fmt.sparsity is None
            if fmt.granularity == "tensor":
                squares = _squares(rows, wanted, ratios, (scale, zero_point), fmt, judges(1)).sum(1, keepdim=True)
                best = (squares * growth(rows, ratios, scale) if weigh else squares).argmin(0)
            else:
                size = max(1, FEW_ELEMENTS // rows.shape[1]) if is_apart else len(rows)
                parts = (tensor.split(size) for tensor in (rows, wanted, scale, zero_point))
                bests = []
                for some, others, *factors in zip(*parts, strict=True):
                    squares = _squares(some, others, ratios, factors, fmt, judges(groups))
                    bests.append((squares * growth(some, ratios, factors[0]) if weigh else squares).argmin(0))
                best = torch.cat(bests)
            least = [_least_scales(graph, layer, fmt, operation, calibration, scale) for operation in operations]
            known = [some for some in least if some is not None]
            scale = reduce(torch.maximum, known, scale * ratios[best].reshape(len(best), *[-1] * (scale.ndim - 1)))
        calibration.weight_factors[layer.name, fmt, coded] = scale, zero_point


def growth(rows: Tensor, ratios: Tensor, scale: Tensor) -> Tensor:
    """[R, channels or 1, 1] 4^b, for the b bits that a weight takes when it is coded, of each share of the scales.

    Normal numbers of mean square v in steps s take b = log2(1 + 12 v / s^2) / 2 bits: so many as their mean square over
    that of the error that steps make. A bit more divides the square of errors by four, in any layer; so of two scales
    that with the lesser square times 4^b is the better one, in whichever layer the bits are spent. One scale for all
    channels takes the mean of their bits. It prefers no clipping: that makes errors and spares next to no bits.

    Args:
        rows: Weights [channels, columns].
        ratios: [R].
        scale: [channels] or [1].

    Source: H. Gish and J. Pierce, "Asymptotically efficient quantizing", IEEE Transactions on Information Theory, 1968.
    """
    steps = ratios.unsqueeze(1) * scale
    bits = torch.log2(1 + 12 * (rows.square().mean(1).sqrt() / steps).square()) / 2
    return 4 ** (bits if len(scale) == len(rows) else bits.mean(1, keepdim=True)).unsqueeze(2)


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


def _squares(
    rows: Tensor, wanted: Tensor, ratios: Tensor, factors: Sequence[Tensor], fmt: Format, judges: Sequence[_Judge]
) -> Tensor:
    """[R, channels, 1 or groups] what judges say of weights [channels, columns], rounded with shares of the scales."""
    (scale, zero_point), squares = factors, list[Tensor]()
    for some in ratios.split(max(1, FEW_ELEMENTS // rows.numel())):
        count = len(some)
        scales = (some.reshape(-1, *[1] * scale.ndim) * scale.expand(len(rows), *scale.shape[1:])).flatten(0, 1)
        zeros = zero_point.expand(len(rows), *zero_point.shape[1:]).repeat(count, *[1] * (zero_point.ndim - 1))
        made = rounded(rows.repeat(count, 1), scales, zeros, 0, *fmt.integer_range)
        errors = made.unflatten(0, (count, -1)).sub_(wanted)
        squares.append(reduce(torch.add, [judge(errors) for judge in judges]))
    return torch.cat(squares)


def shares(layer: Layer, fmt: Format) -> Tensor:
    """[R] the shares of the min-max scales that are tried for a layer: 1, and others evenly over a range."""
    columns = layer.numel // layer.shape[layer.axis]
    work = layer.numel * (min(columns, MOST_COLUMNS) + WORK_OF_ROUNDING)
    count = min(MOST_RATIOS, max(FEWEST_RATIOS, RATIOS_WORK // max(1, work)))
    least = LEAST_RATIO.get(fmt.bits, LEAST_RATIO_OTHERWISE)
    if count == FEWEST_RATIOS:
        return torch.linspace(1.0, least, count)
    return torch.cat([torch.ones(1), torch.linspace(MOST_RATIO, least, count - 1)])


def _least_scales(
    graph: Graph, layer: Layer, fmt: Format, operation: Operation, calibration: Calibration, scale: Tensor
) -> Tensor | None:
    """The smallest scales whose bias fits, as runtimes hold it in integers of the channels' scales; None for any."""
    bias = graph.bias(operation)
    if bias is None or operation.input is None or fmt.granularity == "group":
        return None
    step = calibration.quantizer(str(operation.input), FINEST_INPUT, graph.device).scale
    least = least_scale(graph.parameter(bias), step, layer.shape[layer.axis]).to(scale)
    return least.amax() if fmt.granularity == "tensor" else least


def _judge(graph: Graph, layer: Layer, operation: Operation, calibration: Calibration, groups: int = 1) -> _Judge:
    """What tells how large the operator's outputs are for errors of its weight.

    Their mean is taken off where a bias does so. The mean square over rows x that the weight multiplies is e' H e, with
    H the mean of x x'; of groups of neighbouring columns, each with its block of H.
    """
    samples = calibration.samples[operation.node]
    if operation.kind.name.startswith("conv_transpose"):
        return partial(_square_outputs, graph, layer, operation, samples)
    kernel = () if operation.channels_last else layer.shape[2:]
    rows = few_rows_of(graph.node(operation.node), operation, samples, kernel, POSITIONS)
    if operation.takes_bias:
        rows = rows - rows.mean(1, keepdim=True)
    main, moments = _moments(rows.unflatten(2, (groups, -1)).movedim(2, 1).flatten(0, 1))

    def judge(errors: Tensor) -> Tensor:
        by_group = errors.unflatten(1, (operation.groups, -1)).unflatten(3, (groups, -1)).permute(1, 3, 0, 2, 4)
        some = by_group.flatten(2, 3).flatten(0, 1)  # [G x groups, R x channels of an operator's group, columns]
        if main is None:
            squares = ((some @ moments) * some).sum(2)
        else:
            squares = (some @ main).square().sum(2) + (some.square() @ moments).squeeze(2)
        return squares.reshape(by_group.shape[:4]).permute(2, 0, 3, 1).flatten(1, 2)

    return judge


def _moments(rows: Tensor) -> tuple[Tensor | None, Tensor]:
    """The second moments H of rows [G, N, columns], for e' H e of many e: None and H [G, columns, columns].

    Of many columns, H is taken as U U' + diag(d) with the RANK main components U [G, columns, RANK] of the rows and
    what these leave of each column's mean square, d [G, columns, 1]: errors in few directions add up, others cancel.
    """
    if rows.shape[2] <= MOST_COLUMNS:
        return None, rows.mT @ rows / rows.shape[1]
    directions = torch.randn(rows.shape[1], RANK, generator=torch.Generator().manual_seed(0)).to(rows)
    basis = torch.linalg.qr(rows.mT @ directions).Q  # a randomized range finder with a power iteration (Halko 2011)
    basis = torch.linalg.qr(rows.mT @ (rows @ basis)).Q
    directions = rows @ basis
    inner = directions.mT @ directions / rows.shape[1]
    values, vectors = torch.linalg.eigh(inner)
    main = basis @ vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    rest = rows.square().mean(1) - main.square().sum(2)
    return main, rest.clamp(min=0).unsqueeze(2)


def _square_outputs(
    graph: Graph, layer: Layer, operation: Operation, samples: Sequence[Tensor], errors: Tensor
) -> Tensor:
    """As a judge, of a transposed convolution, by its outputs."""
    others = [size for axis, size in enumerate(layer.shape) if axis != layer.axis]
    weights = errors.unflatten(2, others).movedim(1, 1 + layer.axis)
    read = argument(graph.node(operation.node), operation.data).name
    numel = sum(x.numel() for x in samples)
    elements = max(1, numel * math.prod(graph.shapes[operation.node]) // math.prod(graph.shapes[read]))
    squares = []
    for some in weights.split(max(1, FEW_ELEMENTS // elements)):
        stacked = stack_weights(operation, list(some))
        parts = [run_stacked(graph, operation, x, stacked, len(some)).movedim(2, 1).flatten(2) for x in samples]
        outputs = torch.cat(parts, 2)
        if operation.takes_bias:
            outputs = outputs - outputs.mean(2, keepdim=True)
        squares.append(outputs.square().mean(2))
    # Where it has groups, each index of the weight's axis is one channel of every group.
    return torch.cat(squares).unflatten(1, (-1, layer.shape[layer.axis])).sum(1).unsqueeze(2)
