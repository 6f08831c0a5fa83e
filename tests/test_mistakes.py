"""A share of the lists of mistakes, drawn with a seed; and that the lists can fail."""

import random

import pytest

from benchmarks.reliability import mistakes, python_mistakes
from mixbit.core import errors
from mixbit.core.io import terminal

DRAW = random.Random(14)
WORDS = DRAW.sample(mistakes.OF_WORDS, 30)
QUICK = [
    each
    for each in mistakes.OF_NETWORKS
    if not any(word in each.words for word in ("endless", "onnxruntime", "openvino"))
]
NETWORKS = DRAW.sample(QUICK, 8)
PYTHON = DRAW.sample(list(python_mistakes.MISTAKES), 30)


@pytest.mark.parametrize("mistake", [*WORDS, *NETWORKS], ids=lambda mistake: ascii(mistake.words))
def test_mistakes_on_the_command_line(mistake):
    assert mistakes.outcome(mistake) == []


@pytest.mark.parametrize("name", PYTHON)
def test_mistakes_in_python(name):
    kind, said = python_mistakes.outcome(python_mistakes.MISTAKES[name])
    assert kind == "refused", said


def test_a_mistake_told_late_or_without_way_out_is_seen(monkeypatch):
    def find(*_):
        list(terminal.track([1], "calibrate"))
        raise errors.InvalidInput("no")

    monkeypatch.setattr("mixbit.core.budget.pick", find)
    late = mistakes.outcome(mistakes.quantize("", "mean_bits", budget="mean_bit=4"))
    assert late == ["late (calibrate)", "no way out", "mixbit: no"]


def test_a_raw_error_and_what_is_accepted_are_seen():
    assert python_mistakes.outcome(lambda: {}[0])[0] == "raw error"
    assert python_mistakes.outcome(lambda: 3)[0] == "accepted"
