import errno
import json
import os
import stat

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import check_new_file, check_writable_folder, read_json, whole_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_and_raise(path, error, *, force=False):
    with whole_folder(path, force=force) as folder:
        (folder / "plan.json").write_text("new")
        raise error


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


def test_json_round_trip(tmp_path):
    write_text(tmp_path / "value.json", json.dumps({"a": [1, 0.5, None, "ü"]}))
    assert read_json(tmp_path / "value.json") == {"a": [1, 0.5, None, "ü"]}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"{'a': 1}", b"[" * 200_000, b"1" * 6_000])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"value\.json: not valid JSON"):
        read_json(tmp_path / "value.json")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_json(tmp_path)


def test_a_folder_appears_whole(tmp_path):
    out = tmp_path / "new" / "out"
    with whole_folder(out) as folder:
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
    with whole_folder(tmp_path / "out") as folder:
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
    with whole_folder(out, force=True) as folder:
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
