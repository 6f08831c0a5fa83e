"""The metric `fit`: the Fisher information's trace times the power of an error."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from mixbit.core import Format, Inputs, method, track
from mixbit.graph import Layer, SampleGradients
from mixbit.metrics._input import MEAN_OVER_SAMPLES, NEEDS_LABELS, Costs, Estimate, MetricInput, averaged
from mixbit.quantization.scales import weight_mask
from mixbit.quantization.statistics import RunningMean


@method(
    MEAN_OVER_SAMPLES,
    NEEDS_LABELS,
    rank=2,
    passes=lambda *_: 2,
    aliases={"fit_w": {"of": "weights"}, "fit_a": {"of": "inputs"}, "fit_error": {"error": "real"}},
)
def fit(
    inputs: MetricInput,
    *,
    of: Literal["both", "weights", "inputs"] = "both",
    error: Literal["noise", "real"] = "noise",
    tolerance: Annotated[float, Gt(0)] | None = None,
) -> Estimate:
    """Expected increase of the loss in nats under uniform rounding noise of each weight and each input; needs labels.

    The entry of a layer in a scheme is 1/2 Tr(F_W) D_W^2 / 12 + 1/2 Tr(F_x) D_x^2 / 12, for the weight W and each
    input x that the scheme rounds. F = E_i[g_i g_i'] is the empirical Fisher information, g_i the gradient of sample
    i's loss under its label; D = (max - min) / (2^bits - 1) is the step of a format over the range of the whole
    tensor, not that of the format's own scales, and D^2 / 12 the power of noise that is uniform within a step. The
    published score has neither the 1/2, which makes it the second order of a divergence, nor the 1/12; constants
    change no ranking. A weight that a sparse format makes zero adds its own square instead of the noise's power.

    With real errors the entry is 1/2 E_i[sum_j g_ij^2 e_j^2], for a weight with e = Q(W) - W, for an input with
    e_i = Q(x_i) - x_i: the errors of the formats' own scales, clipping included, element by element.

    Sample i's loss is its part in the mean loss of its batch, times the batch size. The published code squares the
    mean gradient of a batch of B, which adds about B - 1 times the square of the mean gradient. Where samples cannot be
    told apart, the batch's gradient stands for them. A weight that several operators use takes the sum of their
    gradients; the noise of a tensor that k layers read counts 1/k in each. Unlike in the published code, the network's
    input counts as any other.

    Args:
        inputs: Its seed draws labels of the outputs that have none; for a network of one output it has no effect.
        of: Which tensors count; formats of the others cost nothing.
        error: `noise` that is uniform within a step, or the `real` rounding error.
        tolerance: Stop, after two batches or more, once every trace, weighted by the squared errors where they differ
            within a tensor, is zero or has a standard error below this share of it. None takes all batches.

    Source: A. Zandonati et al., "FIT: A Metric for Model Sensitivity", ICLR 2023; FITCompress (A. Zandonati et al.,
    arXiv 2302.07612) weights real errors of weights so.

    Returns:
        loss and standard error over samples [L, C].

    Raises:
        InvalidInput: labels that do not fit the task.
    """
    return averaged(inputs, _costs(inputs, _Scorer(inputs, of, error), tolerance), shared=True)


def _costs(inputs: MetricInput, scorer: "_Scorer", tolerance: float | None) -> Iterator[tuple[Costs, Costs]]:
    """Those of every batch, or of as many as the tolerance needs."""
    means: RunningMean | None = None
    for number, (batch, labels) in enumerate(track(inputs.batches, "measure")):
        weights, reads = scorer.of_batch(batch, labels)
        yield weights, reads
        costs = torch.cat([*weights.values(), *reads.values()], 1)
        if tolerance is None or costs.numel() == 0:
            continue
        means = means or RunningMean((costs.shape[1],))
        means.update(costs)
        mean, error, _ = means.result()
        positive = mean > 0  # costs are never negative, and one that is zero has no error
        if number > 0 and (error[positive] / mean[positive] < tolerance).all():
            break


class _Scorer:
    """Collects, in backward, half the sum of g_i^2 times power for every weight format and input format, per sample."""

    def __init__(self, inputs: MetricInput, of: str, error: str) -> None:
        self.inputs, self.real = inputs, error == "real"
        self.generator = torch.Generator().manual_seed(inputs.seed)
        self.backward = SampleGradients(
            inputs.graph,
            inputs.layers,
            self._score_weight if of != "inputs" and inputs.weight_formats else None,
            self._score_read if of != "weights" and inputs.input_formats else None,
            inputs.readers,
        )

    def of_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[Costs, Costs]:
        """[N, formats] of each weight and of each input; zeros where the loss does not depend on it.

        A sum over the batch stands in the first row.
        """
        self.count = count = batch.batch_size
        self.weights, self.reads = self.inputs.zero_costs(count, shared=True)
        loss = partial(self.inputs.task.full_loss, generator=self.generator)
        # The loss is the mean of the batch, and a sample's own gradient is wanted.
        self.backward.run_batch(batch, labels, lambda *pair: loss(*pair) * count)
        return self.weights, self.reads

    def _score_weight(self, layer: Layer, gradients: Iterator[Tensor]) -> None:
        # Again for every batch: the errors of all layers at once would be as many models as there are formats.
        powers, scores = self._weight_powers(layer), []
        for some in gradients:
            squares = some.square_().flatten(1)
            if powers.shape[1] == 1:
                squares = squares.sum(1, keepdim=True)
            scores.append(squares @ powers.to(squares).T)
        sums = torch.cat(scores)
        self.weights[layer.name][: len(sums)] = sums.double() / 2

    def _score_read(self, name: str, x: Tensor, gradient: Tensor) -> None:
        squares, histogram = gradient.square(), self.inputs.calibration.histogram(name)
        powers: Iterable[Tensor] = _noise_power(histogram.low, histogram.high, self.inputs.formats_of(name))
        if self.real:
            powers = (quantizer(x).sub_(x).square_() for quantizer in self.inputs.quantizers[name])
        for column, power in enumerate(powers):
            sums = self.inputs.by_sample(name, squares * power, self.count).flatten(1).sum(1)
            self.reads[name][: len(sums), column] = sums.double() / 2

    def _weight_powers(self, layer: Layer) -> Tensor:
        """[F, elements] squares of the weight's error in each weight format, or [F, 1] where they are one number."""
        inputs = self.inputs
        if self.real:
            return inputs.weight_errors(layer).square().flatten(1)
        weight = inputs.graph.parameter(layer.name).detach()
        low, high = torch.aminmax(weight)
        noise = _noise_power(float(low), float(high), inputs.weight_formats).unsqueeze(1)
        masks = [weight_mask(inputs.graph, layer, fmt, inputs.calibration) for fmt in inputs.weight_formats]
        if all(mask is None for mask in masks):
            return noise
        flat = weight.flatten().double()
        rows = [
            power if mask is None else torch.where(mask.flatten(), power, flat.square())
            for power, mask in zip(noise.to(flat), masks, strict=True)
        ]
        return torch.stack([row.expand(len(flat)) for row in rows])


def _noise_power(low: float, high: float, formats: Sequence[Format]) -> Tensor:
    """[F] D^2 / 12, the power of noise that is uniform within a step D = (high - low) / (2^bits - 1)."""
    steps = torch.tensor([2.0**fmt.bits - 1 for fmt in formats], dtype=torch.float64)
    return ((high - low) / steps).square() / 12
