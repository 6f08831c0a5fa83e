import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.heads import check_classes
from mixbit.core.task import TASKS, Task

CLASSIFICATION, REGRESSION = Task.classification(), Task.regression()


def all_draws(task, outputs, signs, monkeypatch):
    """[2^signs, C]: the vector that each way to choose so many signs makes of one sample's outputs [C]."""
    count = 2**signs
    bits = torch.tensor(list(itertools.product((0, 1), repeat=signs)))
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, generator: bits.T.reshape(*shape[:-2], -1, count).mT)
    rows = outputs.expand(count, len(outputs)).clone().requires_grad_()
    task.head.draw(rows, torch.Generator()).backward()
    return rows.grad


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("confidence", [0.0, 1.0, 6.0])
def test_draws_of_classes_have_mean_zero_and_the_fisher_information(classes, confidence, monkeypatch):
    torch.manual_seed(classes)
    logits = confidence * torch.randn(classes, dtype=torch.float64)
    v = all_draws(CLASSIFICATION, logits, 2 * classes, monkeypatch)
    p = logits.softmax(0)
    torch.testing.assert_close(v.mean(0), torch.zeros_like(p), rtol=0, atol=1e-15)
    torch.testing.assert_close(v.T @ v / len(v), p.diag() - p.outer(p), rtol=1e-12, atol=1e-15)


def test_draws_of_numbers_have_mean_zero_and_covariance_one(monkeypatch):
    v = all_draws(REGRESSION, torch.randn(4, dtype=torch.float64), 4, monkeypatch)
    torch.testing.assert_close(v.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=["classification", "regression"])
def test_draws_follow_the_generator_and_differ_between_samples(task):
    def draw(seed):
        outputs = torch.zeros(50, 4, requires_grad=True)
        task.head.draw(outputs, torch.Generator().manual_seed(seed)).backward()
        return outputs.grad

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert len(draw(1).unique(dim=0)) > 5


def test_divergence_of_classes_is_torchs():
    torch.manual_seed(0)
    first, second = (3 * torch.randn(2, 20, 5, dtype=torch.float64)).unbind()
    expected = kl_divergence(Categorical(logits=first), Categorical(logits=second))
    torch.testing.assert_close(CLASSIFICATION.head.divergence(first, second), expected)
    assert CLASSIFICATION.head.divergence(first, first + 7).abs().max() < 1e-12  # logits have no zero


def test_divergence_of_numbers_is_torchs():
    torch.manual_seed(0)
    first, second = torch.randn(2, 20, 3, dtype=torch.float64).unbind()
    one = torch.eye(3, dtype=torch.float64)
    expected = kl_divergence(MultivariateNormal(first, one), MultivariateNormal(second, one))
    torch.testing.assert_close(REGRESSION.head.divergence(first, second), expected)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("detection", "multi")])
def test_half_the_fisher_information_is_the_divergence_to_second_order(name, monkeypatch):
    """What the metric `fisher` rests on, for both tasks."""
    torch.manual_seed(0)
    task = Task.named(name)
    outputs, step = torch.randn(2, 4, dtype=torch.float64).unbind()
    v = all_draws(task, outputs, 4 if name in ("regression", "multilabel") else 8, monkeypatch)
    predicted = 0.5 * (v @ (1e-4 * step)).square().mean()
    torch.testing.assert_close(
        task.head.divergence(outputs[None], (outputs + 1e-4 * step)[None])[0], predicted, rtol=1e-3, atol=0
    )


def test_tasks_go_by_name():
    assert Task.named("classification").has_accuracy
    assert not Task.named("regression").has_accuracy
    with pytest.raises(InvalidInput, match=r"task 'tracking' is unknown; known: classification, .*, detection, multi"):
        Task.named("tracking")


LOGITS = torch.randn(3, 4)


@pytest.mark.parametrize(
    "returned",
    [LOGITS, (LOGITS, torch.randn(3, 9)), {"aux": torch.randn(3, 9), "logits": LOGITS}, [[LOGITS]], {"out": LOGITS}],
    ids=["tensor", "tuple", "logits", "nested", "first"],
)
def test_outputs_are_found_in_what_the_model_returns(returned):
    assert CLASSIFICATION.outputs(returned) is LOGITS


def test_outputs_of_regression_are_numbers_of_any_shape():
    assert REGRESSION.outputs(torch.randn(3, 4, 5)).shape == (3, 4, 5)
    assert REGRESSION.outputs(torch.randn(3)).shape == (3, 1)


@pytest.mark.parametrize("returned", [None, {}, torch.tensor(1.0), torch.zeros(3, 4, dtype=torch.long), "logits"])
@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=["classification", "regression"])
def test_returns_without_outputs_are_refused(returned, task):
    with pytest.raises(InvalidInput, match="no floating-point tensor with a batch dimension"):
        task.outputs(returned)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1), (3,)])
def test_classes_need_a_row_of_logits(shape):
    with pytest.raises(InvalidInput, match=r"the model returns \[3.*other tasks are .*regression"):
        CLASSIFICATION.outputs(torch.zeros(shape))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"torch\.float32 \[2\]; give whole class numbers"),
        (torch.tensor([[0], [1]]), r"torch\.int64 \[2, 1\]"),
        (torch.tensor([0, 4]), r"0\.\.4 found, but the model has classes 0\.\.3"),
        (torch.tensor([-1, 2]), r"-1\.\.2 found"),
        (torch.tensor([0, 1, 2]), r"\[3\]; give whole class numbers \[2\]"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, message):
    with pytest.raises(InvalidInput, match=message):
        check_classes(torch.zeros(2, 4), labels)


@pytest.mark.parametrize("labels", [[0, 3], []])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_class_numbers_are_accepted(labels, dtype):
    assert check_classes(torch.zeros(len(labels), 4), torch.tensor(labels, dtype=dtype)) is None


X, M = torch.randn(3, 2), torch.randn(3, 5)


def test_inputs_describe_themselves():
    assert Inputs.of({"x": X, "n": 2}).describe() == "{'x': (3, 2), 'n': 2}"
    assert Inputs.of((X, M)).describe() == "((3, 2), (3, 5))"
    with pytest.raises(InvalidInput, match="a ndarray; give a tensor, a tuple or a dict"):
        Inputs.of(np.zeros(3))
    with pytest.raises(InvalidInput, match="must be one batch size, found"):
        print(Inputs.of((X, torch.zeros(2))).batch_size)
    with pytest.raises(InvalidInput, match="must be one batch size"):
        print(Inputs.of(torch.tensor(1.0)).batch_size)


def test_inputs_map_tensors_only():
    mapped = Inputs.of({"x": X, "n": 2, "more": [M]}).map(lambda leaf: leaf[:1])
    assert mapped.kwargs["n"] == 2
    assert mapped.kwargs["more"][0].shape == (1, 5)
    assert mapped.to(torch.device("cpu")).tensors[0].shape == (1, 2)


@pytest.mark.parametrize(("name", "shape"), [("segmentation", (5, 3, 4, 2)), ("language", (5, 8, 3))])
def test_positions_count_as_their_mean(name, shape):
    task = Task.named(name)
    torch.manual_seed(3)
    first, second = (2 * torch.randn(2, *shape, dtype=torch.float64)).unbind()
    rows = [task.outputs(one).reshape(5, 8, 3) for one in (first, second)]
    expected = kl_divergence(*(Categorical(logits=row) for row in rows)).mean(1)
    torch.testing.assert_close(task.head.divergence(*(task.outputs(one) for one in (first, second))), expected)
    labels = torch.randint(0, 3, (5, 8))
    labels[0, 0] = -100
    found = task.loss(first, labels.reshape(task.outputs(first).shape[:-1]))
    chosen = -rows[0].log_softmax(2).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, chosen[labels >= 0].mean())
    right, counted = task.right_answers(task.read(first), labels.reshape(task.outputs(first).shape[:-1]))
    assert (right, counted) == (int((rows[0].argmax(2) == labels).sum()), 39)


@pytest.mark.parametrize(("name", "shape"), [("segmentation", (1, 3, 4)), ("language", (1, 4, 3))])
def test_draws_of_positions_have_the_mean_of_their_fisher_information(name, shape):
    task, logits = Task.named(name), torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = logits.expand(200_000, *shape[1:]).clone().requires_grad_()
    task.information(many, None, torch.Generator().manual_seed(1)).backward()
    v = task.outputs(many.grad).reshape(200_000, 12)
    p = task.outputs(logits)[0].softmax(-1)
    expected = torch.block_diag(*(row.diag() - row.outer(row) for row in p)) / 4
    assert (v.T @ v / len(v) - expected).abs().max() < 0.003


def test_the_users_own_loss_is_used_and_checked():
    task = CLASSIFICATION.with_loss(lambda output, labels: (output - labels).square().mean())
    output, labels = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    torch.testing.assert_close(task.loss(output, labels), (output - labels).square().mean())
    task.information(output, labels, torch.Generator()).backward()
    torch.testing.assert_close(output.grad, 4 * 2 * (output - labels).detach() / 12)
    with pytest.raises(InvalidInput, match="a loss of your own needs labels"):
        task.loss(output, None)
    with pytest.raises(InvalidInput, match=r"one finite number, the mean of the batch; it is \[4\]"):
        task.with_loss(lambda output, labels: output.sum(1)).loss(output, labels)
    with pytest.raises(InvalidInput, match="the mean of the batch; it is nan"):
        task.with_loss(lambda output, labels: output.sum() * float("nan")).loss(output, labels)


def broken(output, labels):
    raise KeyError("nothing there")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (broken, r"the loss fails: KeyError: 'nothing there' \(.*test_task.py:\d+\)"),
        (lambda output: output.sum(), "the loss fails: TypeError: .*2 were given"),
        (lambda output, labels: 1.0, "the loss returns a float; return a tensor, without .item()"),
        (lambda output, labels: output.detach().sum(), "the loss has no gradient by the output: it is detached"),
        (lambda output, labels: (output.argmax(1) != labels).float().mean(), "made of argmax"),
    ],
)
def test_losses_that_cannot_be_used(loss, message):
    output, labels = torch.randn(4, 3, requires_grad=True), torch.randint(3, (4,))
    with pytest.raises(InvalidInput, match=message):
        CLASSIFICATION.with_loss(loss).loss(output, labels)


def test_a_loss_may_change_what_it_is_given():
    output, labels = torch.randn(4, 3), torch.randint(3, (4,))
    before = output.clone()
    task = CLASSIFICATION.with_loss(lambda output, labels: output.div_(0.5).sum())
    assert task.loss(output, labels) == task.loss(output, labels)
    assert torch.equal(output, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_labels_of_a_regression_are_finite(bad):
    with pytest.raises(InvalidInput, match="labels: complex numbers, NaN or inf"):
        REGRESSION.loss(torch.zeros(2, 3), torch.full((2, 3), bad))
    assert REGRESSION.loss(torch.zeros(2, 1), torch.tensor([True, False])) == 0.25


def test_regression_loss_is_half_the_squared_distance():
    output, labels = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(REGRESSION.loss(output, labels), 0.5 * (output - labels).square().sum(1).mean())
    with pytest.raises(InvalidInput, match=r"labels: \[4, 2\]"):
        REGRESSION.loss(output, labels[:, :2])


def test_a_batch_without_any_label_has_no_loss():
    with pytest.raises(InvalidInput, match="none but -100"):
        CLASSIFICATION.loss(torch.zeros(2, 3), torch.tensor([-100, -100]))


def test_labels_that_are_the_tokens_themselves_are_those_of_the_next():
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    labels = ids.masked_fill(torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0]]).bool(), -100)
    inputs = Inputs.of({"input_ids": ids})
    wanted = torch.tensor([[1, 4, -100, -100], [9, 2, 6, -100]])
    own = Task.language().with_loss(lambda output, labels: output.sum())
    for task, given, expected in (
        (Task.language(), labels, wanted),
        (Task.language(), wanted, wanted),
        (Task.language(), None, None),
        (own, labels, labels),
        (Task.regression(), labels, labels),
    ):
        ((_, moved),) = task.aligned([(inputs, given)])
        assert moved is None if expected is None else torch.equal(moved, expected)


def test_a_task_is_named_by_a_text_too():
    assert Task.of("language") == Task.language()
    assert Task.of(None) == CLASSIFICATION
    assert Task.of(REGRESSION) is REGRESSION
    with pytest.raises(InvalidInput, match=r"task 'langauge' is unknown \(did you mean language\?\)"):
        Task.of("langauge")


def test_rows_with_one_1_are_class_numbers_and_others_stay():
    x = torch.zeros(3, 2)
    for labels in (torch.eye(3), torch.eye(3, dtype=torch.long), torch.eye(3, dtype=torch.bool)):
        ((_, numbers),) = CLASSIFICATION.aligned([(Inputs.of(x), labels[[2, 0, 1]])])
        assert numbers.tolist() == [2, 0, 1]
    for labels in (torch.eye(3) * 0.5, torch.ones(3, 3), torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([1, 0, 1])):
        ((_, same),) = CLASSIFICATION.aligned([(Inputs.of(x), labels)])
        assert same is labels
    own = CLASSIFICATION.with_loss(lambda output, labels: output.sum())
    ((_, same),) = own.aligned([(Inputs.of(x), torch.eye(3))])
    assert same.shape == (3, 3)
