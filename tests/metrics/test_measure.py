import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.budget import Budget
from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import model_fingerprint
from mixbit.metrics import Estimate
from mixbit.metrics.measure import measure
from mixbit.pipeline.settings import Settings
from mixbit.quantization.calibrate import calibrate
from mixbit.roundings.quantize import quantize
from tests.networks import ANYTHING, Attention, Net, Residual, batches_of, plan_of

pytestmark = pytest.mark.usefixtures("anything")


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Residual().eval(), torch.randn(2, 2, 6, 6))


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(x, torch.zeros(len(x), dtype=torch.long)) for x in torch.randn(12, 2, 6, 6).split(5)]


def bits_of_the_weight(inputs):
    """A metric that says how narrow the weight is; it keeps its input for the test."""
    bits_of_the_weight.inputs = inputs
    row = [32.0 - scheme.weight_bits for scheme in inputs.schemes]
    loss = np.array([row] * len(inputs.layers))
    return Estimate(loss, np.zeros_like(loss), 12)


def test_the_table_holds_what_was_asked(graph, batches):
    choices = ["w2a8", "w4", "float"]
    table = measure(graph, batches, target=ANYTHING, choices=choices, metric=bits_of_the_weight, seed=5)
    layers = graph.layers
    assert table.layers == tuple(layer.name for layer in layers)
    assert table.choices == ("w2a8", "w4", "float")
    assert table.loss.tolist() == [[30, 28, 0]] * 3
    assert (table.metric, table.target, table.seed, table.num_samples) == ("bits_of_the_weight", "anything", 5, 12)
    assert table.fingerprint == model_fingerprint(layers)
    assert table.numel.tolist() == [4 * 2 * 9, 4 * 4 * 9, 3 * 4]
    assert table.macs.tolist() == [4 * 2 * 9 * 36, 4 * 4 * 9 * 36, 3 * 4]
    inputs = bits_of_the_weight.inputs
    assert (inputs.seed, inputs.task.name) == (5, "classification")
    assert [batch.batch_size for batch, _ in inputs.batches] == [5, 5, 2]
    assert inputs.calibration.num_samples == 12


def test_usage_is_counted_by_the_target_and_by_hand(graph, batches):
    target = dataclasses.replace(
        ANYTHING, weight_bytes=lambda shape, axis, fmt: 1000 * shape[axis] + (fmt.bits if fmt else 32)
    )
    table = measure(graph, batches, target=target, choices=["w4a8", "w2", "float"], metric=bits_of_the_weight)
    assert table.usage["weight_bytes"].tolist() == [[4004, 4002, 4032], [4004, 4002, 4032], [3004, 3002, 3032]]
    assert table.usage["weight_bits"].tolist() == [[4 * n, 2 * n, 32 * n] for n in (72, 144, 12)]
    assert table.usage["bit_ops"].tolist() == [[4 * 8 * n, 2 * 32 * n, 32 * 32 * n] for n in (72 * 36, 144 * 36, 12)]


def test_recurrences_read_floats_whatever_the_scheme():
    graph = capture(Net(lambda net, x: net.a(x)[0], a=nn.GRU(6, 4, batch_first=True)).eval(), torch.randn(2, 5, 6))
    table = measure(
        graph, [torch.randn(4, 5, 6)], target=ANYTHING, choices=["w4a8", "w4"], metric=bits_of_the_weight,
        task=Task.regression(),
    )  # fmt: skip
    assert table.usage["bit_ops"].tolist() == [[4 * 32 * 5 * n] * 2 for n in (72, 48)]
    uniform = float((table.macs * 32).sum())
    (limit,) = table.limits(Budget(bit_complexity_ratio=8 * float(table.macs.sum()) / uniform))
    assert limit.usage.sum(0).tolist() == [uniform, uniform]


def test_ties_are_those_of_shared_inputs():
    graph = capture(Attention().eval(), torch.randint(0, 6, (2, 5)))
    table = measure(graph, [torch.randint(0, 6, (4, 5))], target=ANYTHING, metric=bits_of_the_weight)
    assert [sorted(table.layers[index] for index in group) for group in table.input_ties] == [
        ["k.weight", "q.weight", "v.weight"]
    ]


def test_an_iterator_serves_as_a_list_does(graph, batches):
    tables = [measure(graph, data, target=ANYTHING) for data in (batches, iter(batches))]
    assert np.array_equal(tables[0].loss, tables[1].loss)
    assert tables[0].metric == "fisher"


def calibrated(graph, batches):
    return calibrate(graph, batches_of(torch.cat([x for x, _ in batches]), 5))


def test_a_calibration_saves_a_pass(graph, batches):
    calibration = calibrated(graph, batches)
    table = measure(graph, calibration, target=ANYTHING)
    assert np.array_equal(table.loss, measure(graph, batches, target=ANYTHING).loss)
    measure(graph, calibration, target=ANYTHING, metric=bits_of_the_weight)
    assert bits_of_the_weight.inputs.calibration is calibration


def test_the_task_reaches_the_metric(graph, batches):
    measure(graph, batches, target=ANYTHING, metric=bits_of_the_weight, task=Task.regression())
    assert bits_of_the_weight.inputs.task.name == "regression"


def test_a_task_is_named_by_a_text_too(graph, batches):
    for task in (Task.regression(), "regression"):
        inputs = [pair[0] for pair in batches]
        measure(graph, inputs, target=ANYTHING, choices=["w8a8"], task=task, metric=bits_of_the_weight)
        assert bits_of_the_weight.inputs.task.name == "regression"
    Settings(task="segmentation").check()
    for name in (lambda: measure(graph, batches, target=ANYTHING, task="none"), Settings(task="none").check):
        with pytest.raises(InvalidInput, match="task 'none' is unknown; known: classification"):
            name()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "abacus"}, "target 'abacus' is unknown; known: "),
        ({"metric": "luck"}, "metric 'luck' is unknown; known: fisher"),
        ({"choices": ["w9"]}, "weights have 2 to 8 bits"),
        ({"choices": []}, "give one scheme or more"),
        ({"target": dataclasses.replace(ANYTHING, weight_bits=(8,))}, "choice w4a8: target anything does not run it"),
    ],
)
def test_what_is_unknown_is_refused(graph, batches, options, message):
    with pytest.raises(InvalidInput, match=message):
        measure(graph, batches, **({"target": ANYTHING} | options))


def test_what_cannot_be_measured_is_refused(graph, batches):
    with pytest.raises(InvalidInput, match="holds no batch"):
        measure(graph, [], target=ANYTHING)
    with pytest.raises(InvalidInput, match="input 0 has shape"):
        measure(graph, [torch.randn(3, 2, 5, 5)], target=ANYTHING)
    other = capture(Attention().eval(), torch.randint(0, 6, (2, 5)))
    with pytest.raises(InvalidInput, match="calibration: of another graph"):
        measure(other, calibrated(graph, batches), target=ANYTHING)
    simulated = quantize(graph, plan_of(graph.layers, "w4"), batches)
    with pytest.raises(InvalidInput, match="quantized already; measure the captured graph"):
        measure(simulated, batches, target=ANYTHING)


def answering(**changes):
    """A metric that answers with a table of ones, but for some parts."""

    def mine(inputs):
        ones = np.ones((len(inputs.layers), len(inputs.schemes)))
        return Estimate(**({"loss": ones, "standard_error": ones / 10, "num_samples": 12} | changes))

    return mine


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda inputs: None, "returned a NoneType; return mixbit.metrics.Estimate"),
        (lambda inputs: np.ones((3, 2)), "returned a ndarray; return mixbit.metrics.Estimate"),
        (answering(loss=torch.ones(3, 2)), r"loss is a Tensor, torch.float32 \[3, 2\]; return float64 \(3, 2\)"),
        (answering(loss=np.ones((2, 2))), r"loss is a ndarray, float64 \[2, 2\]; return float64 \(3, 2\)"),
        (answering(loss=[[1, 2]] * 3), "loss is a list, no array"),
        (answering(loss=np.ones((3, 2), dtype=complex)), "loss is a ndarray, complex128"),
        (answering(standard_error=None), "standard_error is a NoneType, no array"),
        (answering(loss=np.full((3, 2), np.nan)), "loss holds NaN"),
        (answering(standard_error=-np.ones((3, 2))), "standard_error holds NaN or negative errors"),
        (answering(num_samples=3.5), "num_samples is 3.5; return a whole number, 1 or more"),
        (answering(num_samples=0), "num_samples is 0"),
    ],
)
def test_what_a_metric_of_the_users_own_returns_is_checked(graph, batches, metric, message):
    with pytest.raises(InvalidInput, match=f"metric .*: {message}"):
        measure(graph, batches, target=ANYTHING, choices=["w4a8", "w8a8"], metric=metric)


def test_a_metric_of_the_users_own_sees_all_the_data_at_once(graph):
    seen = []

    def mine(inputs):
        seen.append(len(inputs.batches))
        return answering()(inputs)

    batches = [torch.randn(2, 2, 6, 6) for _ in range(16)]
    measure(graph, batches, target=ANYTHING, choices=["w4a8", "w8a8"], metric=mine)
    assert seen == [16]


def test_a_table_without_standard_errors_is_not_called_stable(graph, batches):
    table = measure(graph, batches, target=ANYTHING, choices=["w2a8", "w8a8"], metric="weight_error")
    assert (
        table.verdict
        == "no standard errors: whether plans would change with other data is not known, after 12 of 12 samples"
    )


def test_costs_that_are_all_zero_in_a_part_of_the_data_are_looked_for_in_the_rest(graph):
    """A loss of zero but for the batches that come last in the order in which parts are taken."""
    batches = [(torch.randn(2, 2, 6, 6), torch.full((2,), float(number % 4 == 3))) for number in range(8)]
    task = Task.classification().with_loss(lambda output, labels: (output.square().sum(1) * labels).mean())
    table = measure(graph, batches, target=ANYTHING, choices=["w2a8", "w8a8"], task=task)
    assert table.loss.max() > 0
    assert table.num_samples == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": Residual()}, "graph: a Residual; give what capture"),
        ({"task": 3}, "task=3: give Task.classification"),
        ({"seed": -1}, "seed=-1: give a whole number"),
        ({"seed": 1.5}, "seed=1.5: give a whole number"),
        ({"batches": None}, "data: a NoneType, not an iterable of batches"),
        ({"batches": [np.zeros((2, 2, 6, 6))]}, "batch 0: inputs: a ndarray; give a tensor"),
        ({"batches": []}, "the data holds no batch"),
        ({"metric": None}, "metric"),
    ],
)
def test_arguments_are_checked_by_name(graph, batches, changes, message):
    given = {"graph": graph, "batches": batches, "target": ANYTHING} | changes
    with pytest.raises(InvalidInput, match=message):
        measure(given.pop("graph"), given.pop("batches"), **given)


def test_inference_mode_is_refused(graph, batches):
    with torch.inference_mode(), pytest.raises(InvalidInput, match="in inference mode there are no gradients"):
        measure(graph, batches, target=ANYTHING)


def test_autocast_is_refused(graph):
    with torch.autocast("cpu"), pytest.raises(InvalidInput, match="call from outside"):
        measure(graph, [torch.randn(2, 2, 6, 6)], target=ANYTHING)


@pytest.mark.parametrize("number", [0, 5])
def test_labels_are_told_before_calibration(graph, monkeypatch, number):
    """In whichever batch they are; and the network does not run on every batch for that."""
    batches = [(torch.randn(2, 2, 6, 6), torch.zeros(2, dtype=torch.int64)) for _ in range(8)]
    batches[number][1][1] = 1000
    monkeypatch.setattr("mixbit.metrics.measure.calibrate", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(InvalidInput, match=rf"batch {number}: labels: 0\.\.1000 found"):
        measure(graph, batches, target=ANYTHING, metric="fit")
