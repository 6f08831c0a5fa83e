"""The metric `hawq`: the average trace of the Hessian, by Hutchinson's estimator, times the squared error."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mixbit.core import Inputs, InvalidInput, method, track
from mixbit.metrics._input import NEEDS_LABELS, Estimate, MetricInput
from mixbit.quantization.statistics import RunningMean

Rule = Literal["standard_error", "nncf"]
#: Tolerance of each rule where none is given: about what 50 vectors reach on ResNet-20, and NNCF's own.
TOLERANCES: dict[Rule, float] = {"standard_error": 0.1, "nncf": 1e-4}
#: Vectors before a standard error is believed: of fewer it is itself too uncertain.
FEWEST_VECTORS = 5


@method(NEEDS_LABELS, rank=3, passes=lambda *_: 100)
def hawq(
    inputs: MetricInput,
    *,
    vectors: Annotated[int, Ge(2)] = 50,
    rule: Rule = "standard_error",
    tolerance: Annotated[float, Gt(0)] | None = None,
) -> Estimate:
    """Expected increase of the loss in nats from the Hessian's average trace of each weight; needs labels.

    The entry of a weight W of n elements is 1/2 Tr(H_W) / n |Q(W) - W|^2, H_W the block of the Hessian of the mean
    loss over all batches: the second order of the loss for an error without direction. The published score lacks the
    1/2, which changes no ranking. Tr(H_W) is the mean of <v_W, (H v)_W> over vectors v of random signs, drawn for all
    weights together; H v is the gradient of <gradient, v>. Each vector takes one pass over the batches, one in memory
    at a time. An entry of a negative trace, which would reward an error, becomes zero. Formats of inputs cost nothing.

    With T the sum of the layers' average traces, the rules stop early: `standard_error` once that of T is below the
    tolerance times |T|, after FEWEST_VECTORS or more; `nncf` once |T_k - T_(k-1)| < tolerance (|T_(k-1)| + 1e-6) for
    the means of k and k - 1 vectors, which says how little one vector changes the mean, not how wrong it is.

    Args:
        inputs: Its seed draws the vectors.
        vectors: How many to draw at most; two or more.
        rule: When to stop before that.
        tolerance: Of the rule; where None, TOLERANCES of it.

    Source: Z. Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", NeurIPS 2020; the
    rule `nncf` is that of Intel's NNCF 2.

    Returns:
        loss and its standard error over vectors [L, C], which says nothing of how samples differ; trace [L].

    Raises:
        InvalidInput: labels that do not fit the task, an operator without second derivatives, or a wrong option.
    """
    tolerance = TOLERANCES[rule] if tolerance is None else tolerance
    num_samples = int(inputs.sizes.sum())
    if not inputs.weight_formats:
        nothing = np.zeros((len(inputs.layers), len(inputs.schemes)))
        return Estimate(nothing, nothing.copy(), num_samples)
    traces, totals = RunningMean((len(inputs.layers),)), []
    generator = torch.Generator().manual_seed(inputs.seed)
    for _ in track(range(vectors), "measure"):
        drawn = _average_traces(inputs, num_samples, generator)
        traces.update(drawn.unsqueeze(0))
        totals.append(float(drawn.sum()))
        if _settled(totals, rule, tolerance):
            break
    mean, error, _ = traces.result()
    weights, reads = inputs.zero_costs(2)
    for layer, *factors in zip(inputs.layers, mean, error, strict=True):
        powers = torch.stack([change.double().square().sum().cpu() for change in inputs.weight_errors(layer)])
        weights[layer.name] = torch.stack([powers * float(factor) / 2 for factor in factors])
    loss, standard_error = inputs.entries(weights, reads, shared=False).numpy()
    return Estimate(loss.clip(min=0), standard_error, num_samples, trace=mean)


def _settled(totals: Sequence[float], rule: Rule, tolerance: float) -> bool:
    """Whether the mean of what each vector gave meets the rule."""
    if rule == "nncf":
        if len(totals) < 2:
            return False
        now, before = float(np.mean(totals)), float(np.mean(totals[:-1]))
        return abs(now - before) < tolerance * (abs(before) + 1e-6)
    if len(totals) < FEWEST_VECTORS:
        return False
    return float(np.std(totals, ddof=1)) / len(totals) ** 0.5 < tolerance * abs(float(np.mean(totals)))


def _average_traces(inputs: MetricInput, num_samples: int, generator: torch.Generator) -> Tensor:
    """[L] of <v_W, (H v)_W> / n for one vector of random signs."""
    weights = {layer.name: inputs.graph.parameter(layer.name).detach().requires_grad_() for layer in inputs.layers}
    signs = [(torch.randint(0, 2, w.shape, generator=generator) * 2 - 1).to(w) for w in weights.values()]
    traces = torch.zeros(len(weights), dtype=torch.float64)
    for batch, labels in inputs.batches:
        products = _times_hessian(inputs, weights, batch, labels, signs)
        dots = [(sign * product).double().mean().cpu() for sign, product in zip(signs, products, strict=True)]
        traces += torch.stack(dots) * (batch.batch_size / num_samples)
    return traces


def _times_hessian(
    inputs: MetricInput, weights: dict[str, Tensor], batch: Inputs, labels: Tensor | None, signs: list[Tensor]
) -> Sequence[Tensor]:
    """H v of the batch's mean loss, by weight: the gradient of <gradient, v>."""
    graph, leaves = inputs.graph, list(weights.values())
    batch = batch.to(graph.device)
    own = {id(graph.parameter(name)): weight for name, weight in weights.items()}
    parameters = graph.module.named_parameters()  # each once, by one of its names, as functional_call wants them
    tensors = {name: own.get(id(parameter), parameter.detach()) for name, parameter in parameters}
    # the fused kernels of attention have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        returned = torch.func.functional_call(graph.module, tensors, batch.args, dict(batch.kwargs))
        loss = inputs.task.full_loss(returned, labels, torch.Generator().manual_seed(inputs.seed))
        try:
            slopes = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            dot = torch.stack([(slope * sign).sum() for slope, sign in zip(slopes, signs, strict=True)]).sum()
            if not dot.requires_grad:  # the loss is linear in every weight
                return [torch.zeros_like(leaf) for leaf in leaves]
            return torch.autograd.grad(dot, leaves, materialize_grads=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise InvalidInput(f"metric hawq: the model has no second derivatives: {error}; use another") from error
