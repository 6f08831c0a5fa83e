"""Tasks of several outputs, and what is told apart from numbers."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional

from mixbit.core.batches import labels_at, split_batch
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task, outputs_of


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(task, returned, axes=None):
    outputs = outputs_of(returned)
    return task.fitted(outputs, axes or dict.fromkeys(outputs, 0), lambda: [outputs])


BOXES = randn(6, 8, 4) * torch.tensor([1.0, 10.0, 100.0, 0.1]) + 5


def test_an_output_that_the_task_does_not_know_costs_half_its_relative_square_error():
    logits, step = randn(6, 3), randn(6, 8, 4, seed=1)
    task = fitted(Task.classification(), (logits, BOXES))
    reference, changed = task.read((logits, BOXES)), task.read((logits, BOXES + step))
    spread = BOXES.reshape(-1, 4).std(0, correction=0)
    torch.testing.assert_close(task.divergences(reference, changed), 0.5 * (step / spread).square().flatten(1).mean(1))
    both = task.read((logits + 1 * randn(6, 3, seed=2), BOXES + step))
    of_classes = kl_divergence(Categorical(logits=logits), Categorical(logits=both["0"]))
    expected = of_classes + 0.5 * (step / spread).square().flatten(1).mean(1)
    torch.testing.assert_close(task.divergences(reference, both), expected)


@pytest.mark.parametrize("weights", [{}, {"1": 3.0}, {"0": 0.0}])
def test_draws_of_several_outputs_have_the_information_of_their_divergence(weights):
    """1/2 E[(g . d)^2] is the divergence to second order, summed over the outputs with their weights."""
    logits, boxes = randn(1, 3), BOXES[:1, :2]
    task = fitted(Task.classification(), (randn(50, 3), randn(50, 2, 4, seed=5))).weighted(weights)
    steps = 1e-3 * randn(1, 3, seed=1), 1e-3 * randn(1, 2, 4, seed=2)
    many = [part.expand(100_000, *part.shape[1:]).clone().requires_grad_() for part in (logits, boxes)]
    task.information(tuple(many), None, torch.Generator().manual_seed(0)).backward()
    dots = sum(
        (part.grad * step).flatten(1).sum(1) for part, step in zip(many, steps, strict=True) if part.grad is not None
    )
    reference = task.read((logits, boxes))
    changed = task.read((logits + steps[0], boxes + steps[1]))
    torch.testing.assert_close(0.5 * dots.square().mean(), task.divergences(reference, changed)[0], rtol=0.03, atol=0)


def test_the_full_loss_has_the_information_of_outputs_without_labels():
    logits, labels = randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    task = fitted(Task.classification(), (logits, BOXES[:5]))
    boxes = BOXES[:5].clone().requires_grad_()
    loss = task.full_loss((logits, boxes), labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels))
    (slope,) = torch.autograd.grad(loss, boxes, create_graph=True)
    unit = BOXES[:5].reshape(-1, 4).std(0, correction=0)
    torch.testing.assert_close(slope.abs().detach(), (1 / (unit * 5 * math.sqrt(32))).expand_as(slope))
    (second,) = torch.autograd.grad(slope.sum(), boxes)
    torch.testing.assert_close(second, (1 / (unit.square() * 5 * 32)).expand_as(second))


def test_several_outputs_each_have_a_task():
    task = Task.multi({"kind": Task.classification(), "boxes": Task.regression()})
    returned = {"boxes": randn(4, 2), "kind": randn(4, 3, seed=1), "hidden": randn(4, 9, seed=2)}
    task = fitted(task, returned)
    labels = {"kind": torch.tensor([0, 1, 2, 2]), "boxes": randn(4, 2, seed=3)}
    expected = functional.cross_entropy(returned["kind"], labels["kind"])
    expected = expected + 0.5 * (returned["boxes"] - labels["boxes"]).square().sum(1).mean()
    torch.testing.assert_close(task.loss(returned, labels), expected)
    torch.testing.assert_close(task.loss(returned, (labels["kind"], labels["boxes"])), expected)
    right = int((returned["kind"].argmax(1) == labels["kind"]).sum())
    assert task.right_answers(task.read(returned), labels) == (right, 4)
    assert (
        str(Task.named("multi:kind=classification, boxes=regression")) == "multi:kind=classification,boxes=regression"
    )
    with pytest.raises(InvalidInput, match="labels: give a dict of tensors for kind, boxes"):
        task.loss(returned, labels["kind"])
    with pytest.raises(InvalidInput, match=r"returns no output 'box' .did you mean boxes.*; it returns .*boxes"):
        fitted(Task.multi({"box": Task.regression()}), returned)
    with pytest.raises(InvalidInput, match="output 'mask' is unknown; known: boxes, kind, hidden; give a network with"):
        task.read({"mask": returned["boxes"], "kind": returned["kind"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multi", "name one or more outputs"),
        ("multi:a=detection", "name one or more outputs, each with a task of classification"),
        ("multi:a=tracking", "task 'tracking' is unknown"),
        ("classification:a=regression", "only multi names outputs"),
        ("multi:classification", "write OUTPUT=TASK"),
        ("multi:a=regression,a=classification", "each output once"),
    ],
)
def test_tasks_that_are_not_understood(text, message):
    with pytest.raises(InvalidInput, match=message):
        Task.named(text)


@pytest.mark.parametrize(("weights", "message"), [({"1": -1.0}, "0 or a positive"), ({"2": 1.0}, "no output '2'")])
def test_weights_that_do_not_fit(weights, message):
    with pytest.raises(InvalidInput, match=message):
        fitted(Task.classification().weighted(weights), (randn(4, 3), randn(4, 2)))
    with pytest.raises(InvalidInput, match="every output has weight 0"):
        fitted(Task.classification().weighted({"output": 0.0}), randn(4, 3))


def test_probabilities_are_told_from_logits_by_their_sum():
    logits = 3 * randn(6, 5)
    for returned in (logits, logits.softmax(1), logits.log_softmax(1)):
        first, second = (Task.classification().read(each) for each in (returned, returned.roll(1, 1)))
        expected = kl_divergence(Categorical(logits=logits), Categorical(logits=logits.roll(1, 1)))
        torch.testing.assert_close(Task.classification().divergences(first, second), expected, rtol=1e-5, atol=1e-7)


def test_other_outputs_that_are_probabilities_are_classes():
    scores = (3 * randn(6, 7, 5)).softmax(-1)
    task = fitted(Task.detection(), {"boxes": BOXES, "scores": scores, "count": torch.ones(6, dtype=torch.long)})
    kinds = {name: head.name for name, head in task.heads.items()}
    assert kinds == {"boxes": "numbers", "scores": "classes", "count": "whole numbers"}


def test_answers_of_yes_or_no():
    logits, labels = 2 * randn(8, 4), (randn(8, 4, seed=1) > 0).double()
    task = fitted(Task.multilabel(), logits)
    of_probabilities = fitted(Task.multilabel(), logits.sigmoid())
    expected = kl_divergence(Bernoulli(logits=logits), Bernoulli(logits=logits.flip(1))).mean(1)
    for each, outputs in ((task, logits), (of_probabilities, logits.sigmoid())):
        pair = each.read(outputs), each.read(outputs.flip(1))
        torch.testing.assert_close(each.divergences(*pair), expected)
        assert each.right_answers(pair[0], labels) == (int(((logits > 0) == (labels > 0)).sum()), 32)
        torch.testing.assert_close(
            each.loss(outputs, labels), functional.binary_cross_entropy_with_logits(logits, labels)
        )
    with pytest.raises(InvalidInput, match=r"numbers outside 0\.\.1"):
        task.loss(logits, 2 * labels)


def test_sequences_are_read_by_ctc():
    wanted = torch.tensor([[1, 2, -100], [3, 3, 1]])
    steps = torch.tensor([[1, 1, 0, 2, 2, 0, 0], [3, 0, 3, 1, 1, 1, 0]])
    logits = 9 * functional.one_hot(steps, 4).double()
    task = Task.ctc()
    assert task.right_answers(task.read(logits), wanted) == (2, 2)
    assert task.right_answers(task.read(logits), wanted.flip(0)) == (0, 2)
    expected = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([1, 2, 3, 3, 1]),
        torch.tensor([7, 7]),
        torch.tensor([2, 3]),
        reduction="none",
    ).mean()
    torch.testing.assert_close(task.loss(logits, wanted), expected)
    torch.testing.assert_close(task.loss(logits.softmax(-1), wanted), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInput, match=r"labels: 0\.\.3 found, but the model has classes 1\.\.3"):
        task.loss(logits, wanted.clamp(min=0))


def test_samples_may_be_in_another_dimension():
    steps, state = randn(7, 5, 4), randn(2, 5, 3)
    task = fitted(Task.ctc(), (steps, state, randn(9, 2)), {"0": 1, "1": 1, "2": None})
    read = task.read((steps, state, randn(9, 2)))
    assert {name: tuple(each.shape) for name, each in read.items()} == {"0": (5, 7, 4), "1": (5, 2, 3)}


def test_a_mask_of_infinities_costs_nothing_where_it_is_the_same():
    mask = torch.full((4, 3), -torch.inf).triu(1).double()
    task = fitted(Task.classification(), (randn(4, 3), mask))
    reference = task.read((randn(4, 3), mask))
    assert task.divergences(reference, reference).abs().max() == 0
    assert torch.isfinite(task.information((randn(4, 3), mask), None, torch.Generator()))


@pytest.mark.parametrize(
    ("labels", "second"),
    [
        (torch.tensor([4, 5, 6]), torch.tensor([5])),
        ({"a": torch.tensor([4, 5, 6])}, {"a": torch.tensor([5])}),
        ((torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9])), (torch.tensor([5]), torch.tensor([8]))),
        ([{"n": 4}, {"n": 5}, {"n": 6}], [{"n": 5}]),
    ],
)
def test_labels_go_by_samples(labels, second):
    x = torch.zeros(3, 2)
    assert split_batch((x, labels), 1)[1] is labels
    assert labels_at(labels, [1]) == second
    with pytest.raises(InvalidInput, match="for a batch of 2 samples"):
        split_batch((x[:2], labels), 1)


def test_channels_are_those_of_the_example_in_batches_of_other_sizes():
    """[N, 6, places]: with fewer places than channels, the smaller dimension is the other one."""
    long, short = randn(5, 6, 9), randn(5, 6, 4, seed=1)
    outputs = [outputs_of(long), outputs_of(short)]
    task = Task.detection().fitted(outputs[0], {"output": 0}, lambda: outputs)
    rows = torch.cat([each.transpose(1, 2).flatten(0, 1) for each in (long, short)])
    expected = 0.5 * (1 / rows.std(0, correction=0)).square().mean()
    pair = task.read(short), task.read(short + 1)
    torch.testing.assert_close(task.divergences(*pair), expected.expand(5))
