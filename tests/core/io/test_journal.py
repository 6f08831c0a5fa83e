import json

import pytest

from mixbit.core.errors import InvalidInput
from mixbit.core.io.store import Journal

ABOUT = {"target": "packed", "choices": ["w4a8", "w8a8"]}


def counted(values):
    """A function that returns the values in order, and the list of what it returned."""
    returned = []

    def score():
        returned.append(values[len(returned)])
        return returned[-1]

    return score, returned


@pytest.mark.parametrize("kept", [True, False])
def test_every_plan_is_scored_once(kept, tmp_path):
    journal = Journal(tmp_path / "trials.jsonl" if kept else None, ABOUT)
    score, returned = counted([0.5, 0.7])
    assert [journal.score_of(plan, score) for plan in (("a", "b"), ["a", "b"], ("b", "b"))] == [0.5, 0.5, 0.7]
    assert returned == [0.5, 0.7]


@pytest.mark.parametrize("cut", [0, 1, 9])
def test_it_goes_on_after_the_process_ended_at_any_byte(cut, tmp_path):
    path = tmp_path / "trials.jsonl"
    journal = Journal(path, ABOUT)
    for number in range(3):
        journal.score_of([str(number)], lambda number=number: number / 10)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
    again = Journal(path, ABOUT)
    score, returned = counted([0.2, 0.9])
    assert [again.score_of([str(number)], score) for number in range(3)] == [0.0, 0.1, 0.2]
    assert returned == ([0.2] if cut else [])  # what was cut short is scored again
    again.score_of(["3"], score if cut else lambda: 0.9)
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["plan"], last["score"]) == (["3"], 0.9)


def test_trials_of_another_run_are_not_mixed_in(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, ABOUT).score_of(["a"], lambda: 1.0)
    with pytest.raises(InvalidInput, match=r"holds trials of another run \(another target;.*; delete it, or give --f"):
        Journal(path, ABOUT | {"target": "openvino"})
    assert Journal(path, ABOUT | {"target": "openvino"}, force=True).scores == {}


@pytest.mark.parametrize("text", ["no json\n", '{"a": 1}\nno json\n'])
def test_files_that_are_no_journal(text, tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"trials.jsonl: not a journal of trials"):
        Journal(path, {"a": 1})


@pytest.mark.parametrize(
    ("old", "new"), [('"score": 1.0', '"score": 2.0'), ('["b"]', '["c"]'), ('["b"]', "3"), ('"digest"', '"d"')]
)
def test_lines_that_are_not_what_was_written(old, new, tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, ABOUT).score_of(["b"], lambda: 1.0)
    assert Journal(path, ABOUT).scores == {("b",): 1.0}
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidInput, match="line 2 holds no plan and score; delete the file"):
        Journal(path, ABOUT)


@pytest.mark.parametrize("line", ["[]", "{}", '{"plan": ["a"]}', '{"plan": [["a"]], "score": 1}'])
def test_lines_that_are_no_score(line, tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, ABOUT).score_of(["b"], lambda: 1.0)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidInput, match="line 3 holds no plan and score; delete the file"):
        Journal(path, ABOUT)


def test_a_journal_without_scores_is_no_file(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path, ABOUT)
    assert not path.exists()
    journal = Journal(path, ABOUT | {"target": "openvino"})
    journal.score_of(["a"], lambda: 1.0)
    assert Journal(path, ABOUT | {"target": "openvino"}).scores == {("a",): 1.0}
    path.unlink()  # as another run with the same output does at its end
    journal.score_of(["b"], lambda: 1.0)
    assert len(Journal(path, ABOUT | {"target": "openvino"}).scores) == 2
