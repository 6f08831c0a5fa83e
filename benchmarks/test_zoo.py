"""The zoo: its subjects are what they should be, and its judgement sees what is wrong."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.zoo import report, subject
from benchmarks.zoo.names import NAMES, make
from benchmarks.zoo.run import Row, _differences, relative
from mixbit.core import Task, split_batches
from mixbit.graph.capture import capture


@pytest.mark.parametrize("name", [name for name, module in NAMES.items() if module != "transformers_"])
def test_own_subjects_build_run_and_are_the_same_twice(name: str, monkeypatch) -> None:
    monkeypatch.setattr(subject, "EFFORT", 0.03)
    state = torch.random.get_rng_state()
    first = make(name)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    second = make(name)
    assert sum(parameter.numel() for parameter in first.model.parameters()) < 300_000
    assert Task.named(first.task)
    assert not first.model.training
    inputs, again = (split_batches(one.model, one.test)[0][0] for one in (first, second))
    outputs, same = (pytree.tree_leaves(one.model(*inputs.args)) for one in (first, second))
    for output, other in zip(outputs, same, strict=True):
        assert torch.equal(output, other)
        assert output.isfinite().all()
        assert output.std(0).max() > 0
    assert all(torch.equal(a, b) for a, b in zip(inputs.tensors, again.tensors, strict=True))
    calibration = split_batches(first.model, first.calibration)[0][0]
    assert not all(torch.equal(a, b) for a, b in zip(inputs.tensors, calibration.tensors, strict=True))


def test_relative_sees_a_small_channel_beside_a_large_one() -> None:
    reference = torch.randn(100, 2, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([[100.0], [0.5]])
    difference = torch.zeros_like(reference)
    difference[:, 1] = 0.25
    assert relative(difference, reference) == pytest.approx((0.5 * 0.25**2 / reference[:, 1].var().item()) ** 0.5)


def test_differences_are_of_every_output_and_every_number_of_rows() -> None:
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x * 2, "b": (x + 1, x.sum(1))}

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    (inputs, _), model = split_batches(Two(), [x])[0], Two()
    graph = capture(model, x)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [2 * arrays[0], arrays[0] + (2 if len(arrays[0]) == 1 else 1), arrays[0].sum(1)]

    from_simulation, from_model, simulated = _differences(model, graph, graph, run, [inputs])
    assert list(from_model) == ["['a']", "['b'][0]", "['b'][1]"]
    assert from_simulation == from_model
    assert from_model["['b'][0]"] == pytest.approx((1 / x.var(0)).mean().sqrt().item())
    assert max(from_model["['a']"], from_model["['b'][1]"], *simulated.values()) < 1e-6


def test_counts_name_what_is_wrong() -> None:
    good = Row("good", "openvino", from_simulation={"x": 0.01}, from_model={"x": 0.1}, matches=True)
    good = dataclasses.replace(good, file_bytes=(50, 100), latency_ms=(1.0, 2.0))
    far = dataclasses.replace(good, name="far", from_model={"x": 0.1, "y": 0.6}, from_simulation={"x": 0.0, "y": 0.0})
    left = dataclasses.replace(good, name="left", uncovered=0.3, mentioned=0.1, matches=False, problems=("it differs",))
    dead = Row("dead", "openvino", error="the process ended with -11")
    texts = report.counts([good, far, left, dead], "openvino")
    assert texts[0] == "2 of 4 right on openvino"
    assert [text.strip() for text in texts[1:4]] == [
        "not right: far, dead",
        "says matches wrongly: far",
        "leaves > 2% unmentioned: left",
    ]
