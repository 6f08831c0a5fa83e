"""Ports: the inputs and outputs of a network under the names that its users know."""

from dataclasses import dataclass, replace
from typing import ClassVar

#: The dimension of samples.
BATCH = "batch"


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: That of forward's parameter, or the key or field under which the model returns it: `input_ids`, `logits`.
        dtype: `float32`, `int64`, ...
        shape: Of each dimension its size, or a name where it is of any size: BATCH, `input_ids_dim1`, `2*batch`.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def of_size(self, sizes: tuple[int, ...]) -> "Port":
        """The same with these sizes, one sample where the first dimension is that of samples."""
        return replace(self, shape=(1, *sizes[1:]) if self.shape[:1] == (BATCH,) else sizes)

    def in_order(self, order: tuple[int, ...]) -> "Port":
        """The same with its dimensions in that order."""
        return replace(self, shape=tuple(self.shape[axis] for axis in order))


@dataclass(frozen=True)
class Ports:
    """What a network takes and what it returns, in order."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
