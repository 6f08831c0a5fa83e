"""Some of the mutated files of `benchmarks/reliability/fuzz.py`, which tries a hundred thousand."""

import pytest

from benchmarks.reliability.fuzz import attack, quick_folder, subjects

CASES = 4_000


@pytest.fixture(scope="module")
def kinds():
    with quick_folder() as place, pytest.MonkeyPatch.context() as patch:
        yield subjects(place, patch.setattr)


def test_mutated_files_are_refused_or_are_what_they_were(kinds):
    ends, told = attack(kinds, range(CASES), seed=0)
    assert told == []
    assert {end for end in ends if ":" not in end} == {"refused", "taken"}
    assert {end.partition(": ")[0] for end in ends if ":" in end} == {*kinds}
