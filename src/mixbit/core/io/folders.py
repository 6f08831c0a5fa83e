"""Folders that appear whole or not at all, and that one process at a time writes."""

import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import (
    check_new_file,
    file_errors,
    hidden,
    open_locked,
    real_path,
    sha256,
    sync_files,
    sync_folder,
    write_text,
)
from mixbit.core.io.terminal import interrupts_later

#: In a folder that is there already: new files until all are written, old ones until all new ones are put, and the
#: digests of the new ones while they are.
NEW, OLD, DIGESTS = ".mixbit-new", ".mixbit-old", ".mixbit-digests"
#: After so many seconds who waits for a path looks again whether it is free.
SECONDS_BETWEEN = 0.2
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
def reserved(path: Path | None, *, wait: bool = False) -> Iterator[None]:
    """Let no other process or thread reserve the path before the block ends, or this process, however it ends.

    What killed processes left behind is removed. The block may reserve the path again. None reserves nothing. Raises
    InvalidInput, which names the other process, where the path is taken; or waits until it is free.
    """
    if path is None:
        yield
        return
    real = real_path(path)
    inside = real.is_dir() and (real == real.parent or not os.access(real.parent, os.W_OK | os.X_OK))
    lock, me = hidden(real / "out" if inside else real, "lock"), threading.get_ident()
    if _reserved.get(lock, (None, None))[1] == me:
        yield
        return
    missing = [parent for parent in lock.parents if not parent.exists()]
    try:
        with file_errors(f"{path}: cannot be made", _WAY_OUT):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(lock, path, wait=wait)
        _reserved[lock] = handle, me
        try:
            with file_errors(f"{path}: cannot be written", _WAY_OUT):
                _settle(real)
            yield
        finally:
            if (held := _reserved.pop(lock, None)) is not None:  # a process forked in the block holds nothing
                lock.unlink(missing_ok=True)
                os.close(held[0])
    finally:
        for parent in missing:  # the nearest first; they stay where they hold something
            with suppress(OSError):
                parent.rmdir()


def _open(lock: Path, path: Path, *, wait: bool) -> int:
    """The handle of the lock, which says who holds it."""
    try:
        while True:
            try:
                handle = open_locked(lock)
                break
            except BlockingIOError:
                if not wait:
                    raise
                time.sleep(SECONDS_BETWEEN)
    except BlockingIOError:
        holder = lock.read_text(encoding="utf-8") if lock.exists() else ""
        holder = holder or "another process"
        raise InvalidInput(f"{path}: {holder} is writing there; wait for it, or choose another place") from None
    with suppress(OSError):  # a full disk: the lock holds without words
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S},".encode())
    return handle


def check_writable_folder(path: Path, *, force: bool) -> None:
    """Raise InvalidInput unless a new folder can be put at `path` (or replace what is there, with force) now."""
    real_path(path)
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
def new_file(path: Path, *, force: bool) -> Iterator[None]:
    """Let the block make the file, and no other process; raises InvalidInput as `check_new_file` and `reserved` do."""
    check_new_file(path, force=force)
    with reserved(path):
        yield


@contextmanager
def whole_folder(path: Path, *, last: str, force: bool = False, also: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well and vanishes otherwise.

    Where `path` is a folder already, its files replace those of the same names (with `force`), and those named in
    `also`; other files there stay. All old ones go before the first new one comes, the file `last` first, and it comes
    last. So the folder holds files of one kind alone at any time, and with `last` all of them. After a kill before
    that, the next process that reserves the folder brings the old files back.
    """
    with reserved(path):
        check_writable_folder(path, force=force)
        new, failure = _new_folder(path), f"{path}: cannot be written"
        try:
            with file_errors(failure, _WAY_OUT):
                new.mkdir()
            with file_errors(failure, _WAY_OUT, inside=new):
                yield new
            with file_errors(failure, _WAY_OUT), interrupts_later():
                sync_files(new)
                _put(new, path, last, also)
        finally:
            with interrupts_later(), suppress(OSError):  # which the next process tries again
                _settle(real_path(path))


def _new_folder(path: Path) -> Path:
    """A rename stays within a file system, and a folder that exists may be another one (a mount point)."""
    return path / NEW if path.is_dir() else hidden(real_path(path), "folder")


def _put(new: Path, path: Path, last: str, also: Collection[str]) -> None:
    """Put the folder at the path, or its files into the folder that is there; raises OSError."""
    if not path.exists():
        os.replace(new, path)
        sync_folder(path.absolute().parent)
        return
    names = sorted((file.name for file in new.iterdir()), key=lambda name: (name == last, name))
    for name in names:
        if (path / name).is_dir():
            raise InvalidInput(f"{path / name}: a folder is in the way; choose another place")
    write_text(path / DIGESTS, json.dumps({name: sha256(new / name) for name in names}))
    (path / OLD).mkdir()
    for name in [last, *sorted({*names, *also} - {last})]:
        if os.path.lexists(path / name):
            os.replace(path / name, path / OLD / name)
            sync_folder(path)
    for name in names:
        os.replace(new / name, path / name)
        sync_folder(path)


def _settle(path: Path) -> None:
    """End what `_put` began: new files stay where all of them came, else the old ones come back; raises OSError.

    Only a file that is to the bit what was being put, is ever removed, and none is replaced: what stands in the folder
    may be anyone's.
    """
    left = hidden(path, "folder")
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left)
    if not path.is_dir():
        return
    new, old, digests = path / NEW, path / OLD, _digests(path / DIGESTS)
    came = [
        name
        for name, digest in digests.items()
        if not (new / name).exists() and (path / name).is_file() and sha256(path / name) == digest
    ]
    if old.is_dir() and not old.is_symlink():
        if [*digests][-1:] != came[-1:]:
            for name in came:
                (path / name).unlink()
            for file in old.iterdir():
                if not os.path.lexists(path / file.name):
                    os.replace(file, path / file.name)
            sync_folder(path)
        shutil.rmtree(old)
    if new.is_dir() and not new.is_symlink():
        shutil.rmtree(new)
    (path / DIGESTS).unlink(missing_ok=True)


def _digests(path: Path) -> dict[str, str]:
    """Name -> digest; none where the file is not what `_put` writes: nothing outside the folder is ever removed."""
    from mixbit.core.io.json_files import read_json

    if not path.is_file():
        return {}
    try:
        digests: Any = read_json(path)
    except InvalidInput:
        return {}
    plain = isinstance(digests, dict) and all(Path(name).name == name for name in digests)
    return digests if plain else {}
