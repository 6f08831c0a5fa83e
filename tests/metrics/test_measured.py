"""The metrics `measured` and `measured_loss` against whole runs of the plain model and of the quantized graph."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.metrics import MetricInput
from mixbit.metrics.measured import measured, measured_loss
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.simulate import assemble
from mixbit.roundings.quantize import quantize
from tests.metrics.setting import NETWORKS, SCHEMES, assert_agrees, rounded_output, setting_of
from tests.networks import OPERATORS, Net, batches_of, captured_operator, plan_of

TASK = Task.classification()
pytestmark = pytest.mark.usefixtures("anything")  # plans of the graphs here are for it


@torch.no_grad()
def runs_of(one, row, column):
    """(logits with the layer's weight rounded, {tensor: logits with it quantized}) of a scheme, on all data."""
    layer, scheme = one.layers[row], SCHEMES[column]
    inputs = {}
    for name in layer.inputs if scheme.input is not None else ():
        plan = plan_of(one.layers, "float")
        changed = assemble(one.graph, plan, [one.input_quantizer(name, scheme)], {})
        inputs[name] = TASK.outputs(changed(one.x))
    return rounded_output(one, layer, scheme), inputs


@torch.no_grad()
def table_of(one, cost):
    """[..., L, C] of cost(logits), inputs shared among the layers that read them."""
    readers = Counter(name for layer in one.layers for name in layer.inputs)
    rows = []
    for row in range(len(one.layers)):
        entries = []
        for column in range(len(SCHEMES) - 1):
            weight, inputs = runs_of(one, row, column)
            entries.append(cost(weight) + sum(cost(logits) / readers[name] for name, logits in inputs.items()))
        rows.append(np.stack([*entries, 0 * entries[0]], -1))
    return np.stack(rows, -2)


def logits_of(one):
    return TASK.outputs(one.model(one.x)).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_the_divergence_of_whole_runs(name):
    one = setting_of(name)
    reference = logits_of(one).log_softmax(1)

    def divergence(logits):
        return F.kl_div(logits.log_softmax(1), reference, reduction="none", log_target=True).sum(1).numpy()

    each = table_of(one, divergence)
    answer = measured(one.inputs(labelled=False))
    assert answer.num_samples == 10
    assert_agrees(answer.loss, each.mean(0))
    assert_agrees(answer.standard_error, each.std(0, ddof=1) / np.sqrt(10))
    assert (answer.loss[0, :-1] > 0).all()
    if name == "two heads":  # the second does not reach the logits; its input does, through the first
        assert (answer.loss[1, 0], answer.loss[1, 1] > 0) == (0, True)


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_rounded_weight_is_what_quantize_deploys(name):
    one = setting_of(name)
    answer = measured(one.inputs())
    for row, layer in enumerate(one.layers):
        plan = plan_of(one.layers, {other.name: "float" for other in one.layers} | {layer.name: "w2"})
        changed = quantize(one.graph, plan, one.calibration)
        with torch.no_grad():
            divergence = TASK.head.divergence(logits_of(one), TASK.outputs(changed(one.x))).mean()
        assert_agrees(answer.loss[row, 0], float(divergence))


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_of_the_loss_are_increases_of_whole_runs_or_nothing(name):
    one = setting_of(name)
    unchanged = F.cross_entropy(logits_of(one), one.labels)
    signs = []

    def increase(logits):
        signs.append(float(F.cross_entropy(logits, one.labels) - unchanged))
        return np.maximum(signs[-1], 0)

    table = table_of(one, increase)
    answer = measured_loss(one.inputs(size=4))
    assert answer.num_samples == 3
    assert_agrees(answer.loss, table)
    assert min(signs) < 0 < max(signs)  # rounding gains something somewhere, which counts as nothing


@pytest.mark.parametrize("size", [5, 4])
def test_the_error_of_the_loss_is_that_between_batches(size):
    one = setting_of("convolutions")
    reference, answer = logits_of(one), measured_loss(one.inputs(size))

    def increases(logits):
        losses = (F.cross_entropy(part, one.labels, reduction="none") for part in (logits, reference))
        return np.array([part.mean() for part in torch.sub(*losses).split(size)])

    rows = table_of(one, increases)
    shares = np.array([len(part) / 10 for part in one.x.split(size)]).reshape(-1, 1, 1)
    squares = (shares**2 * (rows - (shares * rows).sum(0)) ** 2).sum(0)
    assert_agrees(answer.standard_error, np.sqrt(squares * len(rows) / (len(rows) - 1)))
    if size == 5:
        assert_agrees(answer.standard_error, rows.std(0, ddof=1) / np.sqrt(2))


def test_divergences_far_below_the_precision_of_float32_are_kept():
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = Net(lambda net, x: net.b(net.a(x).relu()), a=nn.Linear(8, 8), b=nn.Linear(8, 4)).eval()
    tables = []
    for dtype in (torch.float32, torch.float64):
        graph = capture(model.to(dtype), x[:2].to(dtype))
        batches = batches_of(x.to(dtype), 8)
        calibration, pairs = calibrate(graph, batches), [(inputs, None) for inputs in batches]
        tables.append(measured(MetricInput(graph, (Scheme.parse("w8"),), calibration, pairs, TASK, 0)).loss)
    assert (tables[1] < 1e-5).all()
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-2)


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("kind", OPERATORS)
def test_every_operator_is_measured_as_quantize_deploys_it(kind):
    _, x, graph = captured_operator(kind)
    layers, task, batches = graph.layers, Task.regression(), batches_of(x, 2)
    calibration = calibrate(graph, batches)
    pairs = [(inputs, None) for inputs in batches]
    answer = measured(MetricInput(graph, (Scheme.parse("w3"),), calibration, pairs, task, 0))
    changed = quantize(graph, plan_of(layers, "w3"), calibration)
    with torch.no_grad():
        wanted = task.head.divergence(task.outputs(graph(x)), task.outputs(changed(x))).mean()
    assert_agrees(answer.loss, float(wanted))
