"""Masks of sparse formats: which weights of each layer stay, chosen by what they are worth to the network's loss."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixbit.core import Format, pick, track
from mixbit.graph.backward import Backward, SampleGradients
from mixbit.graph.graph import Case, Layer, Operation
from mixbit.quantization.calibrate import Calibration, mean_output
from mixbit.quantization.sparsity import choose_kept, fisher_weighted, magnitude, misfit

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

    `fisher` takes the case's task, batches and seed: labels are drawn from the model, except for a loss of the user's
    own. It goes through the batches once, and not at all where no mask is missing.

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
    weights = {layer: case.graph.parameter(layer.name).detach() for layer in sparse}
    squares = mean_square_gradients(case, calibration, sparse) if importance == "fisher" and sparse else {}
    for layer, sparsity in missing:
        weight = weights[layer]
        worth = fisher_weighted(weight.double(), squares[layer.name]) if squares else magnitude(weight)
        calibration.masks[layer.name, sparsity] = choose_kept(worth, layer.axis, sparsity)


def mean_square_gradients(case: Case, calibration: Calibration, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Layer -> E_i[g_i^2] for each of its weights, float64: the diagonal of the Fisher information.

    g_i is the gradient of sample i's loss under labels drawn from the model, of `Task.information`, by the weight of
    an operator whose mean output over the calibration data stays, as bias correction sees to; zeros where the loss
    does not depend on the weight.
    """
    graph = case.graph
    totals = {layer.name: torch.zeros(layer.shape, dtype=torch.float64, device=graph.device) for layer in layers}

    def add(layer: Layer, gradients: Iterator[Tensor]) -> None:
        for some in gradients:
            totals[layer.name] += some.double().square_().sum(0)

    generator = torch.Generator().manual_seed(case.seed)

    def information(returned: Any, labels: Tensor | None) -> Tensor:
        return case.task.information(returned, labels, generator)

    def mean(operation: Operation, weight: Tensor) -> Tensor | None:
        if not operation.takes_bias:
            return None
        return mean_output(graph, operation, calibration, weight)

    gradients = SampleGradients(graph, add, mean)
    backward, num_samples = Backward(graph, layers, gradients.add_use, None), 0
    for inputs, labels in track(case.batches, "weigh weights"):
        backward.run_batch(inputs, labels, information)
        gradients.finish_batch(tuple(layers))
        num_samples += inputs.batch_size
    return {name: total / num_samples for name, total in totals.items()}
