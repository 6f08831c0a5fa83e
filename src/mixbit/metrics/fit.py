"""The metrics `fit`, `fit_w`, `fit_a` and `fit_error`: the Fisher information's trace times the power of an error."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn import functional

from mixbit.core import Format, method, track
from mixbit.core.batches import Inputs
from mixbit.graph.backward import Backward, SampleGradients
from mixbit.graph.graph import Layer
from mixbit.graph.sample_axis import group_samples, sample_axis
from mixbit.metrics._input import MEAN_OVER_SAMPLES, Estimate, MetricInput
from mixbit.quantization.scales import weight_mask
from mixbit.quantization.statistics import RunningMean

#: Layer -> [F, elements] squares of the weight's error in each weight format, or [F, 1] where they are one number.
WeightPowers = Callable[[Layer], Tensor]
#: (name, value of the tensor) -> for each input format the square of the error, of the tensor's shape or one number.
InputPowers = Callable[[str, Tensor], list[Tensor]]


@method(MEAN_OVER_SAMPLES, rank=2)
def fit(inputs: MetricInput, *, tolerance: Annotated[float, Gt(0)] | None = None) -> Estimate:
    """Expected increase of the loss in nats under uniform rounding noise of each weight and each input; needs labels.

    The entry of a layer in a scheme is 1/2 Tr(F_W) D_W^2 / 12 + 1/2 Tr(F_x) D_x^2 / 12, for the weight W and each
    input x that the scheme rounds. F = E_i[g_i g_i'] is the empirical Fisher information, g_i the gradient of sample
    i's loss under its label; D = (max - min) / (2^bits - 1) is the step of a format over the range of the whole
    tensor, whatever the format's own scales are, and D^2 / 12 the power of noise that is uniform within a step. The
    published score has neither the 1/2, which makes it the second order of a divergence, nor the 1/12; constants
    change no ranking. A weight that a sparse format makes zero adds its own square in place of the noise's power.

    Gradients are those of single samples. The published code squares the mean gradient of a batch of B, which adds
    about B - 1 times the square of the mean gradient. Only where samples cannot be told apart, as in a position
    embedding that all share, the batch's gradient stands for them. A weight that several operators use takes the sum
    of their gradients; the noise of a tensor that k layers read counts 1/k in each. Unlike in the published code, the
    network's input counts as any other. Sample i's loss is its part in the mean loss of its batch, times the batch
    size.

    Args:
        inputs: Its batches need labels; its seed has no effect, since nothing is drawn.
        tolerance: Stop once every trace has a standard error below this share of it, after two batches or more; a
            trace of zero counts as known, and that of a sparse format is weighted by what each weight adds. All
            batches where None.

    Source: A. Zandonati et al., "FIT: A Metric for Model Sensitivity", ICLR 2023.

    Returns:
        loss and standard error over samples [L, C].

    Raises:
        InvalidInput: a batch without labels, or with labels that do not fit; a tolerance that is not positive.
    """
    return _estimate(inputs, "fit", _noise_of_weights(inputs), _noise_of_inputs(inputs), tolerance)


@method(MEAN_OVER_SAMPLES, rank=2)
def fit_w(inputs: MetricInput, *, tolerance: Annotated[float, Gt(0)] | None = None) -> Estimate:
    """The weights' part of `fit`: expected increase of the loss under uniform noise of each weight; needs labels.

    Args:
        inputs: As for `fit`.
        tolerance: As for `fit`.

    Returns:
        loss and standard error over samples [L, C]; formats of inputs contribute nothing.

    Raises:
        InvalidInput: as for `fit`.
    """
    return _estimate(inputs, "fit_w", _noise_of_weights(inputs), None, tolerance)


@method(MEAN_OVER_SAMPLES, rank=2)
def fit_a(inputs: MetricInput, *, tolerance: Annotated[float, Gt(0)] | None = None) -> Estimate:
    """The inputs' part of `fit`: expected increase of the loss under uniform noise of each input; needs labels.

    Args:
        inputs: As for `fit`.
        tolerance: As for `fit`.

    Returns:
        loss and standard error over samples [L, C]; formats of weights contribute nothing.

    Raises:
        InvalidInput: as for `fit`.
    """
    return _estimate(inputs, "fit_a", None, _noise_of_inputs(inputs), tolerance)


@method(MEAN_OVER_SAMPLES, rank=2)
def fit_error(inputs: MetricInput, *, tolerance: Annotated[float, Gt(0)] | None = None) -> Estimate:
    """The `fit` of real rounding errors: squared gradients times squared errors, element by element; needs labels.

    The entry is 1/2 E_i[sum_j g_ij^2 e_j^2], for a weight with e = Q(W) - W, for an input with e_i = Q(x_i) - x_i:
    the errors of the formats' own scales, clipping included, in place of the noise of `fit`. What holds there of
    gradients, sharing and constants holds here.

    Args:
        inputs: As for `fit`.
        tolerance: As for `fit`, for the traces weighted by the squared errors.

    Source: as for `fit`; FITCompress (A. Zandonati et al., arXiv 2302.07612) weights errors of weights so.

    Returns:
        loss and standard error over samples [L, C].

    Raises:
        InvalidInput: as for `fit`.
    """
    return _estimate(inputs, "fit_error", _errors_of_weights(inputs), _errors_of_inputs(inputs), tolerance)


def _noise_power(low: float, high: float, formats: Sequence[Format]) -> Tensor:
    """[F] D^2 / 12, the power of noise that is uniform within a step D = (high - low) / (2^bits - 1)."""
    steps = torch.tensor([2.0**fmt.bits - 1 for fmt in formats], dtype=torch.float64)
    return ((high - low) / steps).square() / 12


def _noise_of_weights(inputs: MetricInput) -> WeightPowers:
    graph, formats = inputs.graph, inputs.weight_formats

    def powers(layer: Layer) -> Tensor:
        weight = graph.parameter(layer.name).detach()
        low, high = torch.aminmax(weight)
        noise = _noise_power(float(low), float(high), formats).unsqueeze(1)
        masks = [weight_mask(graph, layer, fmt, inputs.calibration) for fmt in formats]
        if all(mask is None for mask in masks):
            return noise
        flat = weight.flatten().double()
        rows = [
            one if mask is None else torch.where(mask.flatten(), one, flat.square())
            for one, mask in zip(noise.to(flat), masks, strict=True)
        ]
        return torch.stack([row.expand(len(flat)) for row in rows])

    return powers


def _errors_of_weights(inputs: MetricInput) -> WeightPowers:
    def powers(layer: Layer) -> Tensor:  # anew for every batch: all layers' at once would be as many models as formats
        return torch.stack(inputs.weight_errors(layer)).square_().flatten(1)

    return powers


def _noise_of_inputs(inputs: MetricInput) -> InputPowers:
    histograms = inputs.calibration.histograms

    def powers(name: str, _: Tensor) -> list[Tensor]:
        return list(_noise_power(histograms[name].low, histograms[name].high, inputs.input_formats))

    return powers


def _errors_of_inputs(inputs: MetricInput) -> InputPowers:
    quantizers = inputs.input_quantizers()

    def powers(name: str, x: Tensor) -> list[Tensor]:
        return [quantizer(x).sub_(x).square_() for quantizer in quantizers[name]]

    return powers


def _estimate(
    inputs: MetricInput,
    metric: str,
    weight_powers: WeightPowers | None,
    input_powers: InputPowers | None,
    tolerance: float | None,
) -> Estimate:
    """Mean of the samples' costs, over all batches or until the tolerance holds."""
    inputs.check_labels(metric)
    scorer = _Scorer(inputs, weight_powers, input_powers)
    entries = RunningMean((len(inputs.layers), len(inputs.schemes)))
    parts: RunningMean | None = None
    for number, (batch, labels) in enumerate(track(inputs.batches, "measure")):
        weights, reads = scorer.run_batch(batch, labels)
        if not weights and not reads:
            entries.update(torch.zeros(batch.batch_size, *entries.mean.shape, dtype=torch.float64))
            continue
        entries.update(inputs.entries(weights, reads))
        costs = torch.cat([*weights.values(), *reads.values()], 1)
        parts = parts or RunningMean((costs.shape[1],))
        parts.update(costs)
        if tolerance is not None and number > 0 and _relative_error(parts) < tolerance:
            break
    return Estimate(*entries.result())


def _relative_error(parts: RunningMean) -> float:
    """The largest standard error relative to its mean; a mean of zero, of costs that are never negative, has none."""
    mean, error, _ = parts.result()
    return max((float(one / of) for one, of in zip(error, mean, strict=True) if of > 0), default=0.0)


class _Scorer:
    """Collects, in backward, half the sum of g_i^2 times power for every weight format and input format, per sample."""

    def __init__(
        self, inputs: MetricInput, weight_powers: WeightPowers | None, input_powers: InputPowers | None
    ) -> None:
        self.inputs = inputs
        self.weight_powers = weight_powers if inputs.weight_formats else None
        self.input_powers = input_powers if inputs.input_formats else None
        self.gradients = SampleGradients(inputs.graph, self._score_weight)
        self.backward = Backward(
            inputs.graph,
            inputs.layers,
            self.gradients.add_use if self.weight_powers else None,
            self._score_input if self.input_powers else None,
        )
        #: Layer or tensor -> [N, formats], or [1, formats] where samples cannot be told apart.
        self.weight_scores: dict[str, Tensor] = {}
        self.input_scores: dict[str, Tensor] = {}

    def run_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """[N, formats] of each weight and of each input; zeros where the loss does not depend on it."""
        inputs, count = self.inputs, batch.batch_size
        layers = [layer.name for layer in inputs.layers] if self.weight_powers else ()
        reads = inputs.readers if self.input_powers else ()
        self.weight_scores = {name: torch.zeros(1, len(inputs.weight_formats)) for name in layers}
        self.input_scores = {name: torch.zeros(1, len(inputs.input_formats)) for name in reads}
        self.backward.run_batch(batch, labels, lambda returned, labels: inputs.task.loss(returned, labels) * count)
        self.gradients.finish_batch(inputs.layers)
        weights = {name: _halves(scores, count) for name, scores in self.weight_scores.items()}
        return weights, {name: _halves(scores, count) for name, scores in self.input_scores.items()}

    def _score_weight(self, layer: Layer, gradients: Iterator[Tensor]) -> None:
        if self.weight_powers is None:
            return
        powers, scores = self.weight_powers(layer), []
        for some in gradients:
            squares = some.square_().flatten(1)
            if powers.shape[1] == 1:
                squares = squares.sum(1, keepdim=True)
            scores.append(squares @ powers.to(squares).T)
        self.weight_scores[layer.name] = torch.cat(scores)

    def _score_input(self, name: str, x: Tensor, gradient: Tensor) -> None:
        if self.input_powers is None:
            return
        axis, squares = sample_axis(self.inputs.graph.node(name)), gradient.square()
        scores = [group_samples(axis, squares * power).flatten(1).sum(1) for power in self.input_powers(name, x)]
        self.input_scores[name] = torch.stack(scores, 1)


def _halves(scores: Tensor, batch_size: int) -> Tensor:
    """1/2 [N, formats]; a sum over the batch stands in the first row, zeros in the others."""
    return functional.pad(scores.cpu().double() / 2, (0, 0, 0, batch_size - len(scores)))
