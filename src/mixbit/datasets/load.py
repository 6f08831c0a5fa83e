"""load_data(): the batches that DATA of the command line names, in whatever form it is."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mixbit.core import InvalidInput, form_of, forms_in, say
from mixbit.models.load import LoadedModel

#: Samples of a batch where no size is given.
BATCH_SIZE = 32
#: Classes that a message lists.
MOST_NAMES = 20


@dataclass(frozen=True)
class Reading:
    """How data is read. Of the options, each form takes those that it names in `uses`.

    Attributes:
        batch_size: Samples in a batch; BATCH_SIZE where None.
        image_size: Height and width that pictures are resized to.
        mean: Of each channel, to be taken off pixels of 0 to 1.
        std: Of each channel, to divide by then.
        skip_broken: Whether pictures that cannot be read are left out, and named, instead of refused.
        length: Most tokens of a sample.
        task: The task's name: labels are read as it takes them.
        classes: Names of the classes in the order of the labels' numbers, where other data has told it.
        seed: Of the order of the samples.
        every_epoch: Whether the batches are for training: every pass then has an order of its own.
    """

    batch_size: int | None = None
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    skip_broken: bool = False
    length: int | None = None
    task: str = "classification"
    classes: tuple[str, ...] | None = None
    seed: int = 0
    every_epoch: bool = False

    def check(self) -> None:
        """Raise InvalidInput for a number out of range, or means and deviations that do not go together."""
        for option in ("batch_size", "length"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InvalidInput(f"{_written(option)} {value}: give a whole number from 1")
        if self.image_size is not None and min(self.image_size) < 1:
            raise InvalidInput(f"--image-size {self.image_size}: give a height and a width from 1")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise InvalidInput(f"--mean {self.mean}: give finite numbers, which are taken off pixels of 0 to 1")
        if self.std is not None and not all(0 < value < math.inf for value in self.std):
            raise InvalidInput(f"--std {self.std}: give finite numbers above 0, since pixels are divided by them")
        if self.mean and self.std and len({len(self.mean), len(self.std)} - {1}) > 1:
            raise InvalidInput(f"--mean has {len(self.mean)} channels and --std {len(self.std)}; give one number each")


#: Options of a reading that not every form uses.
OPTIONS = ("batch_size", "image_size", "mean", "std", "skip_broken", "length")


@dataclass(frozen=True)
class LoadedData:
    """Batches, and what the data tells about itself.

    Attributes:
        batches: As `split_batches` takes them.
        classes: Names of the classes in the order of the labels' numbers, where labels are names.
        preprocessing: How inputs were made of what the files hold, in words, where they were.
        num_samples: How many the files hold; None where nothing tells before they are read.
    """

    batches: Iterable[Any]
    classes: tuple[str, ...] | None = None
    preprocessing: str | None = None
    num_samples: int | None = None

    def in_words(self, *, prepared: bool) -> str:
        """Samples, classes and, if it is asked for, preprocessing, for people to compare with what they meant."""
        samples = f"{self.num_samples:,} samples"
        if self.classes is not None:
            samples += f" in {len(self.classes)} classes ({listed(self.classes)})"
        return f"{samples}; {self.preprocessing}" if prepared else samples


def normalised(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """What is done to bytes, in words."""
    words = "divided by 255"
    for what, values in (("minus", mean), ("divided by", std)):
        if values is not None:
            each = [f"{value:.6g}" for value in values]
            words += f", {what} {each[0] if len(set(each)) == 1 else ', '.join(each)}"
    return words


def listed(names: Sequence[str]) -> str:
    """Names for a message, of many the first ones."""
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


@dataclass(frozen=True)
class DataForm:
    """A form of DATA.

    Attributes:
        words: An example, for help and messages: `data.npz`.
        takes: Whether a text is of this form; it loads nothing heavy.
        load: The batches that the text names, for a model; raises InvalidInput where they cannot be read.
        uses: Those of OPTIONS that it takes.
    """

    words: str
    takes: Callable[[str], bool]
    load: Callable[[str, LoadedModel, Reading], LoadedData]
    uses: tuple[str, ...] = ()


def load_data(spec: str, model: LoadedModel, reading: Reading | None = None) -> LoadedData:
    """The batches that DATA names.

    Args:
        spec: DATA.
        model: The network that takes them.
        reading: How they are read.

    Raises:
        InvalidInput: DATA is of no known form, or cannot be read; a value of the reading is out of range.
    """
    reading = reading or Reading()
    reading.check()
    form = form_of_data(spec)
    plain = {field.name: field.default for field in fields(Reading)}
    unused = [name for name in OPTIONS if name not in form.uses and getattr(reading, name) != plain[name]]
    if unused:
        say(f"DATA {spec}: {', '.join(map(_written, unused))}: not used for {form.words}")
    loaded = form.load(spec, model, reading)
    return loaded if loaded.classes is not None else replace(loaded, classes=reading.classes)


def form_of_data(spec: str) -> DataForm:
    """The form of DATA; raises InvalidInput where it is of none that is known."""
    forms: list[DataForm] = forms_in("mixbit.datasets", last="function")
    return form_of("DATA", spec, forms)


def _written(option: str) -> str:
    return f"--{option.replace('_', '-')}"
