"""The float and the rounded network, run side by side over the calibration batches, one stretch at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mixbit.blockwise.cache import ActivationCache
from mixbit.blockwise.gradients import squared_gradients
from mixbit.blockwise.stretch import Stretch
from mixbit.reconstruction import Reconstruction
from mixbit.samples import SampleAxis, sample_axis


class Passes:
    """What both networks hold between two stretches, of every batch.

    Attributes:
        sizes: Samples of each batch.
    """

    def __init__(self, asked: Reconstruction, cache_gib: float) -> None:
        self.asked = asked
        self.sizes = [inputs.batch_size for inputs in asked.batches]
        limit = cache_gib * 2**30 / 2
        device = asked.graph.device
        self.in_float, self.rounded = ActivationCache(limit, device), ActivationCache(limit, device)
        self.weights: dict[tuple[int, str], Tensor] = {}
        names = [node.name for node in asked.graph.module.graph.find_nodes(op="placeholder")]
        self.leaves = [dict(zip(names, asked.graph.leaves(inputs), strict=True)) for inputs in asked.batches]

    @torch.no_grad()
    def advance_float(self, part: Stretch, wanted: set[str]) -> None:
        """Run the next stretch of the float network and keep what is wanted of it."""
        self._advance(self.in_float, part, wanted)

    @torch.no_grad()
    def advance_rounded(self, part: Stretch, wanted: set[str]) -> None:
        """Run the next stretch of the rounded network and keep what is wanted of it."""
        self._advance(self.rounded, part, wanted)

    def weigh(self, outputs: tuple[str, ...]) -> None:
        """Take the squared gradients of the float network's information by these tensors as weights of their errors."""
        self.weights = squared_gradients(self.asked, outputs)

    def keep_only(self, names: set[str]) -> None:
        """Drop the tensors of other names."""
        self.in_float.keep_only(names)
        self.rounded.keep_only(names)

    def close(self) -> None:
        """Drop all tensors."""
        self.in_float.close()
        self.rounded.close()

    def inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What a stretch of the rounded network reads."""
        return {name: _some(self._get(self.rounded, batch, name), rows) for name in part.inputs}

    def float_inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The same of the float network, for the tensors that it has too."""
        known = (name for name in part.inputs if self.in_float.holds(batch, name))
        return {name: _some(self.in_float.get(batch, name), rows) for name in known}

    def error(self, outputs: Mapping[str, Tensor], batch: int, rows: Tensor | None = None) -> Tensor:
        """Mean square of the outputs' distance from the float network's, weighted where `weigh` was called."""
        total = torch.zeros((), device=self.asked.graph.device)
        for name, output in outputs.items():
            square = (output - _some(self.in_float.get(batch, name), rows)).square()
            weight = self.weights.get((batch, name))
            total = total + (square if weight is None else square * _some(weight, rows)).mean()
        return total

    @torch.no_grad()
    def mean_error(self, part: Stretch, outputs: tuple[str, ...]) -> float:
        """The error over all batches, of the rounded network as it is."""
        errors = [float(self.error(part.run(self.inputs(part, b), outputs), b)) * n for b, n in enumerate(self.sizes)]
        return sum(errors) / sum(self.sizes)

    def parts_by_rows(self, part: Stretch, outputs: tuple[str, ...]) -> bool:
        """Whether the first dimension of all that the stretch reads and makes is the batch."""
        return all(sample_axis(part.graph.node(name)) == SampleAxis(0) for name in (*part.inputs, *outputs))

    def _advance(self, cache: ActivationCache, part: Stretch, wanted: set[str]) -> None:
        names = wanted & part.made
        for batch in range(len(self.sizes)):
            read = {name: self._get(cache, batch, name) for name in part.inputs}
            for name, tensor in part.run(read, names).items():
                cache.put(batch, name, tensor)

    def _get(self, cache: ActivationCache, batch: int, name: str) -> Tensor:
        leaves = self.leaves[batch]
        return leaves[name] if name in leaves else cache.get(batch, name)


def _some(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None or not isinstance(tensor, Tensor) else tensor[rows]
