"""Files that appear whole or not at all."""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import reprlib
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, TypeVar

import safetensors.numpy
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from mixbit.core.errors import InvalidInput
from mixbit.core.io.versions import Versions

M = TypeVar("M")
_log = logging.getLogger("mixbit")


#: Errors of a file system that has no room.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
#: Begin of names of temporary folders, end of those of the files beside them whose lock says that they are used, and
#: the seconds after which such a file has its lock.
_SCRATCH, _LOCK, _SETTLED_S = "mixbit-", ".lock", 60.0
#: Errors of a file system that cannot lock files.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def file_errors(failure: str, way_out: str = "", *, inside: Path | None = None) -> Iterator[None]:
    """Raise InvalidInput where the block raises an OSError: `net.json: cannot be written (Disk full); free some`.

    With `inside`, a folder, other code runs in the block, and only errors of files in there, or of a full disk, count.
    """
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str | os.PathLike) else ""
        if inside is not None and error.errno not in _FULL and not Path(where).is_relative_to(inside):
            raise
        raise InvalidInput(f"{failure} ({error.strerror or error}){way_out}") from error


#: Largest file of JSON, and largest header of a safetensors file, in bytes.
MOST_JSON, MOST_HEADER = 64 * 2**20, 16 * 2**20
#: Values in a file of JSON, and in one of tables. A value of three bytes takes some 70 in memory, a wrong one 1,500.
MOST_VALUES, MOST_TABLE_VALUES = 2**18, 2**22
#: Keys of one object.
MOST_KEYS = 2**16
_CUT = reprlib.Repr()
_CUT.maxlevel, _CUT.maxstring, _CUT.maxother = 3, 120, 120


def quoted(value: Any) -> str:
    """A value from a file, for messages: cut, on one line, control characters escaped."""
    return _CUT.repr(value)[:200]


def open_file(path: Path) -> BufferedReader:
    """Open a file to read; raises InvalidInput unless it is a regular one: a pipe or a device may never end."""
    try:
        # without O_NONBLOCK, a pipe without a writer would wait
        with file_errors(f"{path}: cannot be read"):
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # no name of a file
        raise InvalidInput(f"{quoted(str(path))}: cannot be read ({error})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidInput(f"{path}: cannot be read (not a regular file); give a file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """What a regular file holds; raises InvalidInput for one of more than `most` bytes."""
    with open_file(path) as file, file_errors(f"{path}: cannot be read"):
        content = file.read(most + 1)
    if len(content) > most:
        raise InvalidInput(f"{path}: cannot be read (more than {most:,} bytes)")
    return content


def read_json(path: Path) -> Any:
    """Read one JSON value; raises InvalidInput where the file cannot be read, or is not what `json_of` takes."""
    return json_of(read_bytes(path, MOST_JSON), path, most_values=MOST_TABLE_VALUES)


def json_of(text: str | bytes, place: str | Path, *, most_values: int = MOST_VALUES, only_finite: bool = True) -> Any:
    """One JSON value, as RFC 8259 has it: each key once, numbers that are finite, at most 200 levels, whole characters.

    Raises InvalidInput, which names the place, for anything else, for whole numbers of more than 64 bits, and for more
    values than are asked for.
    """
    content = text.encode(errors="replace") if isinstance(text, str) else text
    if content.count(b",") + content.count(b"[") + content.count(b"{") > most_values:
        raise InvalidInput(f"{place}: cannot be read (more than {most_values:,} values)")
    number = _finite if only_finite else float
    try:
        from_json(text)  # not UTF-8, half characters, endless brackets
        return json.loads(
            text, object_pairs_hook=_each_once, parse_constant=number, parse_float=number, parse_int=_whole
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{place}: not valid JSON ({error})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {quoted(name)} stands twice")
    if len(fields) > MOST_KEYS:
        raise ValueError(f"an object of more than {MOST_KEYS:,} keys")
    return fields


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{quoted(text)} is no finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"{quoted(text)} does not fit into 64 bits")
    return number


def read_model(
    path: Path, model: type[M], what: str, *, versions: Versions | None = None, most_values: int = MOST_VALUES
) -> M:
    """Read a file of JSON as a pydantic model; raises InvalidInput, which names the first problem, for another."""
    return model_of(read_bytes(path, MOST_JSON), path, model, what, versions=versions, most_values=most_values)


def model_of(
    text: str | bytes,
    place: str | Path,
    model: Any,
    what: str,
    *,
    versions: Versions | None = None,
    most_values: int = MOST_VALUES,
) -> Any:
    """JSON text as a type that pydantic knows; raises InvalidInput, which names its place and the first problem.

    With `versions`, what is of an older version is lifted first. The type refuses numbers that are not finite, so that
    the message names their field. pydantic lists all problems: where there may be millions of values, lists are to end
    at the first.
    """
    content = json_of(text, place, most_values=most_values, only_finite=False)
    if versions is not None and (lifted := versions.lifted(content, place, what)) is not content:
        text = json.dumps(lifted)
    try:
        return _adapter(model).validate_json(text)
    except ValidationError as error:
        raise InvalidInput(f"{place}: not {what}: {first_problem(error)}") from error
    except InvalidInput as error:  # of a check in the type
        raise InvalidInput(f"{place}: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Where a value is wrong, why, and what was found: `layers.conv: Input should be a valid string (found 3)`."""
    problem = error.errors()[0]
    at = ".".join(str(part) for part in problem["loc"])[:200] or "the file"
    return f"{at}: {problem['msg'].removeprefix('Value error, ')} (found {quoted(problem['input'])})"


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)  # milliseconds each


def safetensors_bytes(path: Path) -> int:
    """How many bytes a safetensors file takes, by its header of MOST_HEADER bytes at most; else raises InvalidInput.

    The library parses a header of any length up to 100 MB, and takes one of two values of a key.
    """
    with open_file(path) as file, file_errors(f"{path}: cannot be read"):
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MOST_HEADER else b""
    if not 2 <= len(header) == length:
        raise InvalidInput(f"{path}: not a safetensors file (no header of at most {MOST_HEADER:,} bytes)")
    tensors = json_of(header.rstrip(b" "), path)
    try:
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise InvalidInput(f"{path}: not a safetensors file (its header names no data_offsets)") from error


def write_text(path: Path, text: str) -> None:
    """Write the text as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write the content beside `path` and rename it there, so that no reader, kill or power cut finds half a file.

    Raises InvalidInput where it cannot be written, or another process is writing it.
    """
    path = real_path(path)  # a link stays, and what it leads to is written
    with file_errors(f"{path}: cannot be written", "; choose another place"):
        new = hidden(path, "new")  # always the same, so that the next call replaces what a killed process left
        try:
            handle = open_locked(new)
        except BlockingIOError:
            raise InvalidInput(f"{path}: another process is writing it; wait for it, or choose another place") from None
        try:
            with os.fdopen(handle, "wb") as file:
                file.truncate()
                if path.exists():
                    os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
                file.write(content)
                file.flush()
                os.fsync(handle)
                os.replace(new, path)
            sync_folder(path.parent)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def real_path(path: Path) -> Path:
    """The absolute path without links; raises InvalidInput for what no file can be called."""
    try:
        real = Path(os.path.realpath(path))
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            real.lstat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{quoted(str(path))}: no name of a file ({reason}); choose another") from error
    return real


def beside(path: Path, name: str) -> Path:
    """The path with this name around that of the file, `{}` in it; long names are cut, with a hash of the whole."""
    whole = os.fsencode(path.name)
    cut = path.name if len(whole) <= 200 else os.fsdecode(whole[:100]) + hashlib.sha256(whole).hexdigest()[:16]
    return path.parent / name.format(cut)


def hidden(path: Path, kind: str) -> Path:
    """The name beside `path` that is mixbit's own: `.out.mixbit-new`."""
    return beside(path, f".{{}}.mixbit-{kind}")


def open_locked(path: Path) -> int:
    """Open or make a file that this process alone holds until it closes the handle, or ends in any way.

    Raises BlockingIOError where another one holds it, and other OSErrors. Where the file system has no locks, none is
    held, and that is logged.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                _log.warning("%s: files cannot be locked there; let no second run write to it", path.parent)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:  # removed or renamed by who held it, as a file that is not the same
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Let names that were made, renamed and removed in the folder outlast a power cut, where the file system can."""
    with suppress(OSError):
        _sync(path)


def sync_files(path: Path) -> None:
    """Let all files in the folder outlast a power cut; raises OSError."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder, name))
        sync_folder(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder; raises InvalidInput, which names TMPDIR, where the block cannot write into it."""
    way_out = "; make room there, or set TMPDIR to another place"
    with file_errors("temporary files cannot be written", way_out):
        place = Path(tempfile.gettempdir())
    failure = f"{place}: temporary files cannot be written"
    with file_errors(failure, way_out):
        _remove_left_over_scratch(place)
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        lock = open_locked(folder.with_suffix(_LOCK))
    try:
        with file_errors(failure, way_out, inside=folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(_LOCK).unlink(missing_ok=True)
        os.close(lock)


@cache
def _remove_left_over_scratch(place: Path) -> None:
    """Remove the temporary folders of processes that were killed: once in a process, since others have locks."""
    for lock in place.glob(f"{_SCRATCH}*{_LOCK}"):
        with suppress(OSError):  # of a process that runs, or removed by now, or another user's
            if lock.lstat().st_mtime > time.time() - _SETTLED_S:
                continue  # whoever makes it may not have locked it yet
            with os.fdopen(os.open(lock, os.O_RDWR | os.O_NOFOLLOW)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write safetensors with the permissions of any other new file; the library's own are the owner's alone."""
    path.write_bytes(with_metadata(safetensors.numpy.save(dict(arrays)), metadata))


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A file of safetensors with this metadata, in the order of names: the library's own order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(content[8 : 8 + size])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]])


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def check_matplotlib(picture: str) -> None:
    """Raise InvalidInput, which names the picture, where matplotlib is not installed."""
    if not has_matplotlib():
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
    with open_file(path) as file, file_errors(f"{path}: cannot be read", "; quantize again"):
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_new_file(path: Path, *, force: bool) -> None:
    """Raise InvalidInput unless a new file can be put at `path` (or replace the one there, with force)."""
    if real_path(path).is_dir():
        raise InvalidInput(f"{path}: a folder; give the name of a file")
    if path.exists() and not force:
        raise InvalidInput(f"{path}: exists already; choose another name or pass --force (force=True) to replace it")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InvalidInput(f"{path}: no folder that can be written to; make it, or choose another place")
