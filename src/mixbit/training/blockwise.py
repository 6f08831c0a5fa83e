"""The steps in which one block learns, shown as part of those of all blocks."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from mixbit.graph.backward import squared_gradients
from mixbit.graph.blocks import Block
from mixbit.graph.case import Case
from mixbit.graph.graph import Graph
from mixbit.graph.sample_axis import SampleAxis, sample_axis
from mixbit.graph.walk import ActivationCache, Stretch, needed_later, stretches


@dataclass(frozen=True)
class Pace:
    """Of one block.

    Attributes:
        iterations: How many steps.
        bar: Yields once for each step of each block.
        generator: Draws of the block.
    """

    iterations: int
    bar: Iterator[int]
    generator: torch.Generator

    def steps(self) -> Iterator[float]:
        """The share of the iterations that are done, before each of them."""
        for step in range(self.iterations):
            next(self.bar)
            yield step / self.iterations

    def skip(self) -> None:
        """Go through all iterations, for a block that has nothing to learn."""
        for _ in self.steps():
            pass


#: Which network a cached tensor is of, before its node's name.
_FLOAT, _LEARNING = "float: ", "learning: "


@dataclass(frozen=True)
class Kept:
    """The part of a float tensor that the learning network has too: these indices of a dimension."""

    dim: int
    indices: Tensor


class Passes:
    """What both networks hold between two blocks, of every batch.

    Args:
        case: The float network and the data.
        cache_gib: GiB of activations held in memory.
        kept: Node -> part of its tensor, where the learning network has less of it.

    Attributes:
        sizes: Samples of each batch.
    """

    def __init__(self, case: Case, cache_gib: float, kept: Mapping[str, Kept]) -> None:
        self.case, self.kept = case, kept
        self.sizes = [inputs.batch_size for inputs, _ in case.batches]
        self.cache = ActivationCache(cache_gib * 2**30, case.graph.device)
        self.weights: dict[tuple[int, str], Tensor] = {}
        names = [node.name for node in case.graph.module.graph.find_nodes(op="placeholder")]
        self.leaves = [dict(zip(names, case.graph.leaves(inputs), strict=True)) for inputs, _ in case.batches]

    @torch.no_grad()
    def advance_float(self, part: Stretch, wanted: set[str]) -> None:
        """Run the next stretch of the float network and keep what is wanted of it."""
        self._advance(_FLOAT, part, wanted)

    @torch.no_grad()
    def advance_learning(self, part: Stretch, wanted: set[str]) -> None:
        """Run the next stretch of the learning network and keep what is wanted of it."""
        self._advance(_LEARNING, part, wanted)

    def weigh(self, outputs: tuple[str, ...]) -> None:
        """Take the squared gradients of the float network's information by these tensors as weights of their errors."""
        self.weights = squared_gradients(self.case, outputs)

    def keep_only(self, names: set[str]) -> None:
        """Drop the tensors of other names."""
        self.cache.keep_only({which + name for which in (_FLOAT, _LEARNING) for name in names})

    def close(self) -> None:
        """Drop all tensors."""
        self.cache.close()

    def draw(self, batch_size: int, generator: torch.Generator, *, by_rows: bool) -> tuple[int, Tensor | None]:
        """A batch with a chance proportional to its size, and some of its samples; all where they cannot be parted."""
        batch = int(torch.multinomial(torch.tensor(self.sizes).float(), 1, generator=generator))
        if not by_rows or self.sizes[batch] <= batch_size:
            return batch, None
        return batch, torch.randperm(self.sizes[batch], generator=generator)[:batch_size]

    def inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What a stretch of the learning network reads."""
        return {name: _some(self._get(_LEARNING, batch, name), rows) for name in part.inputs}

    def float_inputs(self, part: Stretch, batch: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The same of the float network, for the tensors that it has too."""
        known = (name for name in part.inputs if self.cache.holds(batch, _FLOAT + name))
        return {name: self._of_float(name, self.cache.get(batch, _FLOAT + name), rows) for name in known}

    def error(self, outputs: Mapping[str, Tensor], batch: int, rows: Tensor | None = None) -> Tensor:
        """Mean square of the outputs' distance from the float network's, weighted where `weigh` was called."""
        total = torch.zeros((), device=self.case.graph.device)
        for name, output in outputs.items():
            square = (output - self._of_float(name, self.cache.get(batch, _FLOAT + name), rows)).square()
            weight = self.weights.get((batch, name))
            total = total + (square if weight is None else square * self._of_float(name, weight, rows)).mean()
        return total

    @torch.no_grad()
    def mean_error(self, part: Stretch, outputs: tuple[str, ...]) -> float:
        """The error over all batches, of the learning network as it is."""
        errors = [float(self.error(part.run(self.inputs(part, b), outputs), b)) * n for b, n in enumerate(self.sizes)]
        return sum(errors) / sum(self.sizes)

    def parts_by_rows(self, part: Stretch, outputs: tuple[str, ...]) -> bool:
        """Whether the first dimension of all that the stretch reads and makes is the batch."""
        return all(sample_axis(part.graph.node(name)) == SampleAxis(0) for name in (*part.inputs, *outputs))

    def _advance(self, which: str, part: Stretch, wanted: set[str]) -> None:
        names = wanted & part.made
        for batch in range(len(self.sizes)):
            read = {name: self._get(which, batch, name) for name in part.inputs}
            for name, tensor in part.run(read, names).items():
                self.cache.put(batch, which + name, tensor)

    def _get(self, which: str, batch: int, name: str) -> Tensor:
        leaves = self.leaves[batch]
        return leaves[name] if name in leaves else self.cache.get(batch, which + name)

    def _of_float(self, name: str, tensor: Tensor, rows: Tensor | None) -> Tensor:
        """The rows of a tensor of the float network, as far as the learning network has it."""
        some, kept = _some(tensor, rows), self.kept.get(name)
        return some if kept is None else some.index_select(kept.dim, kept.indices)


def _some(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None or not isinstance(tensor, Tensor) else tensor[rows]


def side_by_side(
    case: Case,
    learning: Graph,
    blocks: tuple[Block, ...],
    *,
    cache_gib: float,
    fisher: bool = False,
    kept: Mapping[str, Kept] | None = None,
) -> Generator[tuple[int, Block, Stretch, Passes], None, None]:
    """Number, block, its stretch of the learning network, and the passes, once both networks have come to the block.

    What stands behind the block reads what the learning network returns there when the next one is asked for.

    Args:
        case: The float network and the data.
        learning: A graph of the same nodes, apart from quantizers.
        blocks: Of the float graph.
        cache_gib: GiB of activations held in memory.
        fisher: Whether errors are weighted by the Fisher information of the block's outputs.
        kept: Node -> part of its tensor, where the learning network has less of it.
    """
    parts = stretches(case.graph, blocks), stretches(learning, blocks)
    later = [set.union(*both) for both in zip(*map(needed_later, parts), strict=True)]
    with closing(Passes(case, cache_gib, kept or {})) as passes:
        for number, block in enumerate(blocks):
            in_float, part = (both[number] for both in parts)
            passes.advance_float(in_float, later[number] | set(block.outputs))
            if fisher:
                passes.weigh(block.outputs)
            yield number, block, part, passes
            passes.advance_learning(part, later[number])
            passes.keep_only(later[number])
