"""The metrics of outputs against the plain model's own operators, a sample at a time."""

import dataclasses

import numpy as np
import pytest
import torch

from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.metrics import METRICS, MetricInput
from mixbit.metrics.output_error import output_error
from mixbit.quantization.calibrate import calibrate
from tests.metrics.setting import NETWORKS, SCHEMES, assert_agrees, calls_of, mean_errors, setting_of
from tests.networks import OPERATORS, batches_of, captured_operator

noise_to_signal = METRICS["noise_to_signal"]


@torch.no_grad()
def squares_of(one):
    """[N, L, C] of errors and [N, L, 1] of outputs."""
    errors, outputs = np.zeros((10, len(one.layers), len(SCHEMES))), np.zeros((10, len(one.layers), 1))
    for row, layer in enumerate(one.layers):
        for sample in range(10):
            _, calls = calls_of(one, layer, one.x[sample : sample + 1])
            outputs[sample, row] = sum(float(call.output.square().mean()) for call in calls)
        for column, scheme in enumerate(SCHEMES[:-1]):
            error = one.weight_error(layer, scheme)
            means = mean_errors(one, layer, error)
            for sample in range(10):
                _, calls = calls_of(one, layer, one.x[sample : sample + 1])
                for call, mean, operation in zip(calls, means, layer.operations, strict=True):
                    change = call.channels_last(call.run(call.x, error))
                    errors[sample, row, column] += float((change - (0 if mean is None else mean)).square().mean())
                    if scheme.input is not None and operation.input is not None:
                        rounded = one.input_quantizer(operation.input, scheme)(call.x)
                        change = call.run(rounded - call.x, one.parameter(layer))
                        errors[sample, row, column] += float(change.square().mean())
    return errors, outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_mean_squares_of_the_outputs_errors(name):
    one = setting_of(name)
    errors, outputs = squares_of(one)
    answer = output_error(one.inputs(labelled=False))
    assert answer.num_samples == 10
    assert (answer.loss[:, :-1] > 0).all()
    assert_agrees(answer.loss, errors.mean(0))
    assert_agrees(answer.standard_error, errors.std(0, ddof=1) / np.sqrt(10))

    relative = noise_to_signal(one.inputs(labelled=False))
    ratio = errors.mean(0) / outputs.mean(0)
    residuals = (errors - ratio * outputs) / outputs.mean(0)
    assert relative.num_samples == 10
    assert_agrees(relative.loss, ratio)
    np.testing.assert_allclose(
        relative.standard_error, residuals.std(0, ddof=1) / np.sqrt(10), rtol=1e-6, atol=1e-7 * ratio.max()
    )


def test_a_single_sample_has_no_error_known():
    one = setting_of("convolutions")
    inputs = one.inputs(size=1)
    alone = dataclasses.replace(inputs, batches=inputs.batches[:1])
    for metric in (output_error, noise_to_signal):
        answer = metric(alone)
        assert answer.num_samples == 1
        assert np.isfinite(answer.loss).all()
        assert np.isinf(answer.standard_error).all()


@pytest.mark.parametrize("kind", OPERATORS)
def test_samples_are_told_apart_wherever_an_operator_keeps_them(kind):
    _, x, graph = captured_operator(kind)
    calibration = calibrate(graph, batches_of(x, 2))
    schemes, task = (Scheme.parse("w3a4"),), Task.regression()
    together, alone = (
        MetricInput(graph, schemes, calibration, [(part, None) for part in batches_of(x, size)], task, 0)
        for size in (3, 1)
    )
    for metric in (output_error, noise_to_signal):
        answer, wanted = metric(together), metric(alone)
        assert (answer.standard_error > 0).all()
        assert_agrees(answer.loss, wanted.loss)
        np.testing.assert_allclose(answer.standard_error, wanted.standard_error, rtol=1e-6)
