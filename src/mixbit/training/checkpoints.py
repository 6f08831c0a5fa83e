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

    def load(self, *, force: bool = False) -> tuple[list[float], dict[str, Tensor]] | None:
        """Losses and tensors as they were saved; None where there are none, or of another training and with force.

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
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
            about, losses = json.loads(metadata["about"]), json.loads(metadata["losses"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InvalidInput(f"{self.path}: cannot be read as a checkpoint ({error}); delete it") from error
        if about != json.loads(json.dumps(self.about)):
            if force:
                return None
            raise InvalidInput(
                f"{self.path}: the checkpoint of another training (graph, data or settings differ); delete it, or "
                "choose another folder"
            )
        return losses, tensors
