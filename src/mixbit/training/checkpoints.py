"""Where a training stands, in one safetensors file, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.files import write_bytes


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training.

    Attributes:
        path: The file; None keeps nothing.
        about: What the training depends on, as JSON.
    """

    path: Path | None
    about: Mapping[str, Any]

    def save(self, losses: list[float], tensors: Mapping[str, Tensor]) -> None:
        """Write the file in place of the one before it, whole or not at all."""
        if self.path is not None:
            metadata = {"about": json.dumps(self.about), "losses": json.dumps(losses)}
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            write_bytes(self.path, safetensors.torch.save(copies, metadata))

    def check(self, *, force: bool) -> None:
        """Raise InvalidInput where there is a file about another training, as far as `about` tells; not with force."""
        if self.path is not None and self.path.exists() and not force:
            about, _, _ = _read(self.path)
            self._check_about({name: value for name, value in about.items() if name in self.about}, force=force)

    def load(self, *, force: bool | None = None) -> tuple[list[float], dict[str, Tensor]] | None:
        """Losses and tensors as they were saved; None where there are none, or of another training and with force.

        Force is None where the caller has no such option.

        Raises:
            InvalidInput: the file is about another training, or cannot be read; or its folder cannot be made.
        """
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"{self.path.parent}: cannot be made ({error.strerror}); choose another folder"
            ) from error
        if not self.path.exists():
            return None
        about, losses, tensors = _read(self.path)
        if force and about != json.loads(json.dumps(self.about)):
            return None
        self._check_about(about, force=force)
        return losses, tensors

    def _check_about(self, about: Mapping[str, Any], *, force: bool | None) -> None:
        if about != json.loads(json.dumps(self.about)):
            otherwise = "choose another folder" if force is None else "give --force to throw it away"
            raise InvalidInput(
                f"{self.path}: the checkpoint of another training (graph, data or settings differ); delete it, or "
                f"{otherwise}"
            )


def _read(path: Path) -> tuple[dict[str, Any], list[float], dict[str, Tensor]]:
    """What the file is about, the losses and the tensors."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        return json.loads(metadata["about"]), json.loads(metadata["losses"]), tensors
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read as a checkpoint ({error}); delete it") from error
