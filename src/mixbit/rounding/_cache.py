"""Tensors of every calibration batch, in memory up to a limit, beyond it in files that the system maps."""

import logging
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

_log = logging.getLogger("mixbit")


class ActivationCache:
    """(batch, name) -> tensor, with its gradient history cut.

    Args:
        limit_bytes: What may be held in memory; further tensors go to a temporary folder, which is said once.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self.in_memory = 0
        self.tensors: dict[tuple[int, str], Tensor] = {}
        self.files: dict[tuple[int, str], Path] = {}
        self.folder: TemporaryDirectory[str] | None = None
        self.number = 0

    def put(self, batch: int, name: str, tensor: Tensor) -> None:
        """Keep a tensor."""
        tensor, size = tensor.detach(), tensor.numel() * tensor.element_size()
        if self.in_memory + size > self.limit_bytes:
            tensor = self._to_disk(batch, name, tensor, f"more than {self.limit_bytes / 2**30:g} GiB")
        else:
            try:
                tensor = tensor.clone()
                self.in_memory += size
            except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError where an allocator fails
                tensor = self._to_disk(batch, name, tensor, str(error).splitlines()[0])
        self.tensors[batch, name] = tensor

    def get(self, batch: int, name: str) -> Tensor:
        """The tensor that was put."""
        return self.tensors[batch, name]

    def holds(self, batch: int, name: str) -> bool:
        """Whether such a tensor was put and not dropped."""
        return (batch, name) in self.tensors

    def keep_only(self, names: set[str]) -> None:
        """Drop the tensors of other names."""
        for batch, name in [key for key in self.tensors if key[1] not in names]:
            tensor, file = self.tensors.pop((batch, name)), self.files.pop((batch, name), None)
            if file is not None:
                file.unlink()
            else:
                self.in_memory -= tensor.numel() * tensor.element_size()

    def close(self) -> None:
        """Drop everything, the folder as well."""
        self.keep_only(set())
        if self.folder is not None:
            self.folder.cleanup()

    def _to_disk(self, batch: int, name: str, tensor: Tensor, why: str) -> Tensor:
        if self.folder is None:
            self.folder = TemporaryDirectory(prefix="mixbit-")
            _log.warning("activations to reconstruct are kept in %s: %s", self.folder.name, why)
        self.number += 1
        path = self.files[batch, name] = Path(self.folder.name) / str(self.number)
        mapped = torch.from_file(str(path), shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
        mapped = mapped[: tensor.numel()].reshape(tensor.shape) if math.prod(tensor.shape) else tensor.cpu().clone()
        return mapped.copy_(tensor)
