"""MODEL and DATA as the command line names them: `file.py:function` or `package.module:function`."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task


def load_model(spec: str) -> nn.Module:
    """What the function returns, which must be a module; raises InvalidInput otherwise."""
    model = _call(spec, "MODEL")
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"MODEL {spec}: returns a {type(model).__name__}, not an nn.Module")
    return model


def absolute(spec: str) -> str:
    """The spec, with the path of its file made absolute: it then holds from any folder."""
    place, _, name = spec.rpartition(":")
    return f"{Path(place).absolute()}:{name}" if place.endswith(".py") else spec


def load_data(spec: str) -> list[Any]:
    """The batches that the function returns, as a list; raises InvalidInput where there are none."""
    data = _iterable(spec)
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            batches = list(data)
    except (Exception, SystemExit) as error:  # the user's own code fails while it yields
        raise InvalidInput(f"DATA {spec}: fails while iterated: {_last_line(error)}") from error
    if not batches:
        raise InvalidInput(f"DATA {spec}: holds no batch; return an iterable of at least one batch")
    return batches


def load_loader(spec: str) -> Iterable[Any]:
    """What the function returns, to be gone through once an epoch, in an order and with changes of its own."""
    data = _iterable(spec)
    return load_data(spec) if isinstance(data, Iterator) else data


def _iterable(spec: str) -> Iterable[Any]:
    data = _call(spec, "DATA")
    if isinstance(data, str | bytes | Mapping | Tensor) or not isinstance(data, Iterable):
        raise InvalidInput(f"DATA {spec}: returns a {type(data).__name__}, not an iterable of batches")
    return data


def load_task(name: str, loss: str | None) -> Task:
    """The task of that name, under the loss that the spec names: a function (output, labels) -> mean of the batch."""
    task = Task.named(name)
    return task if loss is None else task.with_loss(load_function(loss, "LOSS"))


def load_function(spec: str, what: str) -> Any:
    """The function that the spec names; raises InvalidInput, which names what it is for, where there is none."""
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise InvalidInput(f"{what} {spec!r} is not understood; write file.py:function or package.module:function")
    module = _module(place, spec, what)
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise InvalidInput(f"{what} {spec}: no function {name!r} there; it has {known or 'none'}")
    return function


def _call(spec: str, what: str) -> Any:
    function = load_function(spec, what)
    try:
        with redirect_stdout(sys.stderr):
            return function()
    except (Exception, SystemExit) as error:  # whatever the user's code raises is shown as it is
        raise InvalidInput(f"{what} {spec}: fails when called: {_last_line(error)}") from error


def _module(place: str, spec: str, what: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        try:
            with redirect_stdout(sys.stderr):
                return importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise InvalidInput(f"{what} {spec}: does not import: {_last_line(error)}") from error
        finally:
            sys.path.remove(str(Path.cwd()))
    path = Path(place)
    if not path.is_file():
        raise InvalidInput(f"{what} {spec}: no file {path}")
    name = f"mixbit_user_{path.stem}"
    loader = importlib.util.spec_from_file_location(name, path)
    if loader is None or loader.loader is None:
        raise InvalidInput(f"{what} {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        with redirect_stdout(sys.stderr):
            loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InvalidInput(f"{what} {spec}: does not import: {_last_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def _last_line(error: BaseException) -> str:
    """The last line of the user's traceback, and the place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}:{error.lineno})"
    return (traceback.format_exception_only(error)[-1].strip().splitlines() or [type(error).__name__])[-1] + place
