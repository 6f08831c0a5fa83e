"""The metric `modelopt` against gradients of the plain model, a sample at a time."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.metrics import MetricInput
from mixbit.metrics.modelopt import modelopt
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.scales import weight_quantizer
from tests.metrics.setting import NETWORKS, SCHEMES, assert_agrees, calls_of, setting_of
from tests.networks import OPERATORS, batches_of, captured_operator


def scores_of(one, layer, samples):
    """[C] sums of (gradient x error)^2, of the sum of these samples' losses."""
    returned, calls = calls_of(one, layer, one.x[samples])
    loss = F.cross_entropy(Task.classification().outputs(returned), one.labels[samples], reduction="sum")
    slopes = torch.autograd.grad(loss, [call.output for call in calls], allow_unused=True, materialize_grads=True)
    scores = np.zeros(len(SCHEMES))
    for call, slope, operation in zip(calls, slopes, layer.operations, strict=True):
        for column, scheme in enumerate(SCHEMES[:-1]):
            with torch.no_grad():
                changes = [call.run(call.x, one.weight_error(layer, scheme))]
                if scheme.input is not None and operation.input is not None:
                    rounded = one.input_quantizer(operation.input, scheme)(call.x)
                    changes.append(call.run(rounded - call.x, one.parameter(layer)))
                scores[column] += sum(float((slope * change).square().sum()) for change in changes)
    return scores


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_squares_of_gradients_times_errors(name):
    one = setting_of(name)
    answer = modelopt(one.inputs())
    names = [layer.name for layer in one.layers if layer.name != "bent.weight"]
    rows = [row for row, layer in enumerate(one.layers) if layer.name in names]
    each = np.array(
        [[scores_of(one, one.layers[row], slice(sample, sample + 1)) for row in rows] for sample in range(10)]
    )
    assert answer.num_samples == 10
    assert_agrees(answer.loss[rows], each.mean(0))
    assert_agrees(answer.standard_error[rows], each.std(0, ddof=1) / np.sqrt(10))
    assert (answer.loss[0, :-1] > 0).all()
    if name == "two heads":  # the second does not reach the logits
        assert (answer.loss[1] == 0).all()


def test_an_output_that_all_samples_share_counts_by_the_whole_batch():
    one = setting_of("bent positions")
    names = [layer.name for layer in one.layers]
    row = names.index("bent.weight")
    batches = [scores_of(one, one.layers[row], slice(start, start + 4)) for start in (0, 4, 8)]
    assert_agrees(modelopt(one.inputs()).loss[row], sum(batches) / 10)


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_operator_has_scores(kind):
    """Labels below all outputs by 1 make all gradients of a regression 1: what is left is the error itself."""
    _, x, graph = captured_operator(kind)
    layers, scheme = graph.layers, Scheme.parse("w3")
    (layer,), (operation,) = layers, layers[0].operations
    calibration = calibrate(graph, batches_of(x, 2))
    outputs = Task.regression().outputs(graph(x)).detach()
    answer, alone = (
        modelopt(MetricInput(graph, (scheme,), calibration, pairs, Task.regression(), 0))
        for pairs in (list(zip(batches_of(x, size), (outputs - 1).split(size), strict=True)) for size in (2, 1))
    )
    run = torch.fx.Interpreter(graph.module, garbage_collect_values=False)
    run.run(x)
    node = graph.node(operation.node)
    weight = graph.module.get_parameter(layer.name).detach()
    error = weight_quantizer(graph, layer, scheme.weight, calibration)(weight) - weight
    change = graph.run(operation, run.env[node.args[operation.data]].detach(), error)
    assert_agrees(answer.loss, float(change.square().sum()) / len(x))
    assert_agrees(answer.standard_error, alone.standard_error)  # samples are told apart wherever they are kept
