"""The user's code: run it, say where it fails, find it as `file.py:function` or `package.module:function`."""

import importlib
import importlib.util
import inspect
import io
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixbit.core.errors import InvalidInput, MixbitError, did_you_mean

#: Names of functions that a message lists.
MOST_NAMES = 20
#: Folders whose code is not the user's: this package and torch.
#: What the names of modules begin with that are made of the user's files.
_PREFIX = "mixbit_user_"
_NOT_THEIRS = tuple(str(folder) + os.sep for folder in (Path(__file__).parents[2], Path(torch.__file__).parent))


@contextmanager
def users_code(what: str | Callable[[BaseException], MixbitError]) -> Iterator[None]:
    """Run code that may raise anything: the user's, or that of a library which documents no errors.

    `what` fails, as in `the loss fails`; or it makes the error of what was raised.

    Raises:
        InvalidInput: the block raised an error, or ended the program: `the loss fails: KeyError: 'x' (net.py:7)`.
            Errors that mixbit raises on purpose pass as they are.
    """
    try:
        yield
    except MixbitError:
        raise
    except (Exception, SystemExit) as error:  # the only place that catches everything
        if isinstance(what, str):
            raise InvalidInput(f"{what}: {reason_of(error)}") from error
        raise what(error) from error


def reason_of(error: BaseException) -> str:
    """Type and first line of an error, and the line of the user's code that it came from."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    kind, lines = type(error).__name__, message.strip().splitlines() or [""]
    raised_elsewhere = "in DataLoader worker process" in lines[0]  # then the last line says what
    text = lines[-1] if raised_elsewhere else ": ".join(filter(None, [kind, lines[0]]))
    if isinstance(error, RecursionError):
        text += ", since a function calls itself without end, or a value is nested too deep"
    frames = users_frames(error)
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}:{error.lineno})"
    return f"{text} ({frames[-1].filename}:{frames[-1].lineno})" if frames else text


def users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an error that are neither torch's, nor Python's importing, nor this package's."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith(("<", *_NOT_THEIRS))]


@contextmanager
def users_program(what: str) -> Iterator[None]:
    """Run code that the command line names; it prints to standard error, since standard output is for results."""
    with users_code(what), redirect_stdout(sys.stderr):
        yield


def absolute(spec: str) -> str:
    """The spec with the absolute path of its file or folder, which holds from any folder."""
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        return f"{Path(place).absolute()}:{name}"
    return str(Path(spec).absolute()) if Path(spec).exists() else spec


def no_batches(data: Any) -> str:
    """What is no iterable of batches, and the way out, for messages."""
    is_dataset = hasattr(data, "__getitem__") and not isinstance(data, str | bytes | Mapping | Tensor)
    way_out = "wrap it, as DataLoader(dataset, batch_size=32) does" if is_dataset else "put a single one in a list"
    return f"a {type(data).__name__}, not an iterable of batches; {way_out}"


def load_function(spec: str, what: str) -> Any:
    """The function that the spec names; raises InvalidInput, with `what` it is for, where there is none."""
    place, _, name = spec.rpartition(":")
    if not names_function(spec):
        raise InvalidInput(f"{what} {spec!r} is not understood; write file.py:function or package.module:function")
    module = _module(place, spec, what)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near, shown = did_you_mean(name, known), ", ".join(known[:MOST_NAMES]) or "none"
        more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        raise InvalidInput(f"{what} {spec}: no function {name!r} there{near}; it has {shown}{more}")
    return function


def names_function(spec: str) -> bool:
    """Whether the spec is of the form `file.py:function` or `package.module:function`."""
    place, _, name = spec.rpartition(":")
    return bool(place and name)


def call_function(spec: str, what: str) -> Any:
    """What the function that the spec names returns; raises InvalidInput, with `what` it is for, where it fails."""
    function = load_function(spec, what)
    with users_program(f"{what} {spec}: fails when called"):
        return function()


def _module(place: str, spec: str, what: str) -> Any:
    path = Path(place)
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise InvalidInput(f"{what} {spec}: no file {path}")
    if not is_file and not all(part.isidentifier() for part in place.split(".")):
        near = f"; did you mean {place}.py?" if Path(f"{place}.py").is_file() else ""
        raise InvalidInput(
            f"{what} {spec}: {place!r} is no module{near}; write file.py:function or package.module:function"
        )
    folder = str(path.parent.absolute() if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        with users_program(f"{what} {spec}: does not import"):
            return _import_file(path) if is_file else importlib.import_module(place)
    finally:
        sys.path.remove(folder)


def _import_file(path: Path) -> Any:
    name = f"{_PREFIX}{path.stem}"
    spec: Any = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Uncached(SourceFileLoader):
    """Reads the file itself, and leaves none beside it: Python's cache tells files apart by whole seconds and bytes."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        """Nothing that a cache could go by."""
        raise OSError(f"{path}: no cache")


def pickled(value: Any) -> bytes:
    """The value for another process, in which functions and classes of the user's files go by file and name."""
    file = io.BytesIO()
    _ByFile(file).dump(value)
    return file.getvalue()


class _ByFile(pickle.Pickler):
    """A file may have been imported several times here, and not at all there, so modules' names do not tell."""

    def reducer_override(self, value: Any) -> Any:
        """How the value is made there; NotImplemented for the usual way."""
        if not (inspect.isfunction(value) or inspect.isclass(value)) or not value.__module__.startswith(_PREFIX):
            return NotImplemented
        if "<" in value.__qualname__:  # a local one, or a lambda
            return NotImplemented
        file = inspect.getfile(value)
        return _of_file, (str(Path(file).absolute()), value.__qualname__)


def _of_file(place: str, name: str) -> Any:
    """The function or class of that name in the user's file, which is imported unless it was."""
    value: Any = sys.modules.get(f"{_PREFIX}{Path(place).stem}")
    if value is None or Path(value.__file__).absolute() != Path(place):
        value = _module(place, place, "file")
    for part in name.split("."):
        value = getattr(value, part)
    return value
