"""Masks of sparse formats: which weights of each layer stay, chosen by their worth to the network's loss."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from mixbit.core import Batches, Format, pick, track
from mixbit.graph import Case, Layer, Operation, SampleGradients
from mixbit.quantization.affine import choose_mask, misfit
from mixbit.quantization.calibrate import Calibration, mean_output

#: What decides which weights become zero, and what each does.
IMPORTANCES = {
    "fisher": "w^2 times the mean square of the samples' gradients: the loss of zeroing the weight, to second order.",
    "magnitude": "The weight's absolute value; without data.",
}
#: The default.
IMPORTANCE = "magnitude"


def choose_masks(
    case: Case,
    calibration: Calibration,
    layers: Sequence[Layer],
    formats: Sequence[Format],
    importance: str = IMPORTANCE,
) -> None:
    """Put the masks of the layers' weights in sparse formats into the calibration; those that are there stay.

    `fisher` is the importance w^2 E_i[g_i^2], see `mean_square_gradients`: twice the KL divergence that zeroing this
    weight alone makes, to second order. Source: L. Theis et al., "Faster gaze prediction with dense networks and Fisher
    pruning", arXiv:1801.05787. It takes the case's task, batches and seed, and goes through the batches once, or not at
    all where no mask is missing. Labels are drawn from the model, except for the user's own loss.

    Raises:
        InvalidInput: an unknown name, or a loss of the user's own and batches without labels.
    """
    pick("importance", importance, IMPORTANCES)
    patterns = dict.fromkeys(fmt.sparsity for fmt in formats if fmt.sparsity)
    missing = [
        (layer, sparsity)
        for layer in layers
        for sparsity in patterns
        if (layer.name, sparsity) not in calibration.masks and misfit(layer.shape, layer.axis, sparsity) is None
    ]
    sparse = tuple(dict.fromkeys(layer for layer, _ in missing))
    squares = mean_square_gradients(case, calibration, sparse) if importance == "fisher" and sparse else {}
    for layer, sparsity in missing:
        weight = case.graph.parameter(layer.name).detach()
        worth = weight.double().square() * squares[layer.name] if squares else weight.abs()
        calibration.masks[layer.name, sparsity] = choose_mask(worth, layer.axis, sparsity)


def mean_square_gradients(case: Case, calibration: Calibration, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Layer -> E_i[g_i^2] for each of its weights, float64: the diagonal of the Fisher information.

    g_i is the gradient of sample i's part of `Task.information` by the weight of an operator whose mean output over the
    calibration data stays, as under bias correction; zeros where the loss does not depend on the weight.
    """
    graph, generator = case.graph, torch.Generator().manual_seed(case.seed)
    totals = {layer.name: torch.zeros(layer.shape, dtype=torch.float64, device=graph.device) for layer in layers}

    def add(layer: Layer, gradients: Iterator[Tensor]) -> None:
        for some in gradients:
            totals[layer.name] += some.double().square_().sum(0)

    def mean(operation: Operation, weight: Tensor) -> Tensor | None:
        return mean_output(graph, operation, calibration, weight) if operation.takes_bias else None

    backward = SampleGradients(graph, layers, add, means=mean)
    for inputs, labels in track(case.batches, "weigh weights"):
        backward.run_batch(inputs, labels, partial(case.task.information, generator=generator))
    num_samples = sum(Batches.of(case.batches).sizes)
    return {name: total / num_samples for name, total in totals.items()}
