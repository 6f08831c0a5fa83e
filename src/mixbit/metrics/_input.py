"""What every metric is given and returns, what several of them share, and the metrics by name."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixbit.core import Batch, Batches, FloatArray, Format, InvalidInput, Methods, Scheme, Task
from mixbit.graph import Graph, Layer, Operation, SampleAxis, group_samples, sample_axis
from mixbit.quantization.calibrate import Calibration, mean_output
from mixbit.quantization.offers import why_not
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.scales import weight_quantizer
from mixbit.quantization.simulate import BETWEEN
from mixbit.quantization.statistics import RunningMean

#: Facts about metrics, for `method`. `measure` gives a mean over samples parts of the data in turn until plans are
#: stable, and others all of it at once; it refuses data without labels where they are needed.
MEAN_OVER_SAMPLES = "mean over samples"
NEEDS_LABELS = "needs labels"
#: It looks at weights or outputs alone, so that a loss has no effect.
IGNORES_LOSS = "ignores the loss"
#: It does not look at what the outputs mean, so that any task does.
IGNORES_TASK = "ignores the task"

#: Numbers of errors of weights that stay.
MOST_KEPT = 2**26
#: Resampled means of a mean over samples.
RESAMPLES = 32

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
        between: Tensor that no layer reads -> the layers for whose sake it is rounded with their inputs, see
            `mixbit.quantization.simulate.rounded_between`.
        zero_points: Whether activations may take zero points, see `mixbit.core.Target`.
        kept: What `weight_errors` gave for the first layers that asked, for parts of the batches too.
    """

    graph: Graph
    schemes: tuple[Scheme, ...]
    calibration: Calibration
    batches: Sequence[Batch]
    task: Task
    seed: int
    between: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zero_points: bool = True
    kept: dict[tuple[str, tuple[Format, ...]], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The graph's layers."""
        return self.graph.layers

    @property
    def sizes(self) -> Tensor:
        """[batches] samples in each."""
        return torch.tensor(Batches.of(self.batches).sizes)

    @cached_property
    def weight_formats(self) -> tuple[Format, ...]:
        """Formats of weights among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.weight for scheme in self.schemes if scheme.weight))

    @cached_property
    def input_formats(self) -> tuple[Format, ...]:
        """Formats of inputs among the schemes, each once."""
        return tuple(dict.fromkeys(scheme.input for scheme in self.schemes if scheme.input))

    @cached_property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Layer -> the tensors that are rounded where its input is: those that it reads, and those between layers."""
        return {
            layer.name: (*layer.inputs, *(name for name, owners in self.between.items() if layer.name in owners))
            for layer in self.layers
        }

    @cached_property
    def readers(self) -> dict[str, int]:
        """Tensor that is rounded for layers -> for how many."""
        return dict(Counter(name for names in self.reads.values() for name in names))

    def formats_of(self, name: str) -> tuple[Format, ...]:
        """In which formats a tensor is rounded where layers' inputs are in each of the input formats."""
        return (BETWEEN,) * len(self.input_formats) if name in self.between else self.input_formats

    @cached_property
    def quantizers(self) -> dict[str, list[Quantizer]]:
        """Tensor that is rounded for layers -> its quantizer in each of the input formats."""
        calibration, device = self.calibration, self.graph.device
        return {
            name: [
                calibration.quantizer(name, fmt, device, zero_points=self.zero_points) for fmt in self.formats_of(name)
            ]
            for name in self.readers
        }

    @cached_property
    def sample_axes(self) -> dict[str, SampleAxis | None]:
        """Operator's node, and tensor that layers read -> where it keeps its samples."""
        return {name: sample_axis(self.graph.node(name)) for name in (*self.readers, *self.graph.operations)}

    def weight_quantizers(self, layer: Layer, rows: Tensor | None = None) -> list[nn.Module]:
        """The quantizer of the layer's weight in each weight format; one that does not fit it changes nothing.

        Args:
            layer: One of `layers`.
            rows: Numbers of the wanted rows of an embedding's table; all where None.
        """
        quantizers: list[nn.Module] = []
        for fmt in self.weight_formats:
            if why_not(layer, Scheme(fmt)) is not None:
                quantizers.append(nn.Identity())
                continue
            quantizer = weight_quantizer(self.graph, layer, fmt, self.calibration)
            if rows is not None:
                factors = (quantizer.scale, quantizer.zero_point)
                scale, zero_point = (factor if len(factor) == 1 else factor[rows] for factor in factors)
                mask = None if quantizer.mask is None else quantizer.mask[rows]
                quantizer = Quantizer(layer.name, fmt, layer.axis, scale, zero_point, mask)
            quantizers.append(quantizer)
        return quantizers

    def weight_errors(self, layer: Layer, rows: Tensor | None = None) -> Tensor:
        """[formats, *weight] what each of the `weight_quantizers` adds to the layer's weight, or to its rows.

        Those of whole weights may be read again: they are not to be changed.
        """
        key = layer.name, self.weight_formats
        if rows is None and key in self.kept:
            return self.kept[key]
        weight = self.graph.parameter(layer.name).detach()
        weight = weight if rows is None else weight[rows]
        errors = weight.new_empty(len(self.weight_formats), *weight.shape)
        for error, quantizer in zip(errors, self.weight_quantizers(layer, rows), strict=True):
            torch.sub(quantizer(weight), weight, out=error)
        if rows is None and errors.numel() + sum(map(Tensor.numel, self.kept.values())) <= MOST_KEPT:
            self.kept[key] = errors
        return errors

    def mean_errors(self, layer: Layer, errors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
        """Operator's node -> its mean output for each error of the weight, shaped to be subtracted from the output.

        Bias correction subtracts it; operators whose bias cannot are left out.
        """
        means = {}
        for operation in layer.operations:
            if operation.takes_bias:
                outputs = (mean_output(self.graph, operation, self.calibration, error) for error in errors)
                dimensions = len(self.graph.shapes[operation.node])
                means[operation.node] = [operation.along_channels(output, dimensions) for output in outputs]
        return means

    def output_errors(
        self, layer: Layer, operation: Operation, x: Tensor, shifts: Sequence[Tensor] | None = None
    ) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
        """What rounding adds to the output of one operator that reads x: in each weight format, and each input format.

        op(x, Q(W) - W), less its shift where there are any; and op(Q(x) - x, W), or nothing where x are indices.
        """
        graph, weight = self.graph, self.graph.parameter(layer.name).detach()
        quantizers = [] if operation.input is None else self.quantizers[operation.input]
        outputs = (graph.run(operation, x, error) for error in self.weight_errors(layer))
        if shifts is not None:
            outputs = (output - shift for output, shift in zip(outputs, shifts, strict=True))
        return outputs, (graph.run(operation, quantizer(x) - x, weight) for quantizer in quantizers)

    def by_sample(self, node: str, x: Tensor, count: int) -> Tensor:
        """[count, rows, ...] of a tensor with samples where the node has them; [1, rows, ...] if that does not show."""
        return group_samples(self.sample_axes[node], x, count)

    def zero_costs(self, *shape: int, shared: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Costs of weights and of inputs to add to: zeros [*shape, formats], float64, by the names of `entries`."""

        def zeros(names: Iterable[str], formats: Sequence[Format]) -> dict[str, Tensor]:
            return {name: torch.zeros(*shape, len(formats), dtype=torch.float64) for name in names}

        layers = [layer.name for layer in self.layers]
        return zeros(layers, self.weight_formats), zeros(self.readers if shared else layers, self.input_formats)

    def entries(self, weights: Costs, reads: Costs, *, shared: bool) -> Tensor:
        """[..., L, C] float64 from the costs of parts.

        Args:
            weights: Layer -> what its weight costs in each weight format.
            reads: Layer -> what rounding its inputs costs it alone in each input format; where `shared`, tensor that
                is rounded for layers -> what that costs, which they share equally.
            shared: Whether inputs go by tensors.
        """
        weight_columns = [(*self.weight_formats, None).index(scheme.weight) for scheme in self.schemes]
        input_columns = [(*self.input_formats, None).index(scheme.input) for scheme in self.schemes]
        shape = weights[self.layers[0].name].shape[:-1]
        table = torch.zeros(*shape, len(self.layers), len(self.schemes), dtype=torch.float64)
        for row, layer in enumerate(self.layers):
            names = self.reads[layer.name] if shared else ()
            parts = [reads[name] / self.readers[name] for name in names] if shared else [reads[layer.name]]
            costs = [(weights[layer.name], weight_columns), *((part, input_columns) for part in parts)]
            for part, columns in costs:
                table[..., row, :] += functional.pad(part, (0, 1))[..., columns]  # the new column is that of float
        return table


@dataclass(frozen=True)
class Estimate:
    """A metric's answer.

    Attributes:
        loss: [L, C] loss increase.
        standard_error: [L, C] of the same unit.
        num_samples: Samples behind each entry.
        trace: [L] the Hessian's average trace of each weight, where the metric estimates it.
        resampled: [R, L, C] the loss of samples drawn again from the same ones (Efron 1979, the bootstrap), where the
            metric is a mean over samples: how entries vary together with the data.
    """

    loss: FloatArray
    standard_error: FloatArray
    num_samples: int
    trace: FloatArray | None = None
    resampled: FloatArray | None = None


def check_estimate(answer: Any, metric: str, inputs: MetricInput) -> None:
    """Raise InvalidInput, which names the metric, unless it returned numbers of the table's shape."""
    if not isinstance(answer, Estimate):
        raise InvalidInput(
            f"metric {metric}: returned a {type(answer).__name__}; return mixbit.metrics.Estimate(loss, ...)"
        )
    wanted = len(inputs.layers), len(inputs.schemes)
    for name in ("loss", "standard_error"):
        values: Any = getattr(answer, name)
        if not isinstance(values, np.ndarray) or values.shape != wanted or not np.issubdtype(values.dtype, np.floating):
            what = f"{values.dtype} {list(values.shape)}" if hasattr(values, "shape") else "no array"
            raise InvalidInput(f"metric {metric}: {name} is a {type(values).__name__}, {what}; return float64 {wanted}")
        if np.isnan(values).any() or (name == "standard_error" and (values < 0).any()):
            raise InvalidInput(f"metric {metric}: {name} holds NaN or negative errors: {values[~(values >= 0)][:3]}")
    if not isinstance(answer.num_samples, int) or answer.num_samples < 1:
        raise InvalidInput(f"metric {metric}: num_samples is {answer.num_samples!r}; return a whole number, 1 or more")


def joined(first: Estimate, second: Estimate) -> Estimate:
    """The estimate of both sets of samples: their mean, and the standard error as of all of them together.

    With n, m samples of means a, b and sums of squared deviations A, B, that sum is A + B + (a - b)^2 nm / (n + m) for
    all (T. Chan, G. Golub, R. LeVeque 1979), and the standard error^2 of k samples is their sum / (k (k - 1)).
    """
    n, m = first.num_samples, second.num_samples
    share = m / (n + m)
    shift = second.loss - first.loss
    squares = sum(np.nan_to_num(e.standard_error, posinf=0) ** 2 * k * (k - 1) for e, k in ((first, n), (second, m)))
    error = np.sqrt((squares + shift**2 * n * share) / ((n + m) * (n + m - 1)))
    resampled = None
    if first.resampled is not None and second.resampled is not None:
        resampled = first.resampled + share * (second.resampled - first.resampled)
    return Estimate(first.loss + share * shift, error, n + m, resampled=resampled)


def averaged(inputs: MetricInput, costs: Iterable[tuple[Costs, Costs]], *, shared: bool) -> Estimate:
    """Mean over samples, with its standard error, of `MetricInput.entries` of every batch's costs [N, formats].

    In a resampled mean each sample counts as often as a Poisson number with mean 1 says (Hanley and MacGibbon 2006).
    """
    shape = len(inputs.layers), len(inputs.schemes)
    entries, sums = RunningMean(shape), torch.zeros(RESAMPLES, *shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(inputs.seed)
    for weights, reads in costs:
        rows = inputs.entries(weights, reads, shared=shared)
        entries.update(rows)
        times = torch.poisson(torch.ones(RESAMPLES, len(rows), dtype=torch.float64), generator)
        sums += torch.tensordot(times, rows, 1)
    loss, error, count = entries.result()
    return Estimate(loss, error, count, resampled=(sums / count).numpy())


def batch_means(rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over samples, and its standard error, from means of batches.

    With s_b the share of batch b in the samples, mean = sum s_b r_b and, for B batches, error^2 =
    B / (B - 1) sum s_b^2 (r_b - mean)^2; inf from a single batch. Rows are [B, ...], sizes [B].
    """
    count = len(rows)
    shares = (sizes.double() / sizes.sum()).reshape(-1, *[1] * (rows.ndim - 1))
    mean = (shares * rows).sum(0)
    if count < 2:
        return mean, torch.full_like(mean, torch.inf)
    squares = (shares * (rows - mean)).square().sum(0)
    return mean, (squares * count / (count - 1)).sqrt()


Metric = Callable[[MetricInput], Estimate]
METRICS: Methods[Metric] = Methods("metric", "mixbit.metrics")
