"""Where a training stands, in one safetensors file, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.kept import keep, take_up


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training.

    Attributes:
        path: The file; None keeps nothing.
        about: What the training depends on, as JSON.
    """

    path: Path | None
    about: Mapping[str, Any]

    @property
    def question(self) -> str:
        """What the training depends on, as text."""
        return json.dumps(self.about, sort_keys=True)

    def save(self, losses: list[float], tensors: Mapping[str, Tensor]) -> None:
        """Write the file in place of the one before it, whole or not at all."""
        keep(self.path, self.question, tensors, notes=json.dumps(losses))

    def load(self, *, force: bool = False) -> tuple[list[float], dict[str, Tensor]] | None:
        """Losses and tensors as they were saved; None where there are none, or of another training and with force.

        Raises:
            InvalidInput: the file is about another training, or cannot be read; or its folder cannot be made.
        """
        found = take_up(self.path)
        if found is None:
            return None
        question, tensors, losses = found
        if question == self.question:
            return json.loads(losses), tensors
        if force:
            return None
        raise InvalidInput(
            f"{self.path}: the checkpoint of another training (graph, data or settings differ); delete it, or "
            "choose another folder"
        )
