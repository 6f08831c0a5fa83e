"""Tensors kept in one safetensors file, with the question that they answer, so that an interrupted run goes on."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import write_bytes, write_text

QUESTION, NOTES = "question", "notes"


def folder_of(folder: str | Path | None) -> Path | None:
    """The folder to keep files in; raises InvalidInput for what names none."""
    if folder is None:
        return None
    if not isinstance(folder, str | Path) or not str(folder):
        raise InvalidInput(f"folder={folder!r}: give the path of a folder, or None to keep nothing")
    return Path(folder)


def keep(path: Path | None, question: str, tensors: Mapping[str, Tensor], notes: str = "") -> None:
    """Write the file in place of the one before it, whole or not at all; nothing where there is no path.

    Args:
        path: Its folder is made where it is not there.
        question: What the tensors depend on.
        tensors: By name.
        notes: What else to keep.

    Raises:
        InvalidInput: it cannot be written there.
    """
    if path is not None:
        _make_folder(path)
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write_bytes(path, safetensors.torch.save(copies, {QUESTION: question, NOTES: notes}))


def take_up(path: Path | None) -> tuple[str, dict[str, Tensor], str] | None:
    """Question, tensors on the CPU and notes, as `keep` wrote them; None where there is no file.

    The folder is made already here, since work that cannot be kept had better not begin.

    Raises:
        InvalidInput: the file is something else, or its folder cannot be made.
    """
    if path is None:
        return None
    _make_folder(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        return metadata[QUESTION], tensors, metadata.get(NOTES, "")
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidInput(f"{path}: holds nothing to go on with ({error}); delete it") from error


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{path.parent}: cannot be made ({error.strerror}); choose another folder") from error


class Journal:
    """A file with one line of JSON for what it is about, then one for each score.

    A line that the end of a process cut short is left out.

    Args:
        path: The file; None keeps scores in memory alone.
        about: What the scores depend on, as JSON.
        force: Whether a journal about something else is thrown away.

    Raises:
        InvalidInput: the file is about something else, or is no journal.
    """

    def __init__(
        self, path: Path | None = None, about: Mapping[str, Any] | None = None, *, force: bool = False
    ) -> None:
        self.path = path
        self.scores: dict[tuple[str, ...], float] = {}
        about = self.about = dict(about or {})
        if path is None:
            return
        lines = _lines(path)
        if lines[1:] and lines[0] != about:
            if not force:
                raise InvalidInput(
                    f"{path}: holds trials of another run; delete it, or give --force to throw them away"
                )
            lines = []
        if not lines or lines[0] != about:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(about) + "\n")
        for number, line in enumerate(lines[1:], 2):
            plan, score = (line.get("plan"), line.get("score")) if isinstance(line, dict) else (None, None)
            if not isinstance(plan, list) or not isinstance(score, float | int) or not math.isfinite(score):
                raise InvalidInput(f"{path}: line {number} holds no plan and score; delete the file")
            self.scores[tuple(plan)] = float(score)

    def score_of(self, plan: Sequence[str], score: Callable[[], float]) -> float:
        """The score of a plan, given as its schemes in order: what is known, or else what the function returns."""
        key = tuple(plan)
        if key not in self.scores:
            self.scores[key] = score()
            self._append({"plan": list(key), "score": self.scores[key]})
        return self.scores[key]

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            return
        if not self.path.exists():  # another run with the same output has ended
            write_text(self.path, json.dumps(self.about) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[Any]:
    """The file's lines; mends one that was cut short, since the next would be written behind it."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read as a journal of trials: {error}") from error
    whole = [text for text in texts if text.endswith("\n")]
    if len(whole) < len(texts):
        write_text(path, "".join(whole))
    try:
        return [json.loads(text) for text in whole]
    except ValueError as error:
        raise InvalidInput(f"{path}: not a journal of trials ({error}); delete it") from error


def save(folder: Path | None, name: str, question: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep one part as `name`.safetensors in the folder, which answers what `question_digest` returned."""
    keep(_path(folder, name), question, tensors)


def load(folder: Path | None, name: str, question: str) -> dict[str, Tensor] | None:
    """The part that `save` kept under that name; None where there is none, or of another question."""
    found = take_up(_path(folder, name))
    return found[1] if found is not None and found[0] == question else None


def _path(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.safetensors"


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
