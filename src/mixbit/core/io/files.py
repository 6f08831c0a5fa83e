"""Files that appear whole or not at all."""

import errno
import fcntl
import hashlib
import logging
import os
import reprlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from mixbit.core.errors import InvalidInput

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


def cache_folder() -> Path:
    """The folder of what can be made again, which need not exist: MIXBIT_CACHE, or `mixbit` in the user's cache.

    Raises InvalidInput where the user has no home.
    """
    own = os.environ.get("MIXBIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mixbit"
    try:
        return Path(own).expanduser().absolute()
    except RuntimeError as error:
        raise InvalidInput(f"{own}: {error}; set MIXBIT_CACHE to a folder") from error


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
