from itertools import count
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from mixbit.core import batches as core_batches, digest
from mixbit.core.batches import FEW_SAMPLES, HELD_OUT, Inputs, hold_out, split_all, split_batch, split_batches
from mixbit.core.errors import InvalidInput

X, M, Y = torch.randn(3, 2), torch.randn(3, 5), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("batch", "num_inputs", "args", "kwargs", "has_labels"),
    [
        (X, None, [X], {}, False),
        ((X,), None, [X], {}, False),
        ((X, Y), None, [X], {}, True),
        ([X, Y], None, [X], {}, True),
        ((X, M, Y), None, [X, M], {}, True),
        ((X, Y), 1, [X], {}, True),
        ((X, M), 2, [X, M], {}, False),
        ((X, M, Y), 2, [X, M], {}, True),
        ((X,), 1, [X], {}, False),
        ({"x": X, "labels": Y}, 0, [], {"x": X}, True),
        ({"x": X, "mask": M}, 0, [], {"x": X, "mask": M}, False),
    ],
)
def test_a_batch_splits_into_inputs_and_labels(batch, num_inputs, args, kwargs, has_labels):
    inputs, labels = split_batch(batch, num_inputs)
    assert all(one is other for one, other in zip(inputs.args, args, strict=True))
    assert inputs.kwargs == kwargs
    assert labels is (Y if has_labels else None)
    assert inputs.batch_size == 3


def test_hold_out_separates_batches_and_samples():
    batches = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)) for _ in range(5)]
    pairs = split_batches(nn.Linear(2, 3), batches)
    held_out, kept = hold_out(pairs)
    assert len(held_out) == len(batches) // HELD_OUT
    assert len(held_out) + len(kept) == len(batches)
    assert not {id(pair) for pair in held_out} & {id(pair) for pair in kept}
    (one,), (rest,) = hold_out(pairs[:1])
    assert one[0].batch_size + rest[0].batch_size == pairs[0][0].batch_size
    assert len(one[1]) == one[0].batch_size


def test_labels_are_told_from_inputs_by_the_forward():
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return a if b is None else a + b

    x, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    assert split_batches(Two(), [(x, labels)])[0][1] is labels
    assert split_batches(Two(), [(x, x)])[0] == (Inputs((x, x), {}), None)
    assert split_batches(Two(), [(x, x, labels)])[0][1] is labels
    assert split_batches(Two(), [{"a": x, "labels": labels}])[0][1] is labels


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, [0, 1, 2]), "labels: a list; give a tensor"),
        ((X, Y[:2]), r"labels: \[2\] for a batch of 3 samples"),
        ((X, torch.tensor(1)), r"labels: \[\] for a batch of 3 samples"),
        ((X, M[:2], Y), "must be one batch size"),
        ((), "no tensor; give tensors"),
        (X.numpy(), "a ndarray; give a tensor"),
        ({"x": X.numpy()}, "no tensor; give tensors, as torch.from_numpy makes them"),
        ("text", "a str; give a tensor"),
    ],
)
def test_batches_that_are_not_understood_are_named(batch, message):
    model = nn.Linear(2, 3)
    with pytest.raises(InvalidInput, match=f"batch 1: .*{message}"):
        split_batches(model, [(X, Y), batch])


@pytest.mark.parametrize("data", [None, 5, X, {"x": X}, "text"])
def test_data_that_is_no_iterable_of_batches(data):
    with pytest.raises(InvalidInput, match="not an iterable of batches"):
        split_batches(nn.Linear(2, 3), data)


class Shuffled:
    """A loader whose batches come in another order, with other noise, each time."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for index in torch.randperm(9).tolist():
            yield torch.full((4, 2), float(index)) + torch.rand(4, 2), torch.full((4,), index % 3)


def test_data_that_is_no_list_is_gone_through_once_and_the_same_in_every_pass():
    loader = Shuffled()
    batches = split_batches(nn.Linear(2, 3), loader)
    first, second = list(batches), list(batches)
    assert loader.passes == 1
    assert batches.sizes == [4] * 9
    for (x, labels), (again, its_labels) in zip(first, second, strict=True):
        assert torch.equal(x.args[0], again.args[0])
        assert torch.equal(labels, its_labels)
    assert digest(batches) == digest(first)
    for some, expected in ((batches[1::4], first[1::4]), (batches.at([7, 2]), [first[7], first[2]])):
        assert [float(x.args[0][0, 0]) for x, _ in some] == [float(x.args[0][0, 0]) for x, _ in expected]
    held_out, rest = hold_out(batches)
    assert len(held_out) + len(rest) == 9


def test_the_first_samples_are_taken_and_no_more_is_read():
    asked = []

    def endless():
        for number in count():
            asked.append(number)
            yield {"x": torch.full((4, 2), float(number)), "labels": torch.arange(4)}

    batches = split_all(endless(), 1, samples=10)
    assert batches.sizes == [4, 4, 2]
    assert asked == [0, 1, 2]
    inputs, labels = batches[2]
    assert torch.equal(inputs.kwargs["x"], torch.full((2, 2), 2.0))
    assert labels.tolist() == [0, 1]
    assert split_all([X, X], 1, samples=5).sizes == [len(X), 5 - len(X)]
    with pytest.raises(InvalidInput, match="whole number from 1"):
        split_all([X], 1, samples=0)


def test_endless_data_is_told(monkeypatch):
    monkeypatch.setattr(core_batches, "MOST_SAMPLES", 100)
    with pytest.raises(InvalidInput, match=r"does not end: 100 samples so far.*--samples N"):
        split_all((torch.ones(4, 2) for _ in count()), 1)
    assert sum(split_all(iter([torch.ones(4, 2)] * 30), 1).sizes) == 120  # which says how long it is


def test_few_are_whole_batches_from_all_over_the_data():
    pairs = split_all([torch.full((64, 1), float(number)) for number in range(100)], 1)
    some = pairs.few()
    assert sum(some.sizes) <= FEW_SAMPLES < sum(some.sizes) + 65
    numbers = [float(inputs.args[0][0]) for inputs, _ in some]
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 5
    assert numbers[-1] > 95
    assert pairs[:30].few().sizes == [64] * 30


def test_no_batch_that_was_read_stays_in_memory():
    alive = WeakSet()

    def made():
        for _ in range(50):
            x = torch.randn(8, 2)
            alive.add(x)
            yield x
            assert len(alive) <= 3

    split_all(made(), 1)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (lambda: torch.zeros(0, 3), "no sample"),
        (lambda: torch.zeros(2, 3, device="meta"), "device meta"),
        (lambda: torch.zeros(2, 3).to_sparse(), "to_dense"),
    ],
)
def test_tensors_without_numbers_to_compute_with_are_refused(tensor, said):
    with pytest.raises(InvalidInput, match=said):
        split_batch(tensor())


def test_batches_made_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        made = torch.ones(2, 3)
    inputs, _ = split_batch(made)
    weight = torch.ones(3, requires_grad=True)
    (inputs.args[0] * weight).sum().backward()
    assert weight.grad is not None
