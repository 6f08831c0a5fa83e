"""The steps in which one block learns, shown as part of those of all blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


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
