import errno
import functools
import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io import json_files
from mixbit.core.io.files import (
    hidden,
    open_locked,
    quoted,
    scratch_folder,
    sha256,
    write_text,
)
from mixbit.core.io.folders import whole_folder
from mixbit.core.io.json_files import read_json
from mixbit.core.io.tensors import safetensors_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_text_replaces_the_whole_file(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old and long")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["plan.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_a_written_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "written", "text")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"missing/plan\.json: cannot be written \(No such file"):
        write_text(tmp_path / "missing" / "plan.json", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInput, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe", Path("/dev/zero"), Path("a\0b"), Path("a\ud800")):
        for read in (read_json, sha256, safetensors_bytes):
            with pytest.raises(InvalidInput, match="cannot be read"):
                read(path)
    monkeypatch.setattr(json_files, "MOST_JSON", 8)
    (tmp_path / "long").write_text('"12345678"')
    with pytest.raises(InvalidInput, match=r"long: cannot be read \(more than 8 bytes"):
        read_json(tmp_path / "long")


@pytest.mark.parametrize(
    "value", ["\x1b[31m" + "a" * 999, ["x" * 999] * 999, functools.reduce(lambda x, _: [x], range(9999), 1), 9**999]
)
def test_quoted_values_are_short_and_plain(value):
    text = quoted(value)
    assert len(text) <= 200
    assert text.isprintable()


def test_what_a_killed_process_left_of_a_file_is_replaced(tmp_path):
    hidden(tmp_path / "plan.json", "new").write_text("half of it, and longer than the new text")
    write_text(tmp_path / "plan.json", "new")
    assert (tmp_path / "plan.json").read_text() == "new"
    assert names(tmp_path) == ["plan.json"]


def test_a_file_that_another_one_writes_is_left_to_it(tmp_path):
    handle = open_locked(hidden(tmp_path / "plan.json", "new"))
    with pytest.raises(InvalidInput, match=r"plan\.json: another process is writing it; wait for it"):
        write_text(tmp_path / "plan.json", "new")
    os.close(handle)
    write_text(tmp_path / "plan.json", "new")
    assert names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 120, os.fsdecode(b"\xff" * 250)])
def test_long_names_are_hidden_under_short_ones_apart(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert names(tmp_path) == [name]
    assert hidden(tmp_path / name, "new") != hidden(tmp_path / f"{name[:-1]}y", "new")


def test_a_full_place_for_temporary_files_is_told_as_such(tmp_path, monkeypatch):
    """Also within a folder of results, which is not to blame."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))

    def write():
        with whole_folder(tmp_path / "out", last="result.json"), scratch_folder():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = r"full: temporary files cannot be written \(No .*\); make room there, or set TMPDIR to another place"
    with pytest.raises(InvalidInput, match=said):
        write()
    (tmp_path / "full").mkdir()
    with pytest.raises(InvalidInput, match=said.replace("No .*", "No space left on device")):
        write()
    assert names(tmp_path) == ["full"]


def test_a_link_stays_and_its_file_keeps_its_mode(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    """By the next process, and not those of one that runs."""
    code = "import os, signal, sys, time; from mixbit.core.io import files\n"
    kill = (
        code + "with files.scratch_folder() as folder: (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", kill], env=environment, check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    for path in tmp_path.glob("*.lock"):
        os.utime(path, (0, 0))
    look = code + "with files.scratch_folder(): print(len(os.listdir(os.environ['TMPDIR'])))"
    with open_lock(tmp_path):
        found = subprocess.run(
            [sys.executable, "-c", look], env=environment, check=True, capture_output=True, text=True
        )
        assert found.stdout == "4\n"
        assert len(names(tmp_path)) == 2
    subprocess.run([sys.executable, "-c", look], env=environment, check=True, capture_output=True)
    assert names(tmp_path) == []


@contextmanager
def open_lock(folder):
    """Hold the lock of what is there, as the process that made it would."""
    (lock,) = folder.glob("*.lock")
    handle = open_locked(lock)
    yield
    os.close(handle)
