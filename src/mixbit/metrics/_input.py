"""What every metric is given and returns, and what several of them share."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import FloatArray, Format, InvalidInput, Scheme
from mixbit.core.batches import Batch
from mixbit.core.task import Task
from mixbit.graph.graph import Graph, Layer, Operation
from mixbit.quantization.calibrate import Calibration, mean_output, weight_quantizer
from mixbit.quantization.offers import why_not
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.statistics import RunningMean

#: Facts about metrics, for `method`. `measure` gives a mean over samples parts of the data in turn until plans are
#: stable, and others all of it at once; it refuses data without labels where they are needed.
MEAN_OVER_SAMPLES = "mean over samples"
NEEDS_LABELS = "needs labels"
#: It looks at weights or outputs alone, so that a loss has no effect.
IGNORES_LOSS = "ignores the loss"

#: Name of a layer or tensor -> what rounding it costs, [..., formats].
Costs = Mapping[str, Tensor]


@dataclass(frozen=True)
class MetricInput:
    """What a metric needs to fill a table.

    Attributes:
        graph: The float graph, with its L layers, which are rows.
        schemes: C columns.
        calibration: Ranges and mean inputs on the same data.
        batches: Inputs, and labels where there are any.
        task: What the outputs mean.
        seed: Random seed.
    """

    graph: Graph
    schemes: tuple[Scheme, ...]
    calibration: Calibration
    batches: Sequence[Batch]
    task: Task
    seed: int

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Those of the graph."""
        return self.graph.layers

    @cached_property
    def weight_formats(self) -> tuple[Format, ...]:
        """Formats of weights among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.weight for scheme in self.schemes if scheme.weight))

    @cached_property
    def input_formats(self) -> tuple[Format, ...]:
        """Formats of inputs among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.input for scheme in self.schemes if scheme.input))

    @cached_property
    def readers(self) -> dict[str, int]:
        """Tensor that layers read -> how many of them do."""
        return dict(Counter(name for layer in self.layers for name in layer.inputs))

    @cached_property
    def quantizers(self) -> dict[str, list[Quantizer]]:
        """Tensor that layers read -> its quantizer in each of the input formats."""
        device = self.graph.device
        return {
            name: [self.calibration.quantizer(name, fmt, device) for fmt in self.input_formats] for name in self.readers
        }

    def weight_errors(self, layer: Layer, rows: Tensor | None = None) -> list[Tensor]:
        """What rounding adds to the layer's weight, in each of the weight formats; nothing in one that does not fit it.

        Args:
            layer: One of `layers`.
            rows: Numbers of the rows that are wanted, where the weight is a table of embeddings; all where None.
        """
        weight, errors = self.graph.parameter(layer.name).detach(), []
        weight = weight if rows is None else weight[rows]
        for fmt in self.weight_formats:
            if why_not(layer, Scheme(fmt)) is not None:
                errors.append(torch.zeros_like(weight))
                continue
            quantizer = weight_quantizer(self.graph, layer, fmt, self.calibration)
            if rows is not None:
                factors = quantizer.scale, quantizer.zero_point
                if len(quantizer.scale) > 1:
                    factors = quantizer.scale[rows], quantizer.zero_point[rows]
                mask = None if quantizer.mask is None else quantizer.mask[rows]
                quantizer = Quantizer(layer.name, fmt, layer.axis, *factors, mask)
            with torch.no_grad():
                errors.append(quantizer(weight) - weight)
        return errors

    def mean_errors(self, operation: Operation, errors: Sequence[Tensor]) -> Tensor | None:
        """[F, channels] mean output of F errors of the weight, as bias correction takes off; None where it cannot."""
        if not errors or not operation.takes_bias:
            return None
        return torch.stack([mean_output(self.graph, operation, self.calibration, error) for error in errors])

    def no_costs(self, *shape: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Layer -> zeros [*shape, formats] in float64, to add to: for weight formats, and for input formats."""
        weights, reads = (
            {layer.name: torch.zeros(*shape, len(formats), dtype=torch.float64) for layer in self.layers}
            for formats in (self.weight_formats, self.input_formats)
        )
        return weights, reads

    def output_errors(self, layer: Layer, operation: Operation, x: Tensor) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
        """What rounding adds to the output of one operator that reads x, one output at a time.

        op(x, Q(W) - W) in each of the weight formats, and op(Q(x) - x, W) in each of the input formats, or nothing
        where the operator reads indices.
        """
        graph, weight = self.graph, self.graph.parameter(layer.name).detach()
        quantizers = [] if operation.input is None else self.quantizers[operation.input]
        return (
            (graph.run(operation, x, error) for error in self.weight_errors(layer)),
            (graph.run(operation, quantizer(x) - x, weight) for quantizer in quantizers),
        )

    def entries(self, weights: Costs, reads: Costs, *, shared: bool = True) -> Tensor:
        """[..., L, C] float64 from the costs of parts.

        Args:
            weights: Layer -> what its weight costs in each weight format, for every layer.
            reads: Tensor -> what it costs in each input format; one that is missing costs nothing. The layers that
                read it share that equally. Where not `shared`, layer -> what rounding its inputs costs it alone.
            shared: Whether inputs go by tensors.
        """
        shape = weights[self.layers[0].name].shape[:-1]
        table = torch.zeros(*shape, len(self.layers), len(self.schemes), dtype=torch.float64)
        for row, layer in enumerate(self.layers):
            names = [name for name in layer.inputs if name in reads]
            parts = [reads[name] / self.readers[name] for name in names] if shared else [reads[layer.name]]
            for column, scheme in enumerate(self.schemes):
                if scheme.weight is not None:
                    table[..., row, column] += weights[layer.name][..., self.weight_formats.index(scheme.weight)]
                for part in parts:
                    if scheme.input is not None:
                        table[..., row, column] += part[..., self.input_formats.index(scheme.input)]
        return table


@dataclass(frozen=True)
class Estimate:
    """A metric's answer.

    Attributes:
        loss: [L, C] loss increase.
        standard_error: [L, C] of the same unit.
        num_samples: Samples behind each entry.
        trace: [L] the Hessian's average trace of each weight, where the metric estimates it.
    """

    loss: FloatArray
    standard_error: FloatArray
    num_samples: int
    trace: FloatArray | None = None


def check_estimate(answer: Any, metric: str, inputs: MetricInput) -> None:
    """Raise InvalidInput, which names the metric, unless it returned an estimate of the table's shape.

    The table checks the numbers themselves; here that they are numbers, and how many.
    """
    if not isinstance(answer, Estimate):
        raise InvalidInput(
            f"metric {metric}: returned a {type(answer).__name__}; return mixbit.metrics.Estimate(loss, ...)"
        )
    wanted = len(inputs.layers), len(inputs.schemes)
    for name, values in (("loss", answer.loss), ("standard_error", answer.standard_error)):
        if not isinstance(values, np.ndarray) or values.shape != wanted or not np.issubdtype(values.dtype, np.floating):
            what = f"{values.dtype} {list(values.shape)}" if hasattr(values, "shape") else "no array"
            raise InvalidInput(f"metric {metric}: {name} is a {type(values).__name__}, {what}; return float64 {wanted}")
        if np.isnan(values).any() or (name == "standard_error" and (values < 0).any()):
            raise InvalidInput(f"metric {metric}: {name} holds NaN or negative errors: {values[~(values >= 0)][:3]}")
    if not isinstance(answer.num_samples, int) or answer.num_samples < 1:
        raise InvalidInput(f"metric {metric}: num_samples is {answer.num_samples!r}; return a whole number, 1 or more")


def joined(first: Estimate, second: Estimate) -> Estimate:
    """The estimate of both sets of samples."""
    count = first.num_samples + second.num_samples
    a, b = first.num_samples / count, second.num_samples / count
    error = np.hypot(a * first.standard_error, b * second.standard_error)
    return Estimate(a * first.loss + b * second.loss, error, count)


def averaged(inputs: MetricInput, costs: Iterable[tuple[Costs, Costs]], *, shared: bool = True) -> Estimate:
    """Mean over samples, with its standard error, of the entries of every batch's costs [N, formats].

    Args:
        inputs: Which layers and schemes.
        costs: For every batch, those of weights and those of inputs, see `MetricInput.entries`.
        shared: As there.
    """
    entries = RunningMean((len(inputs.layers), len(inputs.schemes)))
    for weights, reads in costs:
        entries.update(inputs.entries(weights, reads, shared=shared))
    return Estimate(*entries.result())
