"""DATA as a function of the user's own: `file.py:function` or `package.module:function`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from torch import Tensor

from mixbit.core import InvalidInput, call_function, names_function, no_batches, users_program
from mixbit.datasets.load import DataForm, LoadedData, Reading
from mixbit.models.load import LoadedModel


def _load(spec: str, _: LoadedModel, reading: Reading) -> LoadedData:
    """The batches that the function returns; raises InvalidInput where they are no iterable, or a list of none.

    What is no list raises InvalidInput, which names the spec, when it fails while iterated or turns out to be empty.
    For every epoch, what starts again after its end is returned as it is: it may change order and batches.
    """
    data = call_function(spec, "DATA")
    if isinstance(data, str | bytes | Mapping | Tensor) or not isinstance(data, Iterable):
        raise InvalidInput(f"DATA {spec}: returns {no_batches(data)}")
    if reading.every_epoch:
        if isinstance(data, Iterator):
            raise InvalidInput(f"DATA {spec}: used up after one epoch; return a list or a loader, which start again")
        return LoadedData(data)
    batches = _NamedData(spec, data)
    if not isinstance(data, list | tuple):
        return LoadedData(batches)
    if not data:
        raise batches.empty
    return LoadedData(data)


@dataclass(frozen=True)
class _NamedData(Iterable[Any]):
    """Data whose errors name the spec that it came from."""

    spec: str
    data: Iterable[Any]

    def __length_hint__(self) -> int:
        return length_hint(self.data)

    def __iter__(self) -> Iterator[Any]:
        end, count, failure = object(), 0, f"DATA {self.spec}: fails while iterated"
        with users_program(failure):
            batches = iter(self.data)
        while True:
            with users_program(failure):
                batch = next(batches, end)
            if batch is end:
                break
            count += 1
            yield batch
        if count == 0:
            raise self.empty

    @property
    def empty(self) -> InvalidInput:
        return InvalidInput(f"DATA {self.spec}: holds no batch; return an iterable of at least one batch")


FORM = DataForm("file.py:function or package.module:function", names_function, _load)
