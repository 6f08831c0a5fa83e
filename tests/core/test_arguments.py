"""Types of arguments, near names, and texts for the terminal."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console

from mixbit.app.commands import options
from mixbit.core import (
    Budget,
    InvalidInput,
    MaxDrop,
    Sensitivity,
    Task,
    check_value,
    checked,
    clean,
    did_you_mean,
)
from mixbit.core.io import terminal
from mixbit.pipeline import Settings
from mixbit.training import Training


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, (0, np.int64(3)), (True, 1.0, "1", None)),
        (float, (0.5, 1, np.float32(1)), (True, "1", None, [1.0])),
        (bool, (True,), (1, "yes")),
        (str | Path, ("out", Path("out")), (None, 3, b"out")),
        (Sequence[str] | None, (None, ["w4"], ("w4",), []), ("w4", [4], {"w4"})),
        (Mapping[str, str], ({}, {"a": "b"}), ([], {"a": 1}, {1: "b"}, "a")),
        (Callable[[int], int], (abs, Budget), ("abs", None)),
        (Literal["a", "b"], ("a",), ("c", 1)),
        (Budget, (Budget(mean_bits=4),), (4, {}, "mean_bits=4", Budget)),
        (Any, (None, 3), ()),
    ],
)
def test_values_are_of_the_type_or_refused(hint, right, wrong):
    for value in right:
        check_value("place", value, hint)
    for value in wrong:
        with pytest.raises(InvalidInput, match=r"^place.*[:;] give "):
            check_value("place", value, hint)


@checked
def plan(budget: Budget, *, steps: int = 3) -> int:
    return steps


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        ((4,), {}, r"plan\(\): budget: a int; give a Budget, as Budget\(mean_bits=4\)"),
        ((Budget(mean_bits=4),), {"steps": "3"}, r"plan\(\): steps='3': give a whole number"),
        ((Budget(mean_bits=4),), {"step": 3}, r"'step' is unknown \(did you mean steps\?\); known: budget, steps$"),
        ((), {}, "missing a required argument: 'budget'"),
    ],
)
def test_a_call_is_checked_before_it_runs(args, given, message):
    assert plan(Budget(mean_bits=4), steps=2) == 2
    with pytest.raises(InvalidInput, match=message):
        plan(*args, **given)


@pytest.mark.parametrize("kind", [Settings, Training, Task, MaxDrop, Sensitivity])
def test_what_holds_settings_names_those_it_has(kind):
    fields = ", ".join(field.name for field in dataclasses.fields(kind))
    with pytest.raises(InvalidInput, match=rf"{kind.__name__}\(\): argument 'foo' is unknown; known: {fields}$"):
        kind(foo=1)


def test_what_takes_any_names_says_what_else_is_wrong():
    with pytest.raises(InvalidInput, match=r"^Budget\(\): too many positional arguments$"):
        Budget(4, mean_bits=4)


def test_settings_are_of_their_types_from_the_start():
    assert dataclasses.replace(Settings(), seed=3).seed == 3
    with pytest.raises(InvalidInput, match=r"Settings\(\): argument 'metrc' .*did you mean metric"):
        dataclasses.replace(Settings(), metrc="fisher")
    with pytest.raises(InvalidInput, match=r"Settings\(\): epochs='3': give a whole number"):
        Settings(epochs="3")
    with pytest.raises(InvalidInput, match=r"Training\(\): lr=True: give a number"):
        Training(lr=True)


def test_near_names():
    assert did_you_mean("OpenVINO", ("onnxruntime", "openvino")) == " (did you mean openvino?)"
    assert did_you_mean("zzz", ("onnxruntime", "openvino")) == did_you_mean(3, ("3",)) == ""


def test_what_a_terminal_obeys_is_escaped_everywhere(capsys):
    name = "[red]\x1b[31mconv\udce9"
    shown = r"[red]\x1b[31mconv\udce9"
    assert clean(name) == shown
    terminal.say(name)
    options.print_rows(name, (name,), [(name,)])
    out, err = capsys.readouterr()
    assert err == f"{shown}\n"
    assert out.count(shown) == 3
    assert clean("é 中\n") == "é 中\n"


def test_a_progress_bar_shows_markup_as_text(monkeypatch):
    console = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr(terminal, "Console", lambda **_: console)
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True, raising=False)
    list(terminal.track([1], "[red]\x07conv"))
    assert r"[red]\x07conv" in console.export_text()
