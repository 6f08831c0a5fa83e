"""Progress in words, and what is shown of it."""

import logging
import sys

import pytest

from mixbit.core import Journal, Store, phase, say, show, track, warn
from mixbit.core.io import terminal


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass at each look at the clock."""
    now = [0.0]

    def tick():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(terminal.time, "monotonic", tick)
    yield now
    show("bars")


def test_what_takes_long_says_a_line_for_each_tenth(clock, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_A_LINE", 0.0)
    show("lines")
    assert list(track(range(20), "calibrate")) == list(range(20))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"calibrate: {tenth}0%" for tenth in range(1, 10)]
    assert lines[4] == "calibrate: 50%, 10 s left"


def test_lines_come_no_sooner_than_some_seconds_after_another(clock, capsys):
    show("lines")
    list(track(range(20), "calibrate"))
    assert len(capsys.readouterr().err.splitlines()) == 3
    list(track((number for number in range(12)), "read data"))
    assert capsys.readouterr().err.splitlines() == ["read data: 5 so far", "read data: 10 so far"]


def test_nothing_is_shown_but_warnings(capsys):
    show("nothing")
    say("a message")
    list(track(range(3), "calibrate"))
    assert capsys.readouterr().err == ""
    warn("a warning")
    assert capsys.readouterr().err == "a warning\n"
    show("bars")
    say("a message")
    assert capsys.readouterr().err == "a message\n"


def test_a_phase_says_what_came_out_of_it(caplog):
    with caplog.at_level(logging.INFO, "mixbit"), phase("calibrate") as tell:
        tell("96 samples")
    assert caplog.messages == ["calibrate: 96 samples (0.0 s)"]


def test_a_phase_that_fails_says_nothing(caplog):
    def fail():
        with phase("calibrate") as tell:
            tell("96 samples")
            raise KeyError

    with caplog.at_level(logging.INFO, "mixbit"), pytest.raises(KeyError):
        fail()
    assert caplog.messages == []


def test_what_is_taken_up_is_said_once(tmp_path, caplog):
    def journal():
        return Journal(tmp_path / "trials.jsonl", {"seed": 0})

    first = journal()
    for plan in ("w4", "w8"):
        first.score_of([plan], lambda: 0.5)
    Store(tmp_path).put("block", {"seed": 0}, {})
    caplog.set_level(logging.INFO, "mixbit")
    second, store = journal(), Store(tmp_path)
    assert caplog.messages == []
    for plan in ("w4", "w8", "w6"):
        assert second.score_of([plan], lambda: 0.25) == (0.25 if plan == "w6" else 0.5)
    for _ in range(2):
        assert store.get("block", {"seed": 0}) is not None
        assert store.get("block", {"seed": 1}) is None
    assert [message.partition(" in ")[0] for message in caplog.messages] == ["2 tried plans", "finished work"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(track(range(3), "calibrate"))
    assert "calibrate: " not in capsys.readouterr().err
