"""Tensors of every calibration batch, in memory up to a limit, beyond it in files that the system maps."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mixbit.errors import InvalidInput

_log = logging.getLogger("mixbit")


class ActivationCache:
    """(batch, name) -> tensor without its gradients' history, or what else a node returns.

    Args:
        limit_bytes: What may be held in memory; further tensors go to a temporary folder, which is said once.
        device: Where tensors come back.
    """

    def __init__(self, limit_bytes: float, device: torch.device) -> None:
        self.limit_bytes = limit_bytes
        self.device = device
        self.in_memory = 0
        self.values: dict[tuple[int, str], Any] = {}
        self.files: dict[tuple[int, str], Path] = {}
        self.folder: TemporaryDirectory[str] | None = None
        self.number = 0

    def put(self, batch: int, name: str, value: Any) -> None:
        """Keep a value; nobody else changes its memory."""
        if isinstance(value, Tensor):
            value, size = value.detach(), _size(value)
            if self.in_memory + size > self.limit_bytes:
                value = self._to_disk(batch, name, value, f"more than {self.limit_bytes / 2**30:g} GiB")
            else:
                try:
                    value = value.clone()
                    self.in_memory += size
                except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError where an allocator fails
                    value = self._to_disk(batch, name, value, str(error).splitlines()[0])
        self.values[batch, name] = value

    def get(self, batch: int, name: str) -> Any:
        """What was put."""
        value = self.values[batch, name]
        return value.to(self.device) if (batch, name) in self.files else value

    def holds(self, batch: int, name: str) -> bool:
        """Whether such a value was put and not dropped."""
        return (batch, name) in self.values

    def take(self, batch: int) -> dict[str, Any]:
        """Name -> value of all that was put for a batch, which is dropped here."""
        found = {name: self.get(number, name) for number, name in self.values if number == batch}
        for name in found:
            self._drop(batch, name)
        return found

    def keep_only(self, names: set[str]) -> None:
        """Drop the values of other names."""
        for batch, name in [key for key in self.values if key[1] not in names]:
            self._drop(batch, name)

    def close(self) -> None:
        """Drop everything, the folder as well."""
        self.keep_only(set())
        if self.folder is not None:
            self.folder.cleanup()

    def _drop(self, batch: int, name: str) -> None:
        value, file = self.values.pop((batch, name)), self.files.pop((batch, name), None)
        if file is not None:
            file.unlink()
        elif isinstance(value, Tensor):
            self.in_memory -= _size(value)

    def _to_disk(self, batch: int, name: str, tensor: Tensor, why: str) -> Tensor:
        if self.folder is None:
            try:
                self.folder = TemporaryDirectory(prefix="mixbit-")
            except OSError as error:
                raise InvalidInput(f"activations cannot be kept ({error}); set TMPDIR to another place") from error
            _log.warning("activations are kept in %s: %s", self.folder.name, why)
        self.number += 1
        path = self.files[batch, name] = Path(self.folder.name) / str(self.number)
        try:
            mapped = torch.from_file(str(path), shared=True, size=max(1, tensor.numel()), dtype=tensor.dtype)
        except RuntimeError as error:
            raise InvalidInput(
                f"{path}: activations cannot be written ({str(error).splitlines()[0]}); set TMPDIR to a place with "
                "room, or give fewer batches"
            ) from error
        return mapped[: tensor.numel()].reshape(tensor.shape).copy_(tensor)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
