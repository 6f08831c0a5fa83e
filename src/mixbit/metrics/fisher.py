"""The metric `fisher`: predicted KL divergence from per-sample gradients and the real quantization error."""

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor

from mixbit.core import Inputs, labels_at, method, track
from mixbit.graph import LAYER_BY_LAYER, Backward, Layer, Operation, convolution_gradients
from mixbit.metrics._input import MEAN_OVER_SAMPLES, Costs, Estimate, MetricInput, averaged
from mixbit.metrics._selection import Selection

#: Numbers of gradients held at a time, and of an activation that fit into a core's cache.
MOST_GRADIENTS, IN_CACHE = 2**22, 2**17
#: Channels whose gradients are one product of matrices: more leave the cache, fewer make it slow.
MOST_CHANNELS = 96


@method(MEAN_OVER_SAMPLES, LAYER_BY_LAYER, rank=1, passes=lambda _, choices: 2.5 + 0.5 * choices)
def fisher(inputs: MetricInput) -> Estimate:
    """Expected KL divergence in nats that each choice makes, to second order, for weights and inputs alike.

    For sample i with loss l_i, labels drawn from the model, and a perturbation d, KL ~ 1/2 E_i[(g_i . d)^2] with
    g_i = dl_i/dd. An operator is linear in its weight, so g_i . dW = <dl_i/dout, op(x_i, dW)>; for an activation
    g_i . dx = <dl_i/dx, dx_i>. One forward, one backward to the activations, and one more run of each operator per
    weight format give every entry. dW is the real rounding error, less the mean of op(., dW) over the calibration data,
    as bias correction does in the deployed network. The error of a tensor that k layers read counts 1/k in each, since
    they take the same input format. A tensor that all samples share, and that more than arithmetic reads, has one
    gradient for the batch; draws are independent, so that its square estimates the sum over samples.

    Source: A. Zandonati et al., "FIT: A Metric for Model Sensitivity", ICLR 2023 (KL ~ 1/2 d'Id), here per sample, with
    real errors and bias correction.

    Returns:
        loss and standard error [L, C].
    """
    scorer = _Scorer(inputs)
    return averaged(inputs, (scorer.of_batch(*pair) for pair in track(inputs.batches, "measure")), shared=True)


class _Scorer:
    """Collects, in backward, g_i . d of every weight format and input format per sample."""

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs = inputs
        self.generator = torch.Generator().manual_seed(inputs.seed)
        self.selection = Selection(inputs)
        self.shifts: dict[str, list[Tensor]] = {}
        for layer in inputs.layers if inputs.weight_formats else ():
            self.shifts |= inputs.mean_errors(layer, inputs.weight_errors(layer))
        self.backward = Backward(
            inputs.graph,
            inputs.layers,
            self._score_weight if inputs.weight_formats else None,
            self._score_read if inputs.input_formats else None,
            inputs.readers,
        )

    def of_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[Costs, Costs]:
        """[N, formats] of 1/2 (g_i . d)^2 of each weight and of each tensor that the loss depends on."""
        #: Layer or tensor -> [N, formats] or, where samples cannot be told apart, [1, formats], once per operation.
        self.weight_scores: dict[str, list[Tensor]] = defaultdict(list)
        self.read_scores: dict[str, list[Tensor]] = defaultdict(list)
        parts = self.inputs.zero_costs(batch.batch_size, shared=True)
        chosen, times = self.selection.of_batch(batch, labels)
        if not chosen:
            return parts
        if chosen != [*range(batch.batch_size)]:
            batch, labels = batch.rows(chosen), labels_at(labels, chosen)
        self.count = len(chosen)
        self.backward.run_batch(batch, labels, partial(self.inputs.task.information, generator=self.generator))
        for costs, scores in zip(parts, (self.weight_scores, self.read_scores), strict=True):
            for name, sums in scores.items():
                rows = [part.cpu().double() for part in sums]
                if any(len(part) != self.count for part in rows):
                    rows = [part.sum(0, keepdim=True) for part in rows]  # one square, for the batch
                squares = torch.stack(rows).sum(0).square() / 2
                costs[name].index_add_(0, torch.tensor(chosen[: len(squares)]), squares * times[: len(squares), None])
        return parts

    def _score_read(self, name: str, x: Tensor, gradient: Tensor) -> None:
        slopes, dots = self.inputs.by_sample(name, gradient, self.count), []
        for quantizer in self.inputs.quantizers[name]:
            if quantizer.format.dynamic:  # its range is that of all that it is given
                pairs = [(self.inputs.by_sample(name, quantizer(x).sub_(x), self.count), slopes)]
            else:
                size = max(1, IN_CACHE * len(slopes) // max(1, x.numel()))
                few = zip(self.inputs.by_sample(name, x, self.count).split(size), slopes.split(size), strict=True)
                pairs = ((quantizer(some).sub_(some), slope) for some, slope in few)
            dots.append(torch.cat([error.mul_(slope).flatten(1).sum(1) for error, slope in pairs]))
        self.read_scores[name].append(torch.stack(dots, 1))

    def _score_weight(self, layer: Layer, operation: Operation, x: Tensor, gradient: Tensor) -> None:
        """[N, formats] of <gradient_i, op(x_i, dW) - its mean>; [1, formats] where samples cannot be told apart."""
        x, gradient = (self.backward.by_sample(operation.node, tensor) for tensor in (x, gradient))
        if operation.kind.input is None:
            rows, places = x.unique(return_inverse=True)  # a table is long, and a batch reads little of it
            errors = self.inputs.weight_errors(layer, rows)
            scores = torch.stack([(gradient * error[places]).flatten(1).sum(1) for error in errors], 1)
        elif operation.channels_last:
            x, gradient = x.flatten(1, -2), gradient.flatten(1, -2)
            scores = _dot_with_matrices(x, gradient, self.inputs.weight_errors(layer).movedim(layer.axis + 1, 1))
        else:
            weight = self.inputs.graph.parameter(layer.name).detach()
            gradients = convolution_gradients(self.inputs.graph.node(operation.node), weight, x, gradient)
            errors = self.inputs.weight_errors(layer).flatten(1).T
            scores = torch.cat([some.flatten(1) @ errors for some in gradients])
        shifts = self.shifts.get(operation.node)
        if shifts is not None:
            sums = gradient.sum(1) if operation.channels_last else gradient.flatten(3).sum((1, 3))
            scores = scores - sums @ torch.stack(shifts).flatten(1).T
        self.weight_scores[layer.name].append(scores)


def _dot_with_matrices(x: Tensor, gradient: Tensor, errors: Tensor) -> Tensor:
    """[N, F] of <gradient_i, x_i @ error'> for x [N, T, K], gradient [N, T, C] and errors [F, C, K].

    Equal to <gradient_i' @ x_i, error>, which is one product of matrices instead of F where T is large: for some
    channels of all samples at a time.
    """
    (samples, positions, columns), count = x.shape, len(errors)
    if positions > count:
        scores, size = x.new_zeros(samples, count), min(MOST_CHANNELS, max(1, MOST_GRADIENTS // (samples * columns)))
        by_channel = gradient.mT.contiguous().split(size, 1)
        for slopes, some in zip(by_channel, errors.split(size, 1), strict=True):
            scores += (slopes @ x).flatten(1) @ some.flatten(1).T
        return scores
    scores, size = x.new_zeros(samples, count), max(1, IN_CACHE // (count * max(columns, samples * positions)))
    for slopes, some in zip(gradient.split(size, 2), errors.split(size, 1), strict=True):
        outputs = (x.flatten(0, 1) @ some.flatten(0, 1).T).reshape(samples, positions, count, -1)
        scores += (outputs * slopes.unsqueeze(2)).sum((1, 3))
    return scores
