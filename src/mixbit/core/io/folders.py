"""Folders that appear whole or not at all, and that one process at a time writes."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import file_errors, hidden, open_locked, read_json, sync_files, sync_folder, write_text
from mixbit.core.io.terminal import interrupts_later

#: In a folder that is there already: new files until all are written, and the names of those that are being put.
NEW, NAMES = ".mixbit-new", ".mixbit-names"
_WAY_OUT = "; choose another folder"
#: File that is locked -> its handle, and the thread that reserved.
_reserved: dict[Path, tuple[int, int]] = {}


def _let_go_of_the_parents() -> None:
    """A process that was forked holds no folder: it may outlive the one that does."""
    for handle, _ in _reserved.values():
        os.close(handle)
    _reserved.clear()


os.register_at_fork(after_in_child=_let_go_of_the_parents)


@contextmanager
def reserved(path: Path | None) -> Iterator[None]:
    """Let no other process or thread reserve the path before the block ends, or this process, however it ends.

    What killed processes left behind is removed. The block may reserve the path again. None reserves nothing. Raises
    InvalidInput, which names the other process, where the path is taken.
    """
    if path is None:
        yield
        return
    real = Path(os.path.realpath(path))
    inside = real.is_dir() and not os.access(real.parent, os.W_OK | os.X_OK)
    lock, me = hidden(real / "out" if inside else real, "lock"), threading.get_ident()
    if _reserved.get(lock, (None, None))[1] == me:
        yield
        return
    missing = [parent for parent in lock.parents if not parent.exists()]
    try:
        with file_errors(f"{path}: cannot be made", _WAY_OUT):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(lock, path)
        _reserved[lock] = handle, me
        try:
            with file_errors(f"{path}: cannot be written", _WAY_OUT):
                _remove_left_overs(real)
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(_reserved.pop(lock)[0])
    finally:
        for parent in missing:  # the nearest first; they stay where they hold something
            with suppress(OSError):
                parent.rmdir()


def _open(lock: Path, path: Path) -> int:
    """The handle of the lock, which says who holds it."""
    try:
        handle = open_locked(lock)
    except BlockingIOError:
        holder = lock.read_text(encoding="utf-8") if lock.exists() else ""
        holder = holder or "another process"
        raise InvalidInput(f"{path}: {holder} is writing there; wait for it, or choose another place") from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S},".encode())
    return handle


def check_writable_folder(path: Path, *, force: bool) -> None:
    """Raise InvalidInput unless a new folder can be put at `path` (or replace what is there, with force) now."""
    nearest = path.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InvalidInput(f"{nearest}: a file is in the way; choose another folder")
    with file_errors(f"{path}: cannot be written", _WAY_OUT), reserved(path):
        _new_folder(path).mkdir()
        _new_folder(path).rmdir()
        if not force and nearest == path.absolute() and any(".mixbit-" not in file.name for file in path.iterdir()):
            raise InvalidInput(f"{path}: the folder is not empty; choose another or pass --force (force=True)")


@contextmanager
def whole_folder(path: Path, *, last: str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes otherwise.

    Where `path` is a folder already, its files replace those of the same names (with `force`; other files there stay):
    all old ones go before the first new one comes, the file `last` first, and it comes last. So the folder holds files
    of one kind alone at any time, and with `last` all of them. What a kill leaves before that is removed by the next
    process that reserves the folder.
    """
    with reserved(path):
        check_writable_folder(path, force=force)
        new = _new_folder(path)
        try:
            with file_errors(f"{path}: cannot be written", _WAY_OUT):  # the disk may become full
                new.mkdir()
                yield new
                sync_files(new)
                with interrupts_later():
                    _put(new, path, last)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _new_folder(path: Path) -> Path:
    """A rename stays within a file system, and a folder that exists may be another one (a mount point)."""
    return path / NEW if path.is_dir() else hidden(Path(os.path.realpath(path)), "new")


def _put(new: Path, path: Path, last: str) -> None:
    """Put the folder at the path, or its files into the folder that is there; raises OSError."""
    if not path.exists():
        os.replace(new, path)
        sync_folder(path.absolute().parent)
        return
    names = sorted((file.name for file in new.iterdir()), key=lambda name: (name == last, name))
    for name in names:
        if (path / name).is_dir():
            raise InvalidInput(f"{path / name}: a folder is in the way; choose another place")
    write_text(path / NAMES, json.dumps(names))
    for name in reversed(names):
        (path / name).unlink(missing_ok=True)
        sync_folder(path)
    for name in names:
        os.replace(new / name, path / name)
        sync_folder(path)
    (path / NAMES).unlink()


def _remove_left_overs(path: Path) -> None:
    """Remove what killed processes left: folders of new files, and files that were being put, unless all came.

    Raises OSError.
    """
    if (path / NAMES).is_file():
        names = _plain_names(path / NAMES)
        if names and not (path / names[-1]).exists():
            for name in names:
                (path / name).unlink(missing_ok=True)
    for new in (path / NEW, hidden(path, "new")):
        if new.is_dir() and not new.is_symlink():
            shutil.rmtree(new)
    (path / NAMES).unlink(missing_ok=True)


def _plain_names(path: Path) -> list[str]:
    """The names in the file; none where it is not what `_put` writes: nothing outside the folder is ever removed."""
    try:
        names: Any = read_json(path)
    except InvalidInput:
        return []
    plain = isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name for name in names)
    return names if plain else []
