import dataclasses

import numpy as np
import pytest
import torch

from mixbit.calibrate import calibrate
from mixbit.errors import InvalidInput
from mixbit.estimate import Estimate
from mixbit.graph import capture
from mixbit.layers import find_layers, model_fingerprint
from mixbit.measurement import measure
from mixbit.simulate import quantize
from mixbit.task import Task
from tests.networks import ANYTHING, Attention, Residual, batches_of, plan_of

pytestmark = pytest.mark.usefixtures("anything")


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Residual().eval(), torch.randn(2, 2, 6, 6))


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(x, torch.zeros(len(x), dtype=torch.long)) for x in torch.randn(12, 2, 6, 6).split(5)]


def bits_of_the_weight(question):
    """A metric that says how narrow the weight is; it keeps the question for the test."""
    bits_of_the_weight.question = question
    row = [32.0 - scheme.weight_bits for scheme in question.schemes]
    loss = np.array([row] * len(question.layers))
    return Estimate(loss, np.zeros_like(loss), 12)


def test_the_table_holds_what_was_asked(graph, batches):
    choices = ["w2a8", "w4", "float"]
    table = measure(graph, batches, target=ANYTHING, choices=choices, metric=bits_of_the_weight, seed=5)
    layers = find_layers(graph)
    assert table.layers == tuple(layer.name for layer in layers)
    assert table.choices == ("w2a8", "w4", "float")
    assert table.loss.tolist() == [[30, 28, 0]] * 3
    assert (table.metric, table.target, table.seed, table.num_samples) == ("bits_of_the_weight", "anything", 5, 12)
    assert table.fingerprint == model_fingerprint(layers)
    assert table.numel.tolist() == [4 * 2 * 9, 4 * 4 * 9, 3 * 4]
    assert table.macs.tolist() == [4 * 2 * 9 * 36, 4 * 4 * 9 * 36, 3 * 4]
    question = bits_of_the_weight.question
    assert (question.seed, question.task.name) == (5, "classification")
    assert [inputs.batch_size for inputs, _ in question.batches] == [5, 5, 2]
    assert question.calibration.num_samples == 12


def test_usage_is_counted_by_the_target_and_by_hand(graph, batches):
    target = dataclasses.replace(
        ANYTHING, weight_bytes=lambda shape, axis, fmt: 1000 * shape[axis] + (fmt.bits if fmt else 32)
    )
    table = measure(graph, batches, target=target, choices=["w4a8", "w2", "float"], metric=bits_of_the_weight)
    assert table.usage["weight_bytes"].tolist() == [[4004, 4002, 4032], [4004, 4002, 4032], [3004, 3002, 3032]]
    assert table.usage["weight_bits"].tolist() == [[4 * n, 2 * n, 32 * n] for n in (72, 144, 12)]
    assert table.usage["bit_ops"].tolist() == [[4 * 8 * n, 2 * 32 * n, 32 * 32 * n] for n in (72 * 36, 144 * 36, 12)]


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
    return calibrate(graph, find_layers(graph), batches_of(torch.cat([x for x, _ in batches]), 5))


def test_a_calibration_saves_a_pass(graph, batches):
    calibration = calibrated(graph, batches)
    table = measure(graph, batches, target=ANYTHING, calibration=calibration)
    assert np.array_equal(table.loss, measure(graph, batches, target=ANYTHING).loss)
    measure(graph, batches, target=ANYTHING, calibration=calibration, metric=bits_of_the_weight)
    assert bits_of_the_weight.question.calibration is calibration


def test_the_task_reaches_the_metric(graph, batches):
    measure(graph, batches, target=ANYTHING, metric=bits_of_the_weight, task=Task.regression())
    assert bits_of_the_weight.question.task.name == "regression"


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
        measure(other, [torch.randint(0, 6, (4, 5))], target=ANYTHING, calibration=calibrated(graph, batches))
    simulated = quantize(graph, plan_of(find_layers(graph), "w4"), batches)
    with pytest.raises(InvalidInput, match="quantized already; measure the captured graph"):
        measure(simulated, batches, target=ANYTHING)
