import json
import os

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import read_json, write_text


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
