"""The samples of the page that changed most."""

from collections.abc import Sequence
from dataclasses import dataclass

from mixbit.core import InvalidInput
from mixbit.report.pictures import pictures_of
from mixbit.results.check_set import CheckSet
from mixbit.results.result import Change, ChangedSample, Result


@dataclass(frozen=True)
class SampleLine:
    """One sample; `picture` is a `data:` address, empty where inputs are no images.

    `classes` are the names of the classes; none where they are not known, or there are several outputs.
    """

    sample: ChangedSample
    picture: str
    classes: Sequence[str]

    @property
    def label(self) -> str:
        """Its class by name, or by number where the classes have no names."""
        number = self.sample.label
        return "" if number is None else self.name_of(number) if self.classes else f"class {number}"

    def name_of(self, number: int) -> str:
        """Name of a class, its number where it has none."""
        return self.classes[number] if 0 <= number < len(self.classes) else str(number)

    @property
    def flips(self) -> bool:
        """Whether a top class is another one."""
        return any(change.flips for change in self.sample.outputs.values())

    @property
    def changes(self) -> dict[str, Change]:
        """Output -> what it says; the only one has no name."""
        outputs = self.sample.outputs
        return {"": next(iter(outputs.values()))} if len(outputs) == 1 else outputs


def samples_of(result: Result, check: CheckSet | None) -> list[SampleLine]:
    """Samples with pictures, in the order of the result; raises InvalidInput for one that the check set lacks."""
    if check is None:
        return []
    rows = [changed.sample for changed in result.changed]
    if max(rows, default=0) >= check.inputs.batch_size:
        raise InvalidInput(f"changed: sample {max(rows)} of {check.inputs.batch_size} in the check set; quantize again")
    for tensor in check.inputs.tensors:
        pictures = pictures_of(tensor, rows)
        if pictures:
            break
    else:
        pictures = [""] * len(rows)
    return [
        SampleLine(sample, picture, result.classes if _answers_once(sample) else [])
        for sample, picture in zip(result.changed, pictures, strict=True)
    ]


def _answers_once(sample: ChangedSample) -> bool:
    """Whether classes are those of one output alone."""
    return sum(bool(change.float_) for change in sample.outputs.values()) == 1
