"""What is told apart: code and the values that it holds, and nothing that a fresh process would change."""

import functools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.errors import InvalidInput
from mixbit.core.io.store import digest
from mixbit.metric_study.answers import metric_digest
from mixbit.metric_study.subject import Subject
from tests.subjects import few_bits, small_subject


class Weighted:
    def __init__(self, weight):
        self.weight = weight
        self.call = self.__call__  # a circle
        self.lock = threading.Lock()

    def __call__(self, *given):
        return self.weight


class Module(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, *given):
        return self.weight


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, *given):
        return self.weight


def plain(*given, weight=1):
    return weight


def enclosed(weight):
    return lambda *given: weight


def with_default(weight):
    def loss(*given, by=weight):
        return by

    return loss


def a_partial(weight):
    return functools.partial(plain, weight=weight)


def a_method(weight):
    return Weighted(weight).__call__


@pytest.mark.parametrize("make", [Weighted, Module, Slotted, enclosed, with_default, a_partial, a_method])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        ([1, {"a": 2}], [1, {"a": 3}]),
        (torch.ones(2000), torch.ones(2000).index_fill(0, torch.tensor([1000]), 2)),
        (np.ones(2000), np.r_[np.ones(1000), 2, np.ones(999)]),
        (torch.float32, torch.int8),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (plain, enclosed),
    ],
)
def test_values_count(make, one, other):
    assert digest(make(one)) == digest(make(one))
    assert digest(make(one)) != digest(make(other))


def test_code_counts():
    def one(inputs):
        return 1

    first = one

    def one(inputs):
        return 2

    assert digest(first) != digest(one)
    assert digest(torch.add) != digest(torch.sub)


@pytest.mark.slow
def test_a_fresh_process_finds_the_same():
    code = "from tests.metric_study import test_identity as t; print(t.digest(t.Weighted({'b', 'a', t.plain})))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == digest(Weighted({"b", "a", plain}))


def test_what_is_nested_too_deeply_is_refused():
    deep = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(InvalidInput, match="Weighted: holds values that are nested too deeply"):
        digest(Weighted(deep))


def test_metrics_of_mixbits_change_with_its_source_and_own_ones_with_theirs(monkeypatch):
    assert metric_digest("fisher") == metric_digest("hawq")
    assert metric_digest(few_bits) == digest(few_bits) != metric_digest("fisher")


class WeightedLoss(Weighted):
    def __call__(self, output, _):
        return self.weight * output.sum()


def scaled(output, _, *, weight):
    return weight * output.sum()


def test_the_loss_of_a_subject_counts_with_its_values():
    losses = None, WeightedLoss(1), WeightedLoss(1), WeightedLoss(2), functools.partial(scaled, weight=2)
    found = [Subject.of(small_subject(loss=loss)).digests["loss"] for loss in losses]
    assert found[1] == found[2]
    assert len(set(found)) == 4
