"""Labels as numbers: of classes by name, of texts from tables, of arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixbit.core import InvalidInput, did_you_mean
from mixbit.datasets.load import Reading, listed
from mixbit.models.load import LoadedModel


def labels_of_texts(
    spec: str, texts: Sequence[str], model: LoadedModel, reading: Reading
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels of texts, one a sample, and the classes by name, if they are.

    Whole numbers are class numbers, other numbers are values; anything else is a class by name. Their order is the
    model's, or that of data read before, or the alphabet's.

    Raises InvalidInput for a name that the model, or the data read before, does not have.
    """
    known = model.classes or reading.classes
    if known is None or not set(texts) <= set(known):
        for kind in (int, float):
            numbers = _numbers(texts, kind)
            if numbers is not None:
                return labels_of_array(spec, np.array(numbers), model, reading)[0], None
    classes = known or tuple(sorted(set(texts)))
    places = {name: number for number, name in enumerate(classes)}
    for text in texts:
        if text not in places:
            whose = "of the model" if model.classes else "of --data"
            raise InvalidInput(
                f"DATA {spec}: label {text!r} is no class {whose}{did_you_mean(text, classes)}; there are "
                f"{listed(classes)}; name it so, or by its number"
            )
    return torch.tensor([places[text] for text in texts]), classes


def _numbers(texts: Sequence[str], kind: type) -> list[Any] | None:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        return None


def labels_of_array(
    spec: str, array: Any, model: LoadedModel, reading: Reading
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels of an array or tensor [N, ...], and the classes by name, where it holds texts.

    Whole numbers become 64-bit ones, others 32-bit floats; of a classification, the floats of `1.0` too; of a
    regression, [N] becomes [N, 1].

    Raises InvalidInput for numbers that labels cannot be.
    """
    if not isinstance(array, Tensor) and array.dtype.kind in "US":
        texts = array.astype(str)
        if texts.ndim != 1:
            raise InvalidInput(f"DATA {spec}: labels {list(texts.shape)} of texts; give one name a sample")
        return labels_of_texts(spec, texts.tolist(), model, reading)
    labels = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    if labels.is_complex():
        raise InvalidInput(f"DATA {spec}: labels are complex numbers; give real ones")
    if reading.task == "regression":
        labels = labels.float()
        return (labels[:, None] if labels.ndim == 1 else labels), None
    if not labels.is_floating_point():
        return labels.long(), None
    if reading.task in ("classification", "segmentation", "language") and bool((labels == labels.round()).all()):
        return labels.long(), None
    return labels.float(), None
