"""Files of older versions are lifted, newer ones refused by number."""

import json

import pytest

from mixbit.core import Plan, Versions, model_of
from mixbit.core.errors import InvalidInput

#: Version 1 counted bits, version 2 bytes, version 3 calls them so.
VERSIONS = Versions(
    3,
    {
        1: lambda content: {"size": content["bits"] // 8},
        2: lambda content: {"bytes": content["size"]},
    },
)


@pytest.mark.parametrize(
    "content", [{"bits": 64}, {"version": 1, "bits": 64}, {"version": 2, "size": 8}, {"version": 3, "bytes": 8}]
)
def test_every_older_version_becomes_the_newest(content):
    assert VERSIONS.lifted(content, "a.json", "a size") == {"version": 3, "bytes": 8}
    assert model_of(json.dumps(content), "a.json", dict[str, int], "a size", versions=VERSIONS)["bytes"] == 8


def test_what_is_of_the_newest_version_or_of_none_is_left_as_it_is():
    for content in ({"version": 3, "bytes": 1}, {"version": True}, {"version": "1"}, {"version": 0}, [1], "text", None):
        assert VERSIONS.lifted(content, "a.json", "a size") is content


def test_a_newer_version_is_refused_by_number(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"version": 7, "target": "openvino"}))
    with pytest.raises(
        InvalidInput, match=r"plan\.json: a plan of version 7; mixbit \d.* reads versions up to 1: install a newer one"
    ):
        Plan.load(tmp_path / "plan.json")
