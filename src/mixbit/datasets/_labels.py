"""Labels as numbers: of classes by name, of texts from tables, of arrays."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import InvalidInput, did_you_mean
from mixbit.datasets.load import Reading, listed
from mixbit.models.load import LoadedModel

#: How numbers are written.
_WRITTEN = {int: re.compile(r"[-+]?[0-9]+"), float: re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")}


def labels_of_texts(
    spec: str, texts: Sequence[str], model: LoadedModel, reading: Reading, further: Sequence[str] = ()
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels of texts, one a sample, and the classes by name, if they are.

    Whole numbers are class numbers, other numbers are values; anything else is a class by name. Their order is the
    model's, or that of data read before, or the alphabet's; `further` classes have no sample, and count. Of the task
    multilabel, a text names any number of classes.

    Raises InvalidInput for a name that the model, or the data read before, does not have.
    """
    if reading.task == "multilabel":
        return _rows_of_classes(spec, texts, model, reading, further)
    known = model.classes or reading.classes
    if known is None or not set(texts) <= set(known):
        for kind in (int, float):
            numbers = _numbers(texts, kind)
            if numbers is not None:
                return labels_of_array(spec, np.array(numbers), model, reading)[0], None
    classes = known or tuple(sorted({*texts, *further}))
    places = {name: number for number, name in enumerate(classes)}
    _check_names(spec, texts, places, model)
    return torch.tensor([places[text] for text in texts]), classes


def _rows_of_classes(
    spec: str, texts: Sequence[str], model: LoadedModel, reading: Reading, further: Sequence[str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels [N, C], 1 for each class that a text names between semicolons or bars, else 0; and the classes."""
    rows = [[name for part in re.split("[;|]", text) if (name := part.strip())] for text in texts]
    names = sorted({name for row in rows for name in row} | {*further})
    classes = model.classes or reading.classes
    if classes is None and not names:
        raise InvalidInput(f"DATA {spec}: no label names a class; write them as in cat;dog")
    if classes is None:
        is_numbered = all(name.isascii() and name.isdecimal() for name in names)
        classes = tuple(map(str, range(1 + max(map(int, names))))) if is_numbered else tuple(names)
    places = {str(number): number for number in range(len(classes))}
    places |= {name: number for number, name in enumerate(classes)}
    _check_names(spec, names, places, model)
    labels = torch.zeros(len(rows), len(classes))
    for number, row in enumerate(rows):
        labels[number, [places[name] for name in row]] = 1
    return labels, classes


def _check_names(spec: str, names: Sequence[str], places: Mapping[str, int], model: LoadedModel) -> None:
    """Raise InvalidInput for a name that is no class."""
    for name in names:
        if name not in places:
            classes = [*dict.fromkeys(name for name in places if not name.isdecimal())] or [*places]
            whose = "of the model" if model.classes else "of --data"
            raise InvalidInput(
                f"DATA {spec}: label {name!r} is no class {whose}{did_you_mean(name, classes)}; there are "
                f"{listed(classes)}; name it so, or by its number"
            )


def _numbers(texts: Sequence[str], kind: type) -> list[Any] | None:
    """The numbers; None where one is none: `nan` and `1_0`, which Python takes too, are names."""
    written = _WRITTEN[kind]
    return [kind(text) for text in texts] if all(map(written.fullmatch, texts)) else None


def labels_of_array(
    spec: str, array: Any, model: LoadedModel, reading: Reading
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels of an array or tensor [N, ...], and the classes by name, where it holds texts.

    Whole numbers become 64-bit ones, others 32-bit floats; of a classification, the floats of `1.0` too, and [N, 1]
    becomes [N]; of a regression, [N] becomes [N, 1].

    Raises InvalidInput for numbers that labels cannot be.
    """
    if not isinstance(array, Tensor) and array.dtype.kind in "US":
        texts = array.astype(str)
        if texts.ndim != 1:
            raise InvalidInput(f"DATA {spec}: labels {list(texts.shape)} of texts; give one name a sample")
        return labels_of_texts(spec, texts.tolist(), model, reading)
    is_real = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"
    if not is_real:
        raise InvalidInput(f"DATA {spec}: labels are of type {array.dtype}; give real numbers, or names as texts")
    labels = _as_labels(array)
    if labels.is_floating_point() and not bool(labels.isfinite().all()):
        missing = int((~labels.isfinite()).sum())
        raise InvalidInput(f"DATA {spec}: {missing} labels are NaN or infinite; leave these samples out")
    if reading.task == "regression":
        labels = labels.float()
        return (labels[:, None] if labels.ndim == 1 else labels), None
    of_classes = reading.task in ("classification", "segmentation", "language")
    if labels.is_floating_point() and not (of_classes and bool((labels == labels.round()).all())):
        return labels.float(), None
    is_column = reading.task == "classification" and labels.ndim == 2 and labels.shape[1] == 1
    return labels.reshape(-1).long() if is_column else labels.long(), None


def _as_labels(array: Any) -> Tensor:
    """The labels as a tensor, of types that torch has and in the order of bytes of this machine."""
    if isinstance(array, Tensor):
        return array
    kind = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=np.float64 if kind == np.longdouble else kind))
