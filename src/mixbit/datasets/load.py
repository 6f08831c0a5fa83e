"""load_data(): the batches that DATA of the command line names, in whatever form it is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mixbit.core import form_of, forms_in
from mixbit.models.load import LoadedModel


@dataclass(frozen=True)
class Reading:
    """How data is read. A function reads its data itself: of these it takes `every_epoch` alone.

    Attributes:
        every_epoch: Whether the batches are for training: every pass may have an order of its own.
    """

    every_epoch: bool = False


@dataclass(frozen=True)
class LoadedData:
    """Batches, and what the data tells about itself.

    Attributes:
        batches: As `split_batches` takes them.
        classes: Names of the classes in the order of the labels' numbers, where labels are names.
        preprocessing: What is done to it before the network, in words for README.md; None where that is the user's.
    """

    batches: Iterable[Any]
    classes: tuple[str, ...] | None = None
    preprocessing: str | None = None


@dataclass(frozen=True)
class DataForm:
    """A form of DATA.

    Attributes:
        words: An example, for help and messages: `data.npz`.
        takes: Whether a text is of this form; it loads nothing heavy.
        load: The batches that the text names, for a model; raises InvalidInput where they cannot be read.
    """

    words: str
    takes: Callable[[str], bool]
    load: Callable[[str, LoadedModel, Reading], LoadedData]


def load_data(spec: str, model: LoadedModel, reading: Reading | None = None) -> LoadedData:
    """The batches that DATA names.

    Args:
        spec: DATA.
        model: The network that takes them.
        reading: How they are read.

    Raises:
        InvalidInput: DATA is of no known form, or cannot be read.
    """
    forms: list[DataForm] = forms_in("mixbit.datasets", last="function")
    return form_of("DATA", spec, forms).load(spec, model, reading or Reading())
