import errno
import fcntl
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import check_new_file, write_text
from mixbit.core.io.folders import check_writable_folder, new_file, reserved, whole_folder

LAST = "plan.json"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_and_raise(path, error, *, force=False):
    with whole_folder(path, last=LAST, force=force) as folder:
        (folder / "plan.json").write_text("new")
        raise error


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "new" / "out"
    with whole_folder(out, last=LAST) as folder:
        (folder / "plan.json").write_text("plan")
        assert not out.exists()
    assert names(out) == ["plan.json"]
    assert names(out.parent) == ["out"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_block_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fill_and_raise(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_an_interrupted_block_leaves_the_old_files(tmp_path):
    (tmp_path / "plan.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fill_and_raise(tmp_path, KeyboardInterrupt, force=True)
    assert (tmp_path / "plan.json").read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out", last=LAST) as folder:
        assert folder.parent == tmp_path / "out"  # which may be a file system of its own: no rename into it from beside
        assert folder.name.startswith(".")
        (folder / "plan.json").write_text("plan")
    assert names(tmp_path / "out") == ["plan.json"]
    assert names(tmp_path) == ["out"]


def test_a_folder_with_files_is_refused_without_force(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text("old")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="out: the folder is not empty; choose another or pass --force"):
        fill_and_raise(out, AssertionError)
    with whole_folder(out, last=LAST, force=True) as folder:
        (folder / "plan.json").write_text("new")
    assert (out / "plan.json").read_text() == "new"
    assert (out / "notes.txt").read_text() == "mine"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_file_in_the_way_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    for force in (False, True):
        with pytest.raises(InvalidInput, match="a file is in the way"):
            check_writable_folder(tmp_path / place, force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_nowhere_is_in_the_way(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="a file is in the way"):
        check_writable_folder(tmp_path / "out", force=True)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # may write anywhere
        monkeypatch.setattr(os, "mkdir", refuse)
        monkeypatch.setattr(os, "access", lambda *_: False)
    try:
        with pytest.raises(InvalidInput, match=r"out: cannot be written \(Permission denied\); choose another folder"):
            check_writable_folder(tmp_path / "out", force=False)
        with pytest.raises(InvalidInput, match=r"plan\.json: no folder that can be written to"):
            check_new_file(tmp_path / "plan.json", force=False)
    finally:
        tmp_path.chmod(0o700)
    assert names(tmp_path) == []


def test_checking_creates_nothing(tmp_path):
    check_writable_folder(tmp_path / "a" / "b", force=False)
    assert names(tmp_path) == []


BEGIN = "import os, sys, signal; from pathlib import Path; from mixbit.core.io import folders\n"


def in_a_process(work):
    """Its exit code: that of a signal is negative."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def put_and_be_killed(out, position, force):
    """Put a new folder, killed at the change of names of files of that number: before it where even, else after it."""
    left = [position]

    def dying(change):
        def call(*words, **named):
            for step in (lambda: None, lambda: change(*words, **named)):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                step()

        return call

    with whole_folder(out, last=LAST, force=force) as folder:
        for name in ("model", LAST):
            (folder / name).write_text("new")
        os.replace, Path.unlink = dying(os.replace), dying(Path.unlink)


@pytest.mark.parametrize("before", ["absent", "empty", "old"])
def test_a_kill_at_any_change_leaves_the_old_folder_or_the_new_one_or_none(tmp_path, before):
    """A folder is whole where its last file is there; one that is not is filled by the same call."""
    position, seen = 0, set()
    while True:
        out, force = tmp_path / str(position) / "out", before == "old"
        if before != "absent":
            out.mkdir(parents=True)
        if before == "old":
            for name in ("mine", "model", LAST):
                (out / name).write_text("old")
        if (status := in_a_process(partial(put_and_be_killed, out, position, force))) == 0:
            break
        assert status == -signal.SIGKILL
        found = {name: (out / name).read_text() for name in ("model", LAST) if (out / name).exists()}
        assert len(set(found.values())) <= 1, "old and new files are mixed"
        assert LAST not in found or len(found) == 2
        seen.add(found.get(LAST))
        with reserved(out):  # as whoever comes next does, and if it were to read alone
            pass
        kept = {(out / name).read_text() for name in ("model", LAST) if (out / name).exists()}
        assert kept == {"absent": {found.get(LAST)} - {None}, "empty": {found.get(LAST)} - {None}}.get(
            before, {found.get(LAST) or "old"}
        )
        with whole_folder(out, last=LAST, force=force or LAST in found) as folder:
            for name in ("model", LAST):
                (folder / name).write_text("again")
        assert names(out) == [*(["mine"] if before == "old" else []), "model", LAST]
        assert (out / "model").read_text() == "again"
        assert names(out.parent) == ["out"]
        position += 1
    assert position > (3 if before == "absent" else 8)
    assert seen == {"new", None} | ({"old"} if before == "old" else set())


def test_another_process_is_refused_and_named(tmp_path):
    out = tmp_path / "new" / "out"

    def refused(path):
        def check():
            with pytest.raises(InvalidInput, match=said):
                check_writable_folder(path, force=True)

        return in_a_process(check) == 0

    said = f"out: process {os.getpid()}, since 2.* is writing there; wait for it, or choose another place"
    with reserved(out), reserved(out):  # this thread may again
        assert refused(out)
        (tmp_path / "link").symlink_to(tmp_path / "new")
        assert refused(tmp_path / "link" / "out")  # the same folder
        assert not refused(tmp_path / "new" / "another out")
    assert not refused(out)
    assert names(tmp_path) == ["link"]


def test_another_thread_is_refused(tmp_path):
    refused = []

    def reserve():
        with pytest.raises(InvalidInput, match=f"process {os.getpid()}, since"), reserved(tmp_path / "out"):
            pass
        refused.append(True)

    with reserved(tmp_path / "out"):
        thread = threading.Thread(target=reserve)
        thread.start()
        thread.join()
    assert refused == [True]


def test_a_killed_process_holds_nothing_and_its_child_neither(tmp_path):
    """A forked child outlives its parent for a moment; what it inherited does not count."""
    code = """
with folders.reserved(Path(sys.argv[1])):
    ready, say = os.pipe()
    if os.fork() == 0:
        os.write(say, b"1")
        signal.pause()
    os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", BEGIN + code, tmp_path / "out"], start_new_session=True)
    try:
        assert process.wait() == -signal.SIGKILL
        assert names(tmp_path) == [".out.mixbit-lock"]
        with reserved(tmp_path / "out"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert names(tmp_path) == []


def test_only_what_is_left_of_this_folder_is_removed(tmp_path):
    out, beside = tmp_path / "out", [".out.b.mixbit-new", ".out.backup", "out.txt"]
    for name in beside:
        (tmp_path / name).mkdir()
    for place in (tmp_path / ".out.mixbit-folder", out / ".mixbit-new"):
        place.mkdir(parents=True)
        (place / "model").write_text("half")
    (tmp_path / "mine").write_text("mine")
    (out / ".mixbit-digests").write_text(json.dumps({"../mine": "", "/etc/hostname": ""}))  # no names that we write
    with whole_folder(out, last=LAST) as folder:
        (folder / LAST).write_text("new")
    assert names(out) == [LAST]
    assert names(tmp_path) == [*beside[:2], "mine", "out", "out.txt"]


def test_a_folder_in_a_place_that_cannot_be_written_is_locked_from_inside(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    with whole_folder(out, last=LAST) as folder:
        (folder / LAST).write_text("new")
        assert names(out) == [".mixbit-new", ".out.mixbit-lock"]
    assert names(out) == [LAST]


def test_what_others_left_under_our_names_takes_nothing_of_the_users(tmp_path):
    """A folder may come from anyone: only what is to the bit what was being put, is removed."""
    (tmp_path / "thesis").write_text("mine")
    for name, planted in ((".mixbit-old", "thesis"), (".mixbit-new", "more")):
        (tmp_path / name).mkdir()
        (tmp_path / name / planted).write_text("theirs")
    (tmp_path / ".mixbit-digests").write_text(json.dumps({"thesis": "0" * 64, "more": "0" * 64}))
    with pytest.raises(InvalidInput, match="not empty"):
        check_writable_folder(tmp_path, force=False)
    assert names(tmp_path) == ["thesis"]
    assert (tmp_path / "thesis").read_text() == "mine"


def test_an_error_while_files_are_put_leaves_the_old_ones(tmp_path, monkeypatch):
    for name in ("model", LAST):
        (tmp_path / name).write_text("old")
    replace, left = os.replace, [4]

    def fail(*paths):
        if Path(paths[1]).parent in (tmp_path, tmp_path / ".mixbit-old"):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(*paths)

    monkeypatch.setattr(os, "replace", fail)

    def fill():
        with whole_folder(tmp_path, last=LAST, force=True) as folder:
            for name in ("model", LAST):
                (folder / name).write_text("new")

    with pytest.raises(InvalidInput, match="cannot be written \\(Input/output error\\)"):
        fill()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model": "old", LAST: "old"}


def test_files_of_another_kind_go_with_those_they_stood_beside(tmp_path):
    for name in ("model.xml", "mine", LAST):
        (tmp_path / name).write_text("old")
    with whole_folder(tmp_path, last=LAST, force=True, also=["model.xml"]) as folder:
        (folder / "model.onnx").write_text("new")
        (folder / LAST).write_text("new")
    assert names(tmp_path) == ["mine", "model.onnx", LAST]


def test_errors_of_other_files_are_not_blamed_on_the_folder(tmp_path):
    def look():
        with whole_folder(tmp_path / "out", last=LAST):
            Path("/nowhere/weights.csv").read_text()

    with pytest.raises(FileNotFoundError, match="weights"):
        look()


def test_a_process_that_was_forked_in_the_block_leaves_the_lock(tmp_path):
    def leave():
        raise SystemExit(0)

    with reserved(tmp_path / "out"):
        assert in_a_process(leave) == 0
        assert names(tmp_path) == [".out.mixbit-lock"]
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["/", "a\0b"])
def test_what_no_folder_can_be_called_is_refused(place):
    with pytest.raises(InvalidInput):
        check_writable_folder(Path(place), force=False)


def test_a_full_disk_does_not_lock_the_process_out(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", full)
    with reserved(tmp_path / "out"):
        pass
    monkeypatch.undo()
    with reserved(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with whole_folder(tmp_path / "out", last=LAST) as folder:
        (folder / LAST).write_text("new")
    assert names(tmp_path / "out") == [LAST]
    assert "files cannot be locked there" in caplog.text


def test_a_new_file_replaces_an_old_one_with_force_alone(tmp_path):
    (tmp_path / "plan.json").write_text("old")
    with pytest.raises(InvalidInput, match="exists already"), new_file(tmp_path / "plan.json", force=False):
        pass
    with new_file(tmp_path / "plan.json", force=True):
        write_text(tmp_path / "plan.json", "new")
    assert names(tmp_path) == ["plan.json"]
