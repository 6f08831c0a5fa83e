"""The samples that changed most, against a slow loop in float64."""

import numpy as np
import pytest
import torch

from mixbit.core import Inputs, Task
from mixbit.graph import Reference
from mixbit.results.changed import CLASSES, MOST, changed_samples


def batches_of(sizes, lengths=None):
    generator = torch.Generator().manual_seed(0)
    lengths = lengths or [4] * len(sizes)
    return [
        (Inputs((torch.randn(size, length, generator=generator),), {}), torch.arange(size))
        for size, length in zip(sizes, lengths, strict=True)
    ]


def outputs_for(batches, shape, seed):
    """A reference whose outputs are random, the same at every look."""
    generator = torch.Generator().manual_seed(seed)
    stored = [{"output": torch.randn(inputs.batch_size, *shape, generator=generator)} for inputs, _ in batches]
    return Reference(Task.classification(), lambda number, _: stored[number]), [each["output"] for each in stored]


def softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def test_classes_are_those_of_a_slow_loop():
    batches = batches_of([8, 5, 8, 8], [4, 9, 4, 4])  # the second is of other sizes, and in no check set
    in_float, wanted = outputs_for(batches, (6,), 1)
    deployed, given = outputs_for(batches, (6,), 2)
    changed = changed_samples(batches, 20, Task.classification(), in_float, deployed)
    rows = [(number, row) for number in (0, 2, 3) for row in range(8)][:20]
    truth = []
    for place, (number, row) in enumerate(rows):
        p, q = (softmax(part[number][row].double().numpy()) for part in (wanted, given))
        truth.append((float((p * np.log(p / q)).sum()), place, row, p, q))
    truth.sort(key=lambda each: -each[0])
    assert [each.sample for each in changed] == [place for _, place, *_ in truth[:MOST]]
    for each, (divergence, _, row, p, q) in zip(changed, truth, strict=False):
        assert each.divergence == pytest.approx(divergence, rel=1e-9)
        assert each.label == row
        for guesses, shares in ((each.outputs["output"].float_, p), (each.outputs["output"].deployed, q)):
            order = np.argsort(-shares)[:CLASSES]
            assert [guess.number for guess in guesses] == order.tolist()
            assert [guess.probability for guess in guesses] == pytest.approx(shares[order].tolist())


def test_many_answers_and_numbers_are_told_as_shares():
    batches = batches_of([6])
    in_float, (wanted,) = outputs_for(batches, (7, 3), 1)
    deployed, (given,) = outputs_for(batches, (7, 3), 2)
    for each in changed_samples(batches, 6, Task.language(), in_float, deployed):
        answers = [row[each.sample].argmax(-1) for row in (wanted, given)]
        assert each.outputs["output"].differing == pytest.approx(float((answers[0] != answers[1]).double().mean()))
    for each in changed_samples(batches, 6, Task.regression(), in_float, deployed):
        before, after = (part[each.sample].double() for part in (wanted, given))
        apart = float((before - after).square().mean().sqrt() / before.square().mean().sqrt())
        assert each.outputs["output"].distance == pytest.approx(apart)
        assert not each.outputs["output"].float_


def test_samples_that_stay_the_same_are_left_out():
    batches = batches_of([6])
    in_float, _ = outputs_for(batches, (3,), 1)
    assert changed_samples(batches, 6, Task.classification(), in_float, in_float) == []
