"""What inputs a model takes, and batches of them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mixbit.core import Inputs, InvalidInput, unwrapped
from mixbit.models.load import LoadedModel


def names_of(model: LoadedModel) -> tuple[list[str], list[str]]:
    """Names of all inputs by which the model can be called, and of those that it cannot do without."""
    if isinstance(model.example, Mapping):
        return list(model.example), list(model.example)
    parameters = inspect.signature(unwrapped(model.module).forward).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return [each.name for each in named], [each.name for each in named if each.default is each.empty]


def picture_input(spec: str, model: LoadedModel) -> tuple[str | None, Tensor | None]:
    """Name of the input that takes pictures, None where it is given by position, and an example of it, if any.

    Raises InvalidInput where the model has other inputs too, or none of four dimensions.
    """
    if model.example is None:
        return None, None
    if isinstance(model.example, Tensor):
        return None, model.example
    pairs = list(model.example.items()) if isinstance(model.example, Mapping) else list(enumerate(model.example))
    if len(pairs) != 1 or pairs[0][1].ndim != 4:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in pairs)
        raise InvalidInput(f"DATA {spec}: pictures are one input of four dimensions, the model takes {shapes}")
    name, example = pairs[0]
    return (name if isinstance(name, str) else None), example


def batch_of(inputs: Mapping[str, Tensor] | Sequence[Tensor], labels: Tensor | None) -> Any:
    """A batch of inputs by name, with labels under `labels`, or by position, where labels could be taken for one."""
    if isinstance(inputs, Mapping):
        return dict(inputs) if labels is None else {**inputs, "labels": labels}
    return Inputs.of(tuple(inputs)) if labels is None else (Inputs.of(tuple(inputs)), labels)


def by_position(model: LoadedModel, names: Sequence[str]) -> list[str] | None:
    """The names in the order of the model's arguments; None where the model is called by name, or some are left out.

    Functions of DATA give tensors and tuples to a network of one's own, and dicts to one that its file describes.
    """
    if isinstance(model.example, Mapping) or model.folder is not None:
        return None
    parameters = inspect.signature(unwrapped(model.module).forward).parameters.values()
    leading = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD][: len(names)]
    return leading if set(leading) == set(names) else None
