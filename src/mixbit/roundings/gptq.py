"""GPTQ: weights column by column, each error made up for by the weights that are still to come."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, fx

from mixbit.core import InvalidInput, method
from mixbit.core.io.store import Store
from mixbit.graph.graph import Graph, Layer, Operation, argument, set_bias
from mixbit.graph.walk import in_order
from mixbit.quantization.affine import along
from mixbit.quantization.biases import corrected_biases
from mixbit.quantization.quantizer import Quantizer, activation_quantizers, weight_quantizers
from mixbit.quantization.statistics import Moments
from mixbit.roundings._compensate import compensated, least_error, rows_of
from mixbit.roundings._input import RoundingInput, question_digest

#: Which rows: the tensor that is read, and how an operator cuts it up. Operators that share them share their moments.
_Rows = tuple[fx.Node, str]


@method(rank=4)
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
    in the simulated network whose earlier layers are final: after earlier rounding and with its activations quantized.
    Where a bias takes off the mean error, rows are taken relative to their mean, and the bias is corrected for the new
    weight; where sparse formats want zeros, they stay, and the other weights make up for them.

    Layers with linear operators, products, and convolutions are rounded so. A weight that several operators read is
    rounded when the first of them is reached, for the rows of all of them in the network as it is then. Embeddings and
    transposed convolutions keep the nearest integers, and floating-point formats have none.

    The cost is one run of the simulated network over the data, for each layer n k^2 multiplications for the second
    moments of its n rows of k columns, and about k^3 + out k^2 for the rounding; tensors that are still to be read are
    held as `in_order` says. Nothing is drawn.

    Args:
        inputs: What to round, on which data; with a folder, finished layers are stored there, and resumed.
        damping: Share of the mean of the second moments' diagonal that is added to it, at least 0; it grows by itself
            tenfold where the moments cannot be inverted otherwise.
        order: Of the columns: those with the largest second moments first, or as they stand.

    Raises:
        InvalidInput: a negative damping, no batch, or inputs of a layer that are not finite.

    Source: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv:2210.17323.
    """
    if not inputs.batches:
        raise InvalidInput("gptq: no batch to calibrate on; give at least one")
    rounded = inputs.simulated.copy()
    todo = _jobs(inputs, rounded)
    store, question = Store(inputs.folder), question_digest(inputs, "gptq", damping=damping, order=order)
    missing = []
    for job in todo:
        finished = store.get(job.part, question)
        if finished is None:
            missing.append(job)
        else:
            _put(rounded, job.layer, finished.tensors)
    for job, moments in _moments_in_order(inputs, rounded, todo, missing):
        tensors = _round(inputs, rounded, job, moments, {"damping": damping, "by_activation": order == "activation"})
        store.put(job.part, question, tensors)
        _put(rounded, job.layer, tensors)
    rounded.module.graph.eliminate_dead_code()
    rounded.module.recompile()
    return dataclasses.replace(rounded)


@dataclass(frozen=True)
class _Job:
    """A layer to be rounded: its quantizer, the operators whose errors count, and the name of its part."""

    layer: Layer
    quantizer: Quantizer
    operations: tuple[Operation, ...]
    groups: int
    part: str


def _jobs(inputs: RoundingInput, simulated: Graph) -> list[_Job]:
    quantizers = weight_quantizers(simulated)
    jobs = []
    for number, layer in enumerate(inputs.graph.layers):
        quantizer = quantizers.get(layer.name)
        covered = [
            operation
            for operation in layer.operations
            if operation.input is not None and operation.axis == layer.axis
            if not operation.kind.name.startswith("conv_transpose")
        ]
        if quantizer is None or quantizer.format.floating is not None or not covered:
            continue
        groups = covered[0].groups
        same = tuple(operation for operation in covered if operation.groups == groups)
        jobs.append(_Job(layer, quantizer, same, groups, f"gptq-{number:04}"))
    return jobs


def _moments_in_order(
    inputs: RoundingInput, simulated: Graph, todo: list[_Job], missing: list[_Job]
) -> Iterator[tuple[_Job, dict[str, Moments]]]:
    """Every missing layer with the moments of what its operators read, once all layers before it are final."""
    operators = {operation.node for job in todo for operation in job.layer.operations}
    groups = [[operation.node for operation in job.layer.operations] for job in missing]
    reads = {operation.node: (job, operation) for job in missing for operation in job.operations}
    moments: dict[_Rows, Moments] = defaultdict(Moments)
    counted: set[tuple[int, _Rows]] = set()

    def see(batch: int, node: fx.Node, _: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if node.name not in reads:
            return
        job, operation = reads[node.name]
        key = _rows(simulated, job, operation)
        if (batch, key) not in counted:  # operators that share their rows count them once
            counted.add((batch, key))
            for rows in rows_of(node, operation, args[operation.data], job.layer.shape[2:]):
                moments[key].update(rows)

    for turns in in_order(simulated, operators, groups, inputs.batches, see, "round weights"):
        for job in (missing[turn] for turn in turns):
            yield job, {read.node: moments[_rows(simulated, job, read)] for read in job.operations}
        moments.clear()
        counted.clear()


def _rows(simulated: Graph, job: _Job, operation: Operation) -> _Rows:
    node = simulated.node(operation.node)
    cut = "" if operation.channels_last else f"{node.target} {job.layer.shape[2:]} {node.args[3:]}"
    return argument(node, operation.data), cut


def _round(
    inputs: RoundingInput, simulated: Graph, job: _Job, moments: Mapping[str, Moments], options: dict[str, Any]
) -> dict[str, Tensor]:
    """The new weight, by its name, and corrected biases, by the nodes of their operators."""
    layer, quantizer = job.layer, job.quantizer
    weight = simulated.parameter(layer.name)
    rows = _as_rows(weight, job)
    centred = [operation.node for operation in job.operations if inputs.bias_correction and operation.takes_bias]
    hessian = torch.stack([moments[name].hessian(centred=name in centred) for name in moments]).sum(0)
    if not hessian.isfinite().all():
        raise InvalidInput(f"{layer.name}: its input is NaN or inf, or its squares are; leave out such samples")
    scale, zero_point = (
        _as_rows(along(factor, layer.axis, weight.shape).expand_as(weight), job)
        for factor in (quantizer.scale, quantizer.zero_point)
    )
    mask = None if quantizer.mask is None else _as_rows(quantizer.mask, job)
    limits = quantizer.format.integer_range
    tried = compensated(rows, hessian, scale, zero_point, limits, mask=mask, **options)
    best = least_error(rows, hessian, _as_rows(quantizer(weight), job), tried)
    new = quantizer(best.reshape(weight.movedim(layer.axis, 0).shape).movedim(0, layer.axis).contiguous())
    error = _as_rows(new - weight, job)
    means = {name: (error.double() @ moments[name].mean.unsqueeze(2)).flatten().to(weight) for name in centred}
    biases = corrected_biases(inputs.graph, layer, quantizer, means, activation_quantizers(simulated))
    return {layer.name: new} | {name: biases[name] for name in centred}


def _as_rows(weight: Tensor, job: _Job) -> Tensor:
    """[groups, channels of a group, columns]."""
    return weight.movedim(job.layer.axis, 0).flatten(1).unflatten(0, (job.groups, -1))


def _put(simulated: Graph, layer: Layer, tensors: Mapping[str, Tensor]) -> None:
    """Set the layer's weight and its operators' biases."""
    weight = simulated.parameter(layer.name)
    weight.copy_(tensors[layer.name])
    for operation in layer.operations:
        if operation.node in tensors and operation.kind.bias is not None:
            bias = tensors[operation.node].to(weight)
            set_bias(simulated.module, simulated.node(operation.node), bias, layer.name, operation.kind.bias)
