"""Tensors kept in one safetensors file, with the question that they answer, so that an interrupted run goes on."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixbit.errors import InvalidInput
from mixbit.files import write_bytes

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
