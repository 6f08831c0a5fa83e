"""Forms of what the command line takes, a file each in a room: which one a text is meant for, and what if none."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mixbit.core.errors import InvalidInput, did_you_mean


class Form(Protocol):
    """What a form says of itself: words for help and messages, and whether a text is meant for it."""

    @property
    def words(self) -> str:
        """An example, as `net.onnx`."""
        ...

    @property
    def takes(self) -> Callable[[str], bool]:
        """Whether a text is of this form; it loads nothing."""
        ...


AnyForm = TypeVar("AnyForm", bound=Form)


def forms_in(room: str, *, last: str) -> list[Any]:
    """`FORM` of every file of the room but `load` and those whose names begin with `_`, in order; one of them last."""
    package = importlib.import_module(room)
    names = {file.name for file in pkgutil.iter_modules(package.__path__) if not file.name.startswith("_")}
    ordered = [*sorted(names - {"load", last}), last]
    return [importlib.import_module(f"{room}.{name}").FORM for name in ordered]


def form_of(what: str, spec: str, forms: Sequence[AnyForm]) -> AnyForm:
    """The first form that takes the spec; raises InvalidInput where none does, with all forms and the nearest guess."""
    for form in forms:
        if form.takes(spec):
            return form
    raise InvalidInput(f"{what} {spec!r}: {_reason(Path(spec))}; give {', '.join(form.words for form in forms)}")


def _reason(path: Path) -> str:
    if path.suffix == ".py" and path.is_file():
        return f"names no function of the file; write {path}:FUNCTION"
    if path.exists():
        return f"a {'folder' if path.is_dir() else 'file'} of a kind that is not known"
    folder = path.parent
    near = did_you_mean(path.name, [each.name for each in folder.iterdir()] if folder.is_dir() else [])
    return f"no such file or folder{near}"
