"""What a run is expected to take grows with the data, the metric and the network."""

import pytest
import torch
from torch import nn

from mixbit.core import Plan, Task, split_all
from mixbit.graph.capture import capture
from mixbit.metrics import METRICS
from mixbit.pipeline import progress
from mixbit.pipeline.progress import FIXED_S, expected, note_on_classes, predicted_of, size_of


@pytest.fixture
def graph():
    return capture(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval(), images(2)[0])


def images(*sizes):
    return [torch.zeros(size, 2, 6, 6) for size in sizes]


def cost(graph, batches, held_out, evaluation, metric, monkeypatch):
    """With a clock by which a pass over a batch takes a second."""
    now = iter(range(100))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(now)))
    parts = [split_all(images(*sizes), 1) for sizes in (batches, held_out, evaluation)]
    return expected(graph, *parts, metric, 5)


def test_seconds_are_those_of_a_batch_times_the_passes(graph, monkeypatch):
    total = cost(graph, (8, 8), (4,), (16,), "fit", monkeypatch).seconds - FIXED_S
    # an eighth of a second a sample; three passes and the metric's two, four plans twice, six passes and four plans
    assert total == pytest.approx((16 * (3 + 2) + 4 * 4 * 2 + 16 * (6 + 4)) / 8)
    without = cost(graph, (8, 8), (4,), (16,), None, monkeypatch).seconds - FIXED_S
    assert total - without == pytest.approx(16 * 2 / 8)


def test_a_metric_whose_cost_is_not_known_is_said(graph, monkeypatch):
    assert "not known" in str(cost(graph, (8,), (4,), (4,), lambda inputs: inputs, monkeypatch))
    assert all("not known" not in str(cost(graph, (8,), (4,), (4,), name, monkeypatch)) for name in METRICS)


def test_memory_grows_by_the_tensors_of_the_largest_batch(graph, monkeypatch):
    monkeypatch.setattr(progress.resource, "getrusage", lambda _: type("Used", (), {"ru_maxrss": 0}))
    small, large = (cost(graph, (8, size), (4,), (4,), "fit", monkeypatch).peak_bytes for size in (8, 32))
    held = 4 * sum(torch.Size(shape).numel() for shape in graph.shapes.values()) / graph.example.batch_size
    assert large - small == pytest.approx(2 * held * (32 - 8))


def test_a_network_and_a_plan_in_words(graph):
    assert size_of(graph) == "2 layers, 264 weights, 1,344 multiply-accumulates a sample"
    plan = Plan(target="packed", fingerprint="0", layers={"a": "w4a8"}, made_by="ilp")
    assert predicted_of(plan) == "1 layer"


def test_names_that_are_not_as_many_as_the_classes_of_the_network_are_told(graph):
    one_choice = Task.classification()
    assert note_on_classes(graph, one_choice, ("cat", "cow", "dog")) is None
    assert note_on_classes(graph, one_choice, None) is None
    assert note_on_classes(graph, Task.named("regression"), ("test", "train")) is None
    assert "2 classes, and the network 3" in (note_on_classes(graph, one_choice, ("test", "train")) or "")
