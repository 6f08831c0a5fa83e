"""Which samples a metric runs backward: those whose outputs hold information, seen in a forward pass of all."""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import Inputs
from mixbit.graph import returned_by
from mixbit.metrics._input import MetricInput

#: The least chance of a sample to be chosen: an estimate of its information may be wrong.
LEAST_CHANCE = 0.05
#: Where more of the samples are chosen than this share, looking for them costs more than it saves.
MOST_CHOSEN = 0.6


class Selection:
    """Draws samples with chances in proportion to their information, where few hold most of it.

    A confident network's divergence comes from a few samples that it is unsure of. Sample i has the chance
    min(1, a_i / mean a), a_i an estimate of the trace of the Fisher information of its outputs, and counts 1 / chance
    times: the mean over all samples, with zeros for those not chosen, is that of their costs, and its standard error
    that of the costs and of the choice. (Horvitz and Thompson 1952, with Poisson sampling.)
    """

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs, self.generator = inputs, torch.Generator().manual_seed(inputs.seed + 1)
        # else some gradients are those of a whole batch, or nothing is drawn
        self.is_useful = None not in inputs.sample_axes.values() and inputs.task.own_loss is None
        self.total, self.count = 0.0, 0

    def of_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[list[int], Tensor]:
        """Numbers of the chosen samples, and how often each counts; all of them, once, where none stand out."""
        count = batch.batch_size
        everything = list(range(count)), torch.ones(count, dtype=torch.float64)
        information = self._information(batch, labels) if self.is_useful else None
        if information is None:
            self.is_useful = False
            return everything
        self.total, self.count = self.total + float(information.sum()), self.count + count
        if not self.total > 0:
            return everything
        chances = (information * (self.count / self.total)).clamp(LEAST_CHANCE, 1)
        self.is_useful = bool(chances.mean() <= MOST_CHOSEN)
        if not self.is_useful:
            return everything
        chosen = torch.rand(count, generator=self.generator, dtype=torch.float64) < chances
        return chosen.nonzero().flatten().tolist(), 1 / chances[chosen]

    def _information(self, batch: Inputs, labels: Tensor | None) -> Tensor | None:
        """[N] squared length of the drawn information's gradient by the outputs; None where samples are hidden."""
        with torch.no_grad():
            returned = returned_by(self.inputs.graph, batch)
        leaves, structure = pytree.tree_flatten(returned)
        with torch.enable_grad():
            outputs = [
                leaf.detach().requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
                for leaf in leaves
            ]
            floats = [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]
            returned = pytree.tree_unflatten(outputs, structure)
            value = self.inputs.task.information(returned, labels, self.generator)
            gradients = torch.autograd.grad(value, floats, allow_unused=True)
        parts = [gradient for gradient in gradients if gradient is not None]
        if not parts or any(part.shape[:1] != (batch.batch_size,) for part in parts):
            return None
        return torch.stack([part.flatten(1).square().sum(1).cpu().double() for part in parts]).sum(0)
