import json

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import write_text
from mixbit.core.io.json_files import read_json


def test_json_round_trip(tmp_path):
    write_text(tmp_path / "value.json", json.dumps({"a": [1, 0.5, None, "ü"]}))
    assert read_json(tmp_path / "value.json") == {"a": [1, 0.5, None, "ü"]}


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"", b"\xff\xfe", b"{'a': 1}", b"[" * 200_000, b"[" * 500 + b"]" * 500, b"1" * 6_000,
        b"18446744073709551616", b"NaN", b"[-Infinity]", b"1e999", b'{"a": 1, "a": 1}', b'"\\ud800"',
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"value\.json: not valid JSON"):
        read_json(tmp_path / "value.json")
