"""What a metric is asked, and what it answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import FloatArray, Format, InvalidInput, Scheme
from mixbit.core.batches import Batch
from mixbit.core.task import Task
from mixbit.graph.case import Case
from mixbit.graph.graph import Graph, Layer, Operation
from mixbit.quantization.calibrate import Calibration, mean_output
from mixbit.quantization.offers import why_not
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.scales import weight_quantizer

#: Facts about metrics, for `method`. Means over samples are asked about parts of the data in turn until plans are
#: stable, others about all of it at once.
MEAN_OVER_SAMPLES = "mean over samples"
#: Looks at weights or outputs alone, whatever the loss.
IGNORES_LOSS = "ignores the loss"


@dataclass(frozen=True)
class MetricInput:
    """What a metric needs to fill a table.

    Attributes:
        graph: The float graph.
        layers: L rows.
        schemes: C columns.
        calibration: Ranges and mean inputs on the same data.
        batches: Inputs, and labels where there are any.
        task: What the outputs mean.
        seed: Of every draw.
    """

    graph: Graph
    layers: tuple[Layer, ...]
    schemes: tuple[Scheme, ...]
    calibration: Calibration
    batches: Sequence[Batch]
    task: Task
    seed: int

    @property
    def case(self) -> Case:
        """The network and the data."""
        return Case(self.graph, self.batches, self.task, self.seed)

    @property
    def weight_formats(self) -> tuple[Format, ...]:
        """Formats of weights among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.weight for scheme in self.schemes if scheme.weight))

    @property
    def input_formats(self) -> tuple[Format, ...]:
        """Formats of inputs among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.input for scheme in self.schemes if scheme.input))

    @property
    def readers(self) -> dict[str, int]:
        """Tensor that layers read -> how many of them do."""
        return dict(Counter(name for layer in self.layers for name in layer.inputs))

    def check_labels(self, metric: str) -> None:
        """Raise InvalidInput, which names the metric, unless every batch has labels."""
        for number, (_, labels) in enumerate(self.batches):
            if labels is None:
                raise InvalidInput(
                    f"metric {metric!r} needs labels, batch {number} has none: give batches that end with them, or "
                    "take a metric that needs none, as fisher"
                )

    def input_quantizers(self) -> dict[str, list[Quantizer]]:
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

    def entries(self, weights: Mapping[str, Tensor], reads: Mapping[str, Tensor]) -> Tensor:
        """[..., L, C] float64 from the costs of parts, [..., formats] each; parts that are missing cost nothing.

        Args:
            weights: Layer -> what its weight costs in each weight format.
            reads: Tensor -> what it costs in each input format; the layers that read it share that equally.
        """
        readers = self.readers
        shape = next(iter({**weights, **reads}.values())).shape[:-1]
        table = torch.zeros(*shape, len(self.layers), len(self.schemes), dtype=torch.float64)
        for row, layer in enumerate(self.layers):
            for column, scheme in enumerate(self.schemes):
                if scheme.weight is not None and layer.name in weights:
                    table[..., row, column] += weights[layer.name][..., self.weight_formats.index(scheme.weight)]
                for name in layer.inputs:
                    if scheme.input is not None and name in reads:
                        part = reads[name][..., self.input_formats.index(scheme.input)]
                        table[..., row, column] += part / readers[name]
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


def check_estimate(found: Any, metric: str, inputs: MetricInput) -> None:
    """Raise InvalidInput, which names the metric, unless it answered with an estimate of the table asked for.

    Numbers themselves are checked by the table; here that they are numbers, and how many.
    """
    if not isinstance(found, Estimate):
        raise InvalidInput(
            f"metric {metric}: returned a {type(found).__name__}; return mixbit.metrics.Estimate(loss, ...)"
        )
    wanted = len(inputs.layers), len(inputs.schemes)
    for name, values in (("loss", found.loss), ("standard_error", found.standard_error)):
        if not isinstance(values, np.ndarray) or values.shape != wanted or not np.issubdtype(values.dtype, np.floating):
            what = f"{values.dtype} {list(values.shape)}" if hasattr(values, "shape") else "no array"
            raise InvalidInput(f"metric {metric}: {name} is a {type(values).__name__}, {what}; return float64 {wanted}")
        if np.isnan(values).any() or (name == "standard_error" and (values < 0).any()):
            raise InvalidInput(f"metric {metric}: {name} holds NaN or negative errors: {values[~(values >= 0)][:3]}")
    if not isinstance(found.num_samples, int) or found.num_samples < 1:
        raise InvalidInput(f"metric {metric}: num_samples is {found.num_samples!r}; return a whole number, 1 or more")


def joined(first: Estimate, second: Estimate) -> Estimate:
    """The estimate of both sets of samples."""
    count = first.num_samples + second.num_samples
    a, b = first.num_samples / count, second.num_samples / count
    error = np.hypot(a * first.standard_error, b * second.standard_error)
    return Estimate(a * first.loss + b * second.loss, error, count)
