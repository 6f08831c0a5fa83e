"""Files that appear whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import safetensors.numpy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from mixbit.core.errors import InvalidInput

M = TypeVar("M")


@contextmanager
def file_errors(failure: str, way_out: str = "") -> Iterator[None]:
    """Raise InvalidInput where the block raises an OSError: `net.json: cannot be written (Disk full); free some`."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{failure} ({error.strerror or error}){way_out}") from error


def read_json(path: Path) -> Any:
    """Read one JSON value; raises InvalidInput where the file cannot be read, or stops being JSON."""
    try:
        with file_errors(f"{path}: cannot be read"):
            return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, endless digits, endless brackets
        raise InvalidInput(f"{path}: not valid JSON ({error})") from error


def read_model(path: Path, model: type[M], what: str) -> M:
    """Read a file of JSON as a pydantic model; raises InvalidInput, which names the first problem, for another."""
    return model_of(json.dumps(read_json(path)), path, model, what)


def model_of(text: str, place: str | Path, model: Any, what: str) -> Any:
    """JSON text as a type that pydantic knows; raises InvalidInput, which names its place and the first problem."""
    try:
        return TypeAdapter(model).validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"]) or "the file"
        reason = f"{at}: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r:.80})"
        raise InvalidInput(f"{place}: not {what}: {reason}") from error
    except InvalidInput as error:  # of a check in the type
        raise InvalidInput(f"{place}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write the text as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write the content beside `path` and rename it there, so that readers never see half a file."""
    with file_errors(f"{path}: cannot be written", "; choose another place"):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write safetensors with the permissions of any other new file; the library's own are the owner's alone."""
    path.write_bytes(safetensors.numpy.save(dict(arrays), dict(metadata)))


def check_matplotlib(picture: str) -> None:
    """Raise InvalidInput, which names the picture, where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"{picture} needs matplotlib, which is not installed; pip install 'mixbit[plot]'")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def save_figure(path: Path, figure: Any) -> None:
    """Write the figure as PNG, as `write_bytes` does."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits; raises InvalidInput where it cannot be read."""
    with file_errors(f"{path}: cannot be read", "; quantize again"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_new_file(path: Path, *, force: bool) -> None:
    """Raise InvalidInput unless a new file can be put at `path` (or replace the one there, with force)."""
    if path.is_dir():
        raise InvalidInput(f"{path}: a folder; give the name of a file")
    if path.exists() and not force:
        raise InvalidInput(f"{path}: exists already; choose another name or pass --force (force=True) to replace it")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InvalidInput(f"{path}: no folder that can be written to; make it, or choose another place")


def check_writable_folder(path: Path, *, force: bool) -> None:
    """Raise InvalidInput unless a new folder can be put at `path` (or replace what is there, with force)."""
    nearest = path.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InvalidInput(f"{nearest}: a file is in the way; choose another folder")
    with file_errors(f"{path}: cannot be written", "; choose another folder"):
        os.rmdir(tempfile.mkdtemp(dir=nearest))
        path.absolute().is_dir()
    if not force and nearest == path.absolute() and any(path.iterdir()):
        raise InvalidInput(f"{path}: the folder is not empty; choose another or pass --force (force=True)")


@contextmanager
def whole_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes otherwise.

    With `force` its files replace those of the same names at `path`; other files there stay.
    """
    check_writable_folder(path, force=force)
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    # a rename stays within a file system, and a folder that exists may be another one (a mount point)
    place = path if path.exists() else path.absolute().parent
    with file_errors(f"{path}: cannot be made", "; choose another folder"):
        place.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place, prefix=f".{path.name[:50]}."))
    try:
        with file_errors(f"{path}: cannot be written", "; choose another folder"):
            yield temporary  # the disk may become full
            _move(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:  # the nearest first; they stay where they hold the results
            with suppress(OSError):
                parent.rmdir()


def _move(temporary: Path, path: Path) -> None:
    """Put the folder at the path, or its files into the folder that is there; raises OSError."""
    os.chmod(temporary, 0o777 & ~_umask())
    if not path.exists():
        os.replace(temporary, path)
        return
    files = sorted(temporary.iterdir())
    for file in files:
        if (path / file.name).is_dir():
            raise InvalidInput(f"{path / file.name}: a folder is in the way; choose another place")
    for file in files:
        os.replace(file, path / file.name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
