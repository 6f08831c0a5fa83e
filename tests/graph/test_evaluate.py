"""Sums over batches against all outputs at once in float64, and that nothing grows with the number of batches."""

import gc
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixbit.core import Inputs, InvalidInput, Task, split_all
from mixbit.core.io.spill import Spill
from mixbit.graph import Reference, evaluate
from mixbit.graph.capture import capture
from mixbit.metrics.measure import measure
from mixbit.quantization import calibrate, uniform_plan
from mixbit.roundings.quantize import quantize

TASK = Task.classification()


@pytest.mark.parametrize("most_bytes", [0, 300, 2**20])  # computed again, both, read from the file
def test_sums_are_those_of_all_outputs_at_once(most_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules["mixbit.graph.evaluate"], "MOST_BYTES", most_bytes)
    torch.manual_seed(0)
    float_, changed, x = nn.Linear(6, 5), nn.Linear(6, 5), torch.randn(23, 6)
    labels, calls = torch.randint(0, 5, (23,)), []

    def network(inputs: Inputs) -> Tensor:
        calls.append(inputs)
        return float_(*inputs.args)

    batches = [(Inputs.of(some), wanted) for some, wanted in zip(x.split(5), labels.split(5), strict=True)]
    reference = Reference.recorded(network, TASK)
    found = evaluate(reference, batches, TASK, "float", diverging_from=reference)
    assert found.divergence == 0
    done = evaluate(
        lambda inputs: changed(*inputs.args),
        batches,
        TASK,
        "changed",
        with_loss=True,
        diverging_from=reference,
        differing_from=reference,
    )
    assert len(calls) == {0: 10, 300: 7, 2**20: 5}[most_bytes]  # of 100 bytes a batch, the last of 60
    wanted, given = (net(x).detach() for net in (float_, changed))
    logs = [each.double().log_softmax(1) for each in (wanted, given)]
    kl = functional.kl_div(logs[1], logs[0], log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(done.divergences, kl, rtol=1e-5, atol=1e-7)
    assert done.divergence_of == pytest.approx({"output": float(kl.mean())}, rel=1e-5)
    assert done.num_samples == 23
    assert done.accuracy == pytest.approx(float((given.argmax(1) == labels).float().mean()))
    assert done.answers.sum(0).tolist() == [int((given.argmax(1) == labels).sum()), 23]
    losses = sum(loss * count for loss, count in done.losses) / 23
    assert losses == pytest.approx(float(functional.cross_entropy(given, labels)), rel=1e-5)
    difference, apart = done.differences["output"], given.double() - wanted.double()
    assert difference.agreement == float((wanted.argmax(1) == given.argmax(1)).double().mean())
    torch.testing.assert_close(difference.squares, apart.square().sum(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(difference.largest, apart.abs().amax(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(difference.moments[1], wanted.double().sum(0), rtol=1e-4, atol=1e-5)


def made(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        yield torch.randn(32, 64), torch.randint(0, 4, (32,))


def alive_bytes() -> int:
    gc.collect()
    return sum(each.nbytes for each in gc.get_objects() if type(each) is Tensor)


def alive_after(count: int) -> int:
    """Bytes of tensors behind a calibration, a table, a rounded network and what it does, of so many batches."""
    net = nn.Linear(64, 4)
    before = alive_bytes()
    graph = capture(net, torch.randn(4, 64))
    calibration = calibrate(graph, made(count))
    table = measure(graph, calibration, target="packed")
    plan = uniform_plan(graph, "w4a8", target="packed")
    simulated = quantize(graph, plan, calibration, rounding="gptq")
    reference, pairs = Reference.recorded(graph, TASK), split_all(made(count), 1)
    done = evaluate(simulated, pairs, TASK, "run", diverging_from=reference, differing_from=reference)
    assert done.num_samples == calibration.num_samples == 32 * count
    assert len(table.layers) == 1
    return alive_bytes() - before


@pytest.mark.slow
def test_tensors_in_memory_do_not_grow_with_batches():
    few, many = alive_after(6), alive_after(40)
    batch_bytes = 32 * (64 * 4 + 8)
    assert many - few <= 34 * 32 * 8 + 2 * batch_bytes  # a divergence in float64 for each sample, and little else


def test_outputs_that_find_no_room_are_computed_again(monkeypatch):
    def full(*_):
        raise InvalidInput("no room")

    task, batches = Task.classification(), [(Inputs.of(torch.full((2, 3), float(number))), None) for number in range(3)]
    reference = Reference.recorded(lambda inputs: inputs.args[0], task)
    with monkeypatch.context() as patch:
        patch.setattr(Spill, "put", full)
        reference.of(0, batches[0][0])
    for number in (1, 0, 2, 0, 1):
        assert reference.of(number, batches[number][0])["output"].unique().item() == number
