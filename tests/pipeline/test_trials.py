"""Scores of plans against evaluations by hand, and the plan that a largest drop leads to against all of a front."""

import contextlib
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core.batches import split_batches
from mixbit.core.budget import MaxDrop
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.pipeline.trials import Scoring, cheapest_plan, searched_plan
from mixbit.quantization.calibrate import calibrate


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(96, 6)
    labels = network(x).argmax(1)
    graph = mb.capture(network, x[:2])
    batches = split_batches(network, list(zip(x.split(32), labels.split(32), strict=True)))
    calibration = calibrate(graph, [inputs for inputs, _ in batches])
    table = mb.measure(graph, calibration, target="packed")
    return graph, calibration, batches, table, x, labels


def scoring(parts, *, labelled=True, **options):
    graph, calibration, batches, *_ = parts
    batches = batches if labelled else [(inputs, None) for inputs, _ in batches]
    return Scoring(graph, batches, Task.classification(), lambda plan: mb.quantize(graph, plan, calibration), **options)


def test_accuracy_with_labels(parts):
    graph, calibration, _, table, x, labels = parts
    plan, one = mb.search(table, mb.Budget(mean_bits=2)), scoring(parts)
    expected = (mb.quantize(graph, plan, calibration)(x).argmax(1) == labels).double().mean().item()
    assert one.float_score == 1
    assert one.simulated(plan) == pytest.approx(expected)
    assert one.deployed(plan) == pytest.approx(expected)
    assert one.in_accuracy


def test_divergence_without(parts):
    graph, calibration, _, table, x, _ = parts
    plan, one = mb.search(table, mb.Budget(mean_bits=2)), scoring(parts, labelled=False)
    outputs = mb.quantize(graph, plan, calibration)(x)
    expected = F.kl_div(outputs.log_softmax(1), graph(x).log_softmax(1), log_target=True, reduction="batchmean")
    assert one.float_score == 0
    assert one.simulated(plan) == pytest.approx(-expected.item(), rel=1e-4)
    assert not one.in_accuracy


def test_a_function_of_the_users_own_gets_batches_as_it_gave_them(parts):
    seen = []

    def score(model, batches):
        seen.extend(batches)
        return float(model(batches[0][0]).abs().sum())

    plan = mb.search(parts[3], mb.Budget(mean_bits=4))
    value = scoring(parts, score=score).simulated(plan)
    graph, calibration, _, _, x, labels = parts
    assert value == pytest.approx(mb.quantize(graph, plan, calibration)(x[:32]).abs().sum().item(), rel=1e-6)
    assert [type(part) for part in seen[0]] == [torch.Tensor, torch.Tensor]
    torch.testing.assert_close(torch.cat([y for _, y in seen]), labels)


def test_each_plan_is_scored_once(parts):
    calls = []
    one = scoring(parts, score=lambda model, batches: calls.append(1) or 0.5)
    plan = mb.search(parts[3], mb.Budget(mean_bits=4))
    assert [one.simulated(plan), one.deployed(plan), one.simulated(plan)] == [0.5] * 3
    assert len(calls) == 2, "the simulation and the artefact"


@pytest.mark.parametrize("drop", [0.02, 0.05, 0.2])
def test_a_largest_drop_against_every_plan_of_the_front(parts, drop):
    table, one = parts[3], scoring(parts)
    plan, grounds = cheapest_plan(table, one, MaxDrop(drop))
    points = mb.front(table)
    scores = [one.deployed(points.plan(index)) for index in range(len(points))]
    index = next(i for i in range(len(points)) if points.plan(i).layers == plan.layers)
    assert scores[index] >= 1 - drop
    assert index == 0 or scores[index - 1] < 1 - drop
    assert plan.budget == {"max_drop": drop}
    figures = f"accuracy {scores[index]:.2%}; in float accuracy 100.00%; "
    assert grounds.startswith(f"the smallest plan that loses {drop} at most: {figures}")
    cheaper = f" bytes of weights, has accuracy {scores[index - 1]:.2%}"
    assert "the next smaller one" not in grounds or grounds.endswith(cheaper)


def test_a_search_that_tries_nothing_makes_no_scoring(parts):
    def never():
        raise AssertionError("made")

    plan = searched_plan(parts[3], never, mb.Budget(mean_bits=4), "ilp")
    assert plan.predicted["optimality_gap"] == 0


def test_a_function_may_do_with_the_model_what_it_likes(parts):
    graph, _, _, table, x, _ = parts
    before = graph(x)

    def score(model, batches):
        model.eval()
        for parameter in model.parameters():
            parameter.zero_()
        return 1.0

    one = scoring(parts, score=score)
    assert (one.float_score, one.simulated(mb.search(table, mb.Budget(mean_bits=4)))) == (1, 1)
    torch.testing.assert_close(graph(x), before)


@pytest.mark.parametrize("value", [1, 5])
def test_a_drop_of_all_right_answers_is_refused(parts, value):
    with pytest.raises(InvalidInput, match=f"max drop {value}: of right answers, give less than 1"):
        cheapest_plan(parts[3], scoring(parts), MaxDrop(value))


def test_an_exit_in_a_function_is_an_error_of_it(parts):
    def score(model, batches):
        raise SystemExit(3)

    with pytest.raises(InvalidInput, match="the evaluation function fails on a plan: SystemExit: 3"):
        scoring(parts, score=score).simulated(mb.search(parts[3], mb.Budget(mean_bits=4)))


def test_the_time_limit_holds_for_functions_that_catch_exceptions(parts):
    def score(model, batches):
        for _ in range(300):
            with contextlib.suppress(Exception):
                time.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(mb.MixbitError, match=r"took more than 0\.2 s"):
        scoring(parts, score=score, timeout_s=0.2).simulated(mb.search(parts[3], mb.Budget(mean_bits=4)))
    assert time.monotonic() - began < 5
