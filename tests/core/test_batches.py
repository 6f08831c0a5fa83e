import pytest
import torch
from torch import Tensor, nn

from mixbit.core.batches import HELD_OUT, Inputs, hold_out, split_batch, split_batches
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
