"""GPTQ: weights column by column, each error made up for by the weights that are still to come."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, fx

from mixbit.core import InvalidInput, Spill, method
from mixbit.graph import (
    LAYER_BY_LAYER,
    Graph,
    Layer,
    Operation,
    argument,
    check_room_for_moments,
    group_samples,
    in_order,
    put,
    sample_axis,
    scratch,
)
from mixbit.quantization.affine import along, dequantize, quantize
from mixbit.quantization.biases import corrected_biases
from mixbit.quantization.quantizer import Quantizer, activation_quantizers, weight_quantizers
from mixbit.quantization.rows import rows_of
from mixbit.quantization.statistics import SampleMoments, inverse_factor
from mixbit.roundings._input import RoundingInput
from mixbit.training.blockwise import gradients

#: Columns rounded before the ones behind them are brought up to date, all in one product.
BLOCK = 128
#: Numbers in the second moments of a layer's rows. Where there would be more, columns are rounded in parts.
MOST_MOMENTS = 2**27
#: Numbers of a weight that are rounded at once: rows have no part in one another, and few stay in the caches.
MOST_NUMBERS = 2**22
#: Which rows: the tensor that is read, and how an operator cuts it up. Operators that share them share their moments.
_Rows = tuple[fx.Node, str]


@method(LAYER_BY_LAYER, rank=4)
@torch.no_grad()
def gptq(
    inputs: RoundingInput,
    *,
    damping: Annotated[float, Ge(0)] = 0.01,
    order: Literal["activation", "natural"] = "activation",
) -> Graph:
    """Weights that keep the mean square error of every operator's output small, layer after layer.

    For each layer, sum over rows x of |(Q - W) x|^2 is made small by `compensated`, on the scales that the quantizers
    have; an output channel for which the nearest integers do better keeps them. The rows x are what the operator reads
    in the simulated network with its activations quantized and earlier layers final. Where a bias takes off the mean
    error, rows are relative to their mean, and the bias is corrected for the new weight. Of few samples, the sum is
    drawn to one over all directions alike, see `SampleMoments.hessian`. A table that a product shares with an embedding
    is rounded for both, weighed by gradients of the float network, see `_moments_of_lookups`. Zeros of sparse formats
    stay, and the other weights make up for them. Where the moments of all columns would be more than MOST_MOMENTS, as
    of a convolution of 1024 channels with 64 taps, equal parts of the columns are rounded each by itself.

    This rounds linear operators, products, and convolutions. A weight that several operators read is rounded when the
    first of them is reached, for the rows of all of them in the network as it is then. Embeddings and transposed
    convolutions keep the nearest integers; floating-point formats have none.

    It costs one run of the simulated network over the data and, for each layer, n k^2 multiplications for the second
    moments of its n rows of k columns, and about k^3 + out k^2 for the rounding; with such tables, a backward pass of
    the float network too. `in_order` holds the tensors that are still to be read.

    Args:
        inputs: What to round, on which data; with a folder, finished layers are stored there, and resumed.
        damping: Share of the mean of the moments' diagonal that is added to it; it grows tenfold until they invert.
        order: Of the columns: those with the largest second moments first, or as they stand.

    Raises:
        InvalidInput: a negative damping, no batch, or inputs of a layer that are not finite.

    Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv:2210.17323.
    """
    if not inputs.batches:
        raise InvalidInput("gptq: no batch to calibrate on; give at least one")
    rounded = inputs.simulated.copy()
    jobs, missing = _jobs(inputs, rounded), []
    store, question = inputs.store, inputs.question("gptq", damping=damping, order=order)
    check_room_for_moments(rounded, {job.layer: _numbers_of_moments(job) for job in jobs})
    spill = None if rounded.room is None else scratch(rounded.room)
    for job in jobs:
        stored = store.get(job.part, question)
        if stored is None:
            missing.append(job)
        else:
            _put(rounded, job, stored.tensors, spill)
    looked_up = _moments_of_lookups(inputs, missing)
    factor = partial(factored, damping=damping, by_activation=order == "activation")
    for together in _moments_in_order(inputs, rounded, jobs, missing):
        for job, tensors in _rounded(inputs, rounded, together, looked_up, factor):
            store.put(job.part, question, tensors)
            _put(rounded, job, tensors, spill)
    rounded.module.graph.eliminate_dead_code()
    rounded.module.recompile()
    return dataclasses.replace(rounded)


@dataclass(frozen=True, eq=False)
class Factored:
    """How columns with these second moments make up for one another.

    Attributes:
        moments: H [G, columns, columns].
        order: [G, columns] in which columns are rounded.
        factor: [G, columns, columns] U of the columns in that order, see `compensated`.
    """

    moments: Tensor
    order: Tensor
    factor: Tensor


@dataclass(frozen=True)
class _Job:
    """A layer to be rounded: its quantizer, the operators whose errors count, and the name of its part."""

    layer: Layer
    quantizer: Quantizer
    operations: tuple[Operation, ...]
    part: str

    def rows(self, weight: Tensor) -> Tensor:
        """[groups x parts, channels of a group, columns of a part]."""
        return _in_parts(weight.movedim(self.layer.axis, 0).flatten(1).unflatten(0, (self.operations[0].groups, -1)))


def _jobs(inputs: RoundingInput, simulated: Graph) -> list[_Job]:
    quantizers = weight_quantizers(simulated)
    jobs = []
    for number, layer in enumerate(inputs.graph.layers):
        quantizer = quantizers.get(layer.name)
        covered = [
            operation
            for operation in layer.operations
            if operation.kind.input is not None and operation.axis == layer.axis
            if not operation.kind.name.startswith("conv_transpose")
        ]
        if quantizer is not None and quantizer.format.floating is None and covered:
            same = tuple(operation for operation in covered if operation.groups == covered[0].groups)
            jobs.append(_Job(layer, quantizer, same, f"gptq-{number:04}"))
    return jobs


def _moments_of_lookups(inputs: RoundingInput, jobs: list[_Job]) -> dict[str, Tensor]:
    """For tables whose rows an embedding looks up, what this adds to the mean of x x' over the rows x they multiply.

    An error e of a table's row costs (g e)^2 / 2 in divergence where it is looked up, with g the gradient of the
    information by the tensor that this returns, and (h e x)^2 / 2 where it multiplies x, with h that by the product. So
    x x' gets the sum of g g' over that of |h|^2: means over all rows of the table. None with a loss of the user's own.
    """
    if inputs.task.own_loss is not None:
        return {}
    nodes: dict[str, tuple[list[str], list[str]]] = {}
    for job in jobs:
        lookups = [operation.node for operation in job.layer.operations if operation.kind.input is None]
        if lookups and job.layer.axis == 0:
            nodes[job.layer.name] = lookups, [operation.node for operation in job.operations]
    if not nodes:
        return {}
    squares, norms = (dict.fromkeys(nodes, torch.zeros((), dtype=torch.float64)) for _ in range(2))
    watched = [name for pair in nodes.values() for names in pair for name in names]
    try:
        for slopes in gradients(inputs.case, watched):
            for name, (lookups, products) in nodes.items():
                rows = torch.cat([slopes[lookup].flatten(0, -2) for lookup in lookups])
                squares[name] = squares[name] + (rows.mT @ rows).double()
                norms[name] = norms[name] + sum(slopes[product].norm().double().square() for product in products)
    except InvalidInput:
        return {}
    return {name: squares[name] / norms[name] for name in nodes if norms[name] > 0}


def _moments_in_order(
    inputs: RoundingInput, simulated: Graph, jobs: list[_Job], missing: list[_Job]
) -> Iterator[list[tuple[_Job, dict[str, SampleMoments]]]]:
    """Missing layers with the moments of what their operators read, those together whose layers before are final."""
    operators = {operation.node for job in jobs for operation in job.layer.operations}
    groups = {number: [operation.node for operation in job.layer.operations] for number, job in enumerate(missing)}
    reads = {operation.node: (job, operation) for job in missing for operation in job.operations}
    moments: dict[_Rows, SampleMoments] = defaultdict(SampleMoments)
    axes = {source: sample_axis(source) for source, _ in (_rows(simulated, *pair) for pair in reads.values())}
    counted: set[tuple[int, _Rows]] = set()

    def see(batch: int, node: fx.Node, _: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if node.name not in reads:
            return
        job, operation = reads[node.name]
        key = _rows(simulated, job, operation)
        if (batch, key) not in counted:  # operators that share their rows count them once
            counted.add((batch, key))
            x = group_samples(axes[key[0]], args[operation.data], inputs.batches[batch].batch_size)
            samples = len(x)
            for rows, share in rows_of(node, operation, x.flatten(0, 1), job.layer.shape[2:]):
                moments[key].update(_in_parts(rows), samples * share)

    for numbers in in_order(simulated, operators, groups, inputs.batches, see, "round weights"):
        together = [missing[number] for number in numbers]
        yield [(job, {read.node: moments[_rows(simulated, job, read)] for read in job.operations}) for job in together]
        moments.clear()
        counted.clear()


def _rows(simulated: Graph, job: _Job, operation: Operation) -> _Rows:
    node = simulated.node(operation.node)
    cut = "" if operation.channels_last else f"{node.target} {job.layer.shape[2:]} {node.args[3:]}"
    return argument(node, operation.data), cut


def _rounded(
    inputs: RoundingInput,
    simulated: Graph,
    together: Sequence[tuple[_Job, Mapping[str, SampleMoments]]],
    looked_up: Mapping[str, Tensor],
    factor: Callable[[Tensor], Factored],
) -> Iterator[tuple[_Job, dict[str, Tensor]]]:
    """Each layer with its new weight and biases, see `_round`; layers that read the same share its moments' factors."""
    known: dict[tuple[Any, ...], Factored] = {}
    for job, moments in together:
        centred = [operation.node for operation in job.operations if inputs.bias_correction and operation.takes_bias]
        table = looked_up.get(job.layer.name)
        key = (*((id(each), name in centred) for name, each in moments.items()), None if table is None else id(table))
        if key not in known:
            known[key] = factor(_hessian(job.layer, moments, centred, table))
        yield job, _round(inputs, simulated, job, moments, centred, known[key])


def _hessian(layer: Layer, moments: Mapping[str, SampleMoments], centred: list[str], table: Tensor | None) -> Tensor:
    """[G, columns, columns] of the rows that the layer multiplies, and of the table that it is for others."""
    hessian = torch.stack([moments[name].hessian(layer.name, centred=name in centred) for name in moments]).sum(0)
    if table is None:
        return hessian
    parts = (len(hessian), -1)
    own = table.unflatten(1, parts).unflatten(0, parts).diagonal(dim1=0, dim2=2).movedim(2, 0)
    return hessian + own * sum(each.moments.count for each in moments.values())


def _round(
    inputs: RoundingInput,
    simulated: Graph,
    job: _Job,
    moments: Mapping[str, SampleMoments],
    centred: list[str],
    factors: Factored,
) -> dict[str, Tensor]:
    """The new weight, by its name, and corrected biases, by the nodes of their operators."""
    layer, quantizer = job.layer, job.quantizer
    weight = simulated.parameter(layer.name)
    rows = job.rows(weight)
    scale, zero_point = (
        job.rows(along(factor, layer.axis, weight.shape).expand_as(weight))
        for factor in (quantizer.scale, quantizer.zero_point)
    )
    mask = None if quantizer.mask is None else job.rows(quantizer.mask)
    limits = quantizer.format.integer_range
    tried = compensated(rows, factors, scale, zero_point, limits, mask=mask)
    best = least_error(rows, factors.moments, job.rows(quantizer(weight)), tried)
    groups = job.operations[0].groups
    whole = best.unflatten(0, (groups, -1)).movedim(1, 2).reshape(weight.movedim(layer.axis, 0).shape)
    new = quantizer(whole.movedim(0, layer.axis).contiguous())
    error = job.rows(new - weight).double()
    outputs = {name: (error @ moments[name].mean.unsqueeze(2)).unflatten(0, (groups, -1)).sum(1) for name in centred}
    means = {name: output.flatten().to(weight) for name, output in outputs.items()}
    biases = corrected_biases(inputs.graph, layer, quantizer, means, activation_quantizers(simulated))
    return {layer.name: new} | {name: biases[name] for name in centred}


def _in_parts(rows: Tensor) -> Tensor:
    """[G x parts, N, columns of a part] of [G, N, columns]: as few parts as have at most MOST_MOMENTS moments."""
    groups, _, columns = rows.shape
    return rows.unflatten(2, (_num_parts(groups, columns), -1)).movedim(2, 1).flatten(0, 1)


def _num_parts(groups: int, columns: int) -> int:
    divisors = (each for each in range(1, columns) if columns % each == 0)
    return next((each for each in divisors if groups * columns**2 <= MOST_MOMENTS * each), columns)


def _put(simulated: Graph, job: _Job, tensors: Mapping[str, Tensor], spill: Spill | None) -> None:
    """Set the layer's weight and its operators' biases; of a network larger than memory, integers go to the file."""
    layer, weight = job.layer, tensors[job.layer.name]
    if spill is None:
        simulated.parameter(layer.name).copy_(weight)
    else:
        held = spill.held(job.quantizer.integers(weight).to(torch.int16))
        put(simulated.module, layer.name, partial(_dequantized, held, job.quantizer))
    for operation in layer.operations:
        if operation.node in tensors:
            simulated.set_bias(layer, operation, tensors[operation.node].to(weight))


def _dequantized(held: Callable[[], Tensor], quantizer: Quantizer) -> Tensor:
    return dequantize(held().float(), quantizer.scale, quantizer.zero_point, quantizer.axis)


def _numbers_of_moments(job: _Job) -> int:
    """In the second moments of the rows that the layer multiplies, all its parts together."""
    columns, groups = job.layer.numel // job.layer.shape[job.layer.axis], job.operations[0].groups
    return groups * columns**2 // _num_parts(groups, columns)


def factored(hessian: Tensor, *, damping: float, by_activation: bool) -> Factored:
    """Of H [G, columns, columns], damped as `inverse_factor` says; `by_activation`: columns by falling diagonal."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    order, ordered = torch.arange(hessian.shape[2], device=hessian.device).expand_as(diagonal), hessian
    if by_activation:
        order = diagonal.argsort(dim=1, descending=True, stable=True)
        ordered = torch.stack([one[columns][:, columns] for one, columns in zip(hessian, order, strict=True)])
    return Factored(hessian, order, inverse_factor(ordered, damping))


def compensated(
    weight: Tensor,
    factored: Factored,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """[G, rows, columns] whole multiples Q of the scales, for G problems: rows with small (q - w) H (q - w)'.

    Columns are rounded one after the other, to the nearest; each error, over the diagonal of the upper Cholesky factor
    U of the inverse of H, times its row of U is taken off the columns behind. H is damped first, see `inverse_factor`.
    A column whose diagonal is 0 is rounded to the nearest and makes up for nothing. Computed in float64.

    W, scales, zero points and the mask, False for weights that are to be 0, are [G, rows, columns]; `factored` is of
    H = X'X [G, columns, columns]. `limits` are the smallest and largest integer.

    Source: E. Frantar et al., "GPTQ", algorithm 1; zeros as in E. Frantar and D. Alistarh, "SparseGPT",
    arXiv:2301.00774.
    """
    rounded = torch.empty_like(weight)
    for rows in _few_rows(weight):
        columns = factored.order.unsqueeze(1).expand_as(weight[:, rows])
        some, scales, zeros = (each[:, rows].gather(2, columns) for each in (weight, scale, zero_point))
        stays = None if mask is None else mask[:, rows].gather(2, columns)
        made = _in_order(some.double(), factored.factor, scales, zeros, stays, limits)
        rounded[:, rows] = torch.empty_like(weight[:, rows]).scatter_(2, columns, made.to(weight))
    return rounded


def _few_rows(weight: Tensor) -> Iterator[slice]:
    """Parts of the rows of [G, rows, columns], which have no part in one another."""
    size = max(1, MOST_NUMBERS // (weight.shape[0] * weight.shape[2]))
    return (slice(start, start + size) for start in range(0, weight.shape[1], size))


def least_error(weight: Tensor, hessian: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """[G, rows, columns] of two roundings p and q of W, for each row w that with the least (q - w) H (q - w)'.

    The errors differ by (q - p) H (q + p - 2 w)', for any symmetric H: one product, and nothing that cancels.
    """
    result = torch.empty_like(one)
    for rows in _few_rows(weight):
        p, q, w = (each[:, rows].double() for each in (one, other, weight))
        more = (((q - p) @ hessian) * (q + p - 2 * w)).sum(2, keepdim=True)
        result[:, rows] = torch.where(more < 0, other[:, rows], one[:, rows])
    return result


def _in_order(
    weight: Tensor, factor: Tensor, scale: Tensor, zero_point: Tensor, mask: Tensor | None, limits: tuple[int, int]
) -> Tensor:
    """Q for columns in the order they stand in; W is overwritten."""
    rounded = torch.empty_like(weight)
    for first in range(0, weight.shape[2], BLOCK):
        last = min(first + BLOCK, weight.shape[2])
        # columns become rows: their numbers lie side by side
        block, scales, zeros = (each[:, :, first:last].mT.double().contiguous() for each in (weight, scale, zero_point))
        stays = None if mask is None else mask[:, :, first:last].mT.contiguous()
        made, errors = torch.empty_like(block), torch.empty_like(block)
        for place in range(last - first):
            w, s, z, own = block[:, place], scales[:, place], zeros[:, place], factor[:, first + place, first:last]
            q = dequantize(quantize(w, s, z, None, *limits), s, z, None)
            if stays is not None:
                q = q * stays[:, place]
            made[:, place] = q
            errors[:, place] = (w - q) / own[:, place, None]
            block[:, place + 1 :] -= errors[:, place, None] * own[:, place + 1 :, None]
        rounded[:, :, first:last] = made.mT
        weight[:, :, last:] -= errors.mT.contiguous() @ factor[:, first:last, last:]
    return rounded
