"""Which samples a metric runs backward: those whose outputs hold information, seen in a forward pass of all."""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core import Inputs
from mixbit.graph import returned_by
from mixbit.metrics._input import MetricInput

#: The least runs of a sample that are expected: an estimate of its information may be wrong.
LEAST_RUNS = 0.05
#: Where more of the samples would be run once than this share, looking for them costs more than it saves.
MOST_CHOSEN = 0.6
#: Runs, as a share of the samples, that are given out in proportion to information alone.
MORE_RUNS = 0.25


class Selection:
    """Draws samples in proportion to their information, some several times, where few hold most of it.

    A confident network's divergence comes from a few samples that it is unsure of. With a_i an estimate of the trace of
    the Fisher information of sample i's outputs, and r_i = a_i / mean a, max(min(1, r_i), MORE_RUNS r_i) runs of it are
    expected, each with a gradient drawn anew, and each counts as often as makes the mean over all samples, with zeros
    for those not chosen, that of their costs; its standard error is that of the costs, the choice and the draws. How
    much a sample's cost (g . d)^2 varies with the draw is in proportion to a_i, and then the sum varies least where
    the numbers of runs are so too (Neyman 1934); the first of the two bounds how often one run counts.
    """

    def __init__(self, inputs: MetricInput) -> None:
        self.inputs, self.generator = inputs, torch.Generator().manual_seed(inputs.seed + 1)
        # else some gradients are those of a whole batch, or nothing is drawn
        self.is_useful = None not in inputs.sample_axes.values() and inputs.task.own_loss is None
        self.total, self.count = 0.0, 0

    def of_batch(self, batch: Inputs, labels: Tensor | None) -> tuple[list[int], Tensor]:
        """Numbers of the samples to run, and how often each run counts; all of them, once, where none stand out."""
        count = batch.batch_size
        everything = list(range(count)), torch.ones(count, dtype=torch.float64)
        information = self._information(batch, labels) if self.is_useful else None
        if information is None:
            self.is_useful = False
            return everything
        self.total, self.count = self.total + float(information.sum()), self.count + count
        if not self.total > 0:
            return everything
        shares = information * (self.count / self.total)
        self.is_useful = bool(shares.clamp(LEAST_RUNS, 1).mean() <= MOST_CHOSEN)
        if not self.is_useful:
            return everything
        wanted = torch.maximum(shares.clamp(LEAST_RUNS, 1), MORE_RUNS * shares)
        wanted *= min(1, count / float(wanted.sum()))  # about as many runs as samples, at most
        runs = wanted.floor()
        runs += torch.rand(count, generator=self.generator, dtype=torch.float64) < wanted - runs
        chosen = torch.arange(count).repeat_interleave(runs.long())
        return chosen.tolist(), 1 / wanted[chosen]

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
