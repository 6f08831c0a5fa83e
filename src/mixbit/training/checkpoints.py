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

    def save(self, losses: list[float], tensors: Mapping[str, Tensor]) -> None:
        """Write the file in place of the one before it, whole or not at all."""
        keep(self.path, json.dumps(self.about), tensors, notes=json.dumps(losses))

    def check(self, *, force: bool) -> None:
        """Raise InvalidInput where there is a file about another training, as far as `about` tells; not with force."""
        found = self._found()
        if found is not None and not force:
            self._check_about({name: value for name, value in found[0].items() if name in self.about}, force=force)

    def load(self, *, force: bool | None = None) -> tuple[list[float], dict[str, Tensor]] | None:
        """Losses and tensors as they were saved; None where there are none, or of another training and with force.

        Force is None where the caller has no such option.

        Raises:
            InvalidInput: the file is about another training, or cannot be read; or its folder cannot be made.
        """
        found = self._found()
        if found is None:
            return None
        about, losses, tensors = found
        if force and about != json.loads(json.dumps(self.about)):
            return None
        self._check_about(about, force=force)
        return losses, tensors

    def _found(self) -> tuple[dict[str, Any], list[float], dict[str, Tensor]] | None:
        found = take_up(self.path)
        if found is None:
            return None
        try:
            return json.loads(found[0]), json.loads(found[2]), found[1]
        except ValueError as error:
            raise InvalidInput(f"{self.path}: is no checkpoint of a training; delete it") from error

    def _check_about(self, about: Mapping[str, Any], *, force: bool | None) -> None:
        if about != json.loads(json.dumps(self.about)):
            otherwise = "choose another folder" if force is None else "give --force to throw it away"
            raise InvalidInput(
                f"{self.path}: the checkpoint of another training (graph, data or settings differ); delete it, or "
                f"{otherwise}"
            )
