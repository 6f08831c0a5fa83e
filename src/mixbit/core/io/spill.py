"""A file for what does not fit into memory: trees of tensors, written one after the other and read by their number."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mixbit.core.errors import InvalidInput


@dataclass(frozen=True)
class _Place:
    """Where the numbers of a tensor stand in the file, and how they lie in memory."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Spill:
    """Trees of tensors in a file, in the order in which they were put; other leaves stay in memory.

    The file has no name: it ends with this object, or with the process, however that ends. It is read by calls, not
    mapped into memory, where pages that were read would count as the process's own.

    Attributes:
        folder: Where the file is; that for temporary files where None is given.
        size: Its bytes.
        what: What it holds, and the way out where there is no room, for errors.
    """

    def __init__(
        self,
        folder: Path | None = None,
        what: str = "data",
        way_out: str = "take the first N samples by --samples N (samples=N in Python), or a place with more room",
    ) -> None:
        self.size, self.what, self.way_out = 0, what, way_out
        self._trees: list[tuple[list[Any], pytree.TreeSpec]] = []
        try:
            self.folder = Path(tempfile.gettempdir() if folder is None else folder)
            # open as long as this object lives, and unbuffered
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InvalidInput(f"{what}: no file can be made for it ({error}); set TMPDIR to another place") from error
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._trees)

    def has_room(self, num_bytes: int) -> bool:
        """Whether the file, with so many bytes more, takes at most half of the space that was free without it."""
        return self.size + num_bytes <= shutil.disk_usage(self.folder).free

    def put(self, tree: Any) -> None:
        """Add a tree; raises InvalidInput, which says how much there is, where it would take half of the free space."""
        leaves, structure = pytree.tree_flatten(tree)
        if self._trees and self._trees[-1][1] == structure:
            structure = self._trees[-1][1]
        places = [self._put(leaf) if _is_plain(leaf) else leaf for leaf in leaves]
        self._trees.append((places, structure))

    def __getitem__(self, number: int) -> Any:
        """The tree of that number, in new tensors."""
        places, structure = self._trees[number]
        leaves = [self._get(each) if isinstance(each, _Place) else each for each in places]
        return pytree.tree_unflatten(leaves, structure)

    def held(self, tree: Any) -> Callable[[], Any]:
        """Add a tree; returns a function that reads it."""
        self.put(tree)
        return partial(self.__getitem__, len(self) - 1)

    def __deepcopy__(self, _: Any) -> "Spill":
        """Itself: what was put does not change."""
        return self

    def _put(self, leaf: Tensor) -> _Place:
        dense = torch.empty_like(leaf, device="cpu", requires_grad=False).copy_(leaf.detach())
        place = _Place(self.size, tuple(dense.shape), dense.stride(), dense.dtype, leaf.device)
        numbers = _bytes_of(dense)
        try:
            if not self.has_room(len(numbers)):
                raise OSError("the rest is left to others")
            done = 0
            while done < len(numbers):
                done += os.pwrite(self._file.fileno(), numbers.data[done:], self.size + done)
        except OSError as error:
            raise InvalidInput(
                f"{self.what}: {self.size / 2**30:.3g} GiB are written to {self.folder}, which has no room for "
                f"{len(numbers):,} bytes more ({error}); {self.way_out}"
            ) from error
        self.size += len(numbers)
        return place

    def _get(self, place: _Place) -> Tensor:
        tensor = torch.empty_strided(place.shape, place.stride, dtype=place.dtype)
        numbers, done = _bytes_of(tensor), 0
        while done < len(numbers):  # each call says where: threads and forked processes share a file's position
            read = os.preadv(self._file.fileno(), [numbers.data[done:]], place.offset + done)
            if not read:
                raise InvalidInput(
                    f"{self.what}: the file in {self.folder} was cut short; keep it as it is while a run lasts"
                )
            done += read
        return tensor.to(place.device)


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_quantized


def _bytes_of(dense: Tensor) -> Any:
    """The numbers of a tensor that has a storage of its own, as an array of bytes that shares their memory."""
    return torch.empty(0, dtype=torch.uint8).set_(dense.untyped_storage()).numpy()


class Spilled(MutableMapping[Any, Any]):
    """A dictionary whose values, trees of tensors, are in a file; one that is replaced still takes its place there."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._held: dict[Any, Callable[[], Any]] = {}

    def __getitem__(self, key: Any) -> Any:
        return self._held[key]()

    def __setitem__(self, key: Any, tree: Any) -> None:
        self._held[key] = self._spill.held(tree)

    def __delitem__(self, key: Any) -> None:
        del self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[Any]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
