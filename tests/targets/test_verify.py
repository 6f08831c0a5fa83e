"""What `compare` sees: every output, each group of channels of like spread, and answers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.task import Task, outputs_of
from mixbit.graph import Reference, evaluate, fitted as of_network
from mixbit.graph.capture import capture
from mixbit.roundings.quantize import quantize
from mixbit.targets import verify
from mixbit.targets.export import export
from mixbit.targets.verify import artefact_runner, compare, groups_of, own_difference
from tests.networks import Net, plan_of


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evaluation(task, wanted, given):
    """Of what a network returns for each batch, beside what was wanted."""
    expected, returned = iter(wanted), iter(given)
    reference = Reference.recorded(lambda _: next(expected), task)
    batches = [(Inputs.of(torch.zeros(len(outputs_of(each).popitem()[1]), 1)), None) for each in given]
    return evaluate(lambda _: next(returned), batches, task, "run", differing_from=reference)


def fitted(task, returned):
    outputs = outputs_of(returned)
    return task.fitted(outputs, dict.fromkeys(outputs, 0), lambda: [outputs])


@pytest.fixture
def problems(monkeypatch, tmp_path):
    """The problems of two evaluations, of a file without weights."""
    (tmp_path / "file").write_bytes(b"")
    target = SimpleNamespace(
        files_of=lambda _: ["file"], stored=lambda _: {}, exact=lambda _: "", bytes_tolerance=(0.01, 0)
    )
    monkeypatch.setattr(verify, "find_target", lambda _: target)

    def problems(task, wanted, given):
        return compare(tmp_path, "any", {}, evaluation(task, [wanted], [given]), environment={}).problems

    return problems


def test_small_channels_count_beside_large_ones():
    wanted = torch.cat([300 * randn(50, 7, 4), randn(50, 7, 2, seed=1).sigmoid()], 2)
    noise = torch.zeros_like(wanted)
    noise[..., 4:] = 0.05 * randn(50, 7, 2, seed=2)
    task = fitted(Task.detection(), wanted)
    small, large = groups_of(evaluation(task, [wanted], [wanted + noise]).differences["output"])
    assert (small.channels, large.channels) == ((4, 5), (0, 1, 2, 3))
    rows = wanted[..., 4:].flatten(0, 1)
    expected = noise[..., 4:].square().mean().sqrt() / rows.var(0, correction=0).mean().sqrt()
    assert small.relative_rms == pytest.approx(float(expected))
    assert large.relative_rms == 0
    assert small.largest == pytest.approx(float(noise.abs().max()))


@pytest.mark.parametrize("split", [1, 3])
def test_batches_are_compared_together(split):
    wanted = randn(12, 5, 3)
    parts = [each.chunk(split) for each in (wanted, wanted + 0.1)]
    (group,) = groups_of(evaluation(Task.regression(), *parts).differences["output"])
    assert group.relative_rms == pytest.approx(float(0.1 / wanted.flatten(0, 1).var(0, correction=0).mean().sqrt()))


def test_a_single_number_a_channel_is_compared_across_channels():
    wanted = randn(1, 9)
    (group,) = groups_of(evaluation(Task.regression(), [wanted], [wanted + 0.1]).differences["output"])
    assert group.relative_rms == pytest.approx(0.1 / float(wanted.std(correction=0)))


def test_problems_name_the_output_and_its_channels(problems):
    logits, boxes = randn(40, 3), torch.cat([randn(40, 2), 100 * randn(40, 2, seed=1)], 1)
    labels = logits.argmax(1)
    task = fitted(Task.classification(), (logits, boxes, labels))
    wanted, other = (logits, boxes, labels), (logits, boxes, labels.roll(1))
    assert problems(task, wanted, wanted) == ()
    off = boxes.clone()
    off[:, 1] += 0.5
    (text,) = problems(task, wanted, (logits, off, labels))
    assert text.startswith("output 1, channels 0, 1, differs by ")
    (text,) = problems(task, wanted, other)
    assert text.startswith("top answers of output 2 agree on ")
    agreement = evaluation(task, [wanted], [other]).differences["2"].agreement
    assert agreement == float((labels == labels.roll(1)).double().mean())


def test_a_single_output_goes_without_a_name(problems):
    (text,) = problems(Task.regression(), randn(20, 3), randn(20, 3) + 1)
    assert text.startswith("outputs differ by ")


def test_a_constant_that_is_right_to_a_thousandth_is_right(problems):
    wanted = torch.full((20, 3), 5.0)
    assert problems(Task.regression(), wanted, wanted * 1.0001) == ()
    assert problems(Task.regression(), wanted, wanted * 1.01) != ()


def logistic(net, x):
    """Twice as far from itself after each step: chaos."""
    x = net.a(x).sigmoid()
    for _ in range(30):
        x = 3.99 * x * (1 - x)
    return x


def test_a_network_that_amplifies_roundings_is_told_from_a_wrong_file(tmp_path):
    pytest.importorskip("onnxruntime")
    net, x = Net(logistic, a=torch.nn.Linear(64, 8)).eval(), torch.randn(64, 64)
    try:
        graph = capture(net, x[:2])
    except UnsupportedModel:
        pytest.skip("on this processor one sample alone is summed in another order, which the network amplifies too")
    plan = plan_of(graph.layers, "w8", "onnxruntime")
    simulated = quantize(graph, plan, [x])
    export(simulated, tmp_path / "out")
    comparison = verify.verify(tmp_path / "out", graph, simulated, [x], task=Task.regression())
    assert comparison.relative_rms > verify.OUTPUT_TOLERANCE
    assert comparison.amplification is not None
    assert comparison.amplification > comparison.relative_rms / verify.EXPLAINS
    assert comparison.problems == ()
    assert "amplifies single roundings" in str(comparison)


def test_a_wrong_file_is_not_excused(tmp_path):
    pytest.importorskip("openvino")
    net = Net(lambda net, x: net.b(net.a(x).relu()), a=torch.nn.Linear(16, 16), b=torch.nn.Linear(16, 4)).eval()
    x = randn(64, 16).float()
    graph = capture(net, x[:2])
    right, wrong = (quantize(graph, plan_of(graph.layers, scheme, "openvino"), [x]) for scheme in ("w8", "w2"))
    export(wrong, tmp_path / "out")
    comparison = verify.verify(tmp_path / "out", graph, right, [x], task=Task.regression())
    assert comparison.amplification is not None
    assert comparison.amplification < 1e-4
    assert any("differ by" in problem for problem in comparison.problems)
    export(right, tmp_path / "right")
    comparison = verify.verify(tmp_path / "right", graph, right, [x], task=Task.regression())
    assert comparison.problems == ()
    assert comparison.amplification is None
    # bfloat16 where the processor has it
    assert comparison.at_default_settings is not None
    assert comparison.relative_rms <= comparison.at_default_settings < 0.05
    assert "at default settings" in str(comparison)


def test_a_runtime_that_fails_under_its_own_settings_is_said_to_and_is_no_problem(problems, tmp_path):
    def load(**_):
        raise TargetMismatch("no suitable implementation")

    wanted = randn(20, 3)
    assert own_difference(load, None, None) == math.inf
    comparison = compare(
        tmp_path, "any", {}, evaluation(Task.regression(), [wanted], [wanted]), environment={}, default=math.inf
    )
    assert comparison.problems == ()
    assert "does not run at the runtime's default settings" in str(comparison)


def test_no_batch_is_refused(tmp_path):
    graph = capture(Net(lambda net, x: net.a(x), a=nn.Linear(3, 2)), randn(4, 3).float())
    simulated = quantize(graph, plan_of(graph.layers, "w8", "packed"), [randn(4, 3).float()])
    export(simulated, tmp_path)
    with pytest.raises(InvalidInput, match="holds no batch"):
        verify.verify(tmp_path, graph, simulated, [])


def test_a_regression_of_probabilities_is_warned_of(caplog):
    graph = capture(Net(lambda net, x: net.a(x).softmax(1), a=nn.Linear(3, 2)), randn(4, 3).float())
    for task, warned in ((Task.classification(), False), (Task.regression(), True)):
        caplog.clear()
        of_network(task, graph, [])
        assert ("as probabilities do" in caplog.text) == warned


def test_an_artefact_that_returns_inf_does_not_match():
    """It is no fault of the data."""

    class Broken:
        def run(self, arrays):
            return [np.full((len(arrays[0]), 2), np.inf, np.float32)]

    graph = capture(torch.nn.Linear(3, 2), torch.ones(4, 3))
    with pytest.raises(TargetMismatch, match="returns NaN or inf where the network does not"):
        artefact_runner(Broken(), graph)(graph.example)
