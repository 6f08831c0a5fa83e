"""The metrics of `fit` against dense gradients, one sample at a time."""

import functools
import importlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer
from mixbit.metrics import METRICS, MetricInput
from mixbit.metrics.fit import fit
from mixbit.quantization.calibrate import Calibration, calibrate
from tests.networks import OPERATORS, Attention, BentPositions, Net, batches_of, captured_operator

SCHEMES = tuple(Scheme.parse(text) for text in ("w2", "w3a3", "w4a3", "w8a8", "w3@50%", "float"))
NAMES = ("fit", "fit_w", "fit_a", "fit_error")
fit_w, fit_a = METRICS["fit_w"], METRICS["fit_a"]


def convolutions() -> nn.Module:
    return Net(
        lambda net, x: net.d(net.c(net.b(net.a(x).relu() + x)).tanh().mean((2, 3))),
        a=nn.Conv2d(2, 2, 3, padding=1),
        b=nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False),
        c=nn.ConvTranspose2d(4, 4, 2),
        d=nn.Linear(4, 3),
    )


def shared() -> nn.Module:
    """A convolution and a linear layer, each used twice in a row."""
    return Net(
        lambda net, x: net.b(net.b(net.a(net.a(x).tanh()).mean((2, 3))).relu())[:, :3],
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.Linear(4, 4),
    )


def torch_attention() -> nn.Module:
    return Net(
        lambda net, x: net.head((x + net.attention(x, x, x, need_weights=False)[0]).mean(1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(4, 3),
    )


def two_heads() -> nn.Module:
    """The loss reads the first output: one of the two uses of `a` does not reach it, nor does `c`."""
    return Net(
        lambda net, x: (net.b(net.a(x).tanh()), net.c(net.a(x.cos()))),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 3),
        c=nn.Linear(4, 2),
    )


def tokens() -> nn.Module:
    """A language model of one block, whose head is the embedding."""
    return Net(
        lambda net, ids: F.linear(net.a(net.e(ids)).tanh(), net.e.weight), e=nn.Embedding(6, 4), a=nn.Linear(4, 4)
    )


def numbers(*shape: int):
    return lambda count: torch.randn(count, *shape)


def ids(count: int) -> Tensor:
    return torch.randint(0, 6, (count, 5))


def doubled_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return 2 * F.cross_entropy(outputs, labels)


OWN = Task.classification().with_loss(doubled_loss)
#: Name -> network, inputs of so many samples, task.
NETWORKS = {
    "convolutions": (convolutions, numbers(2, 6, 6), Task.classification()),
    "shared": (shared, numbers(4, 5, 5), Task.classification()),
    "torch's attention": (torch_attention, numbers(3, 4), Task.classification()),
    "embeddings": (Attention, ids, Task.classification()),
    "bent embeddings": (BentPositions, ids, Task.classification()),
    "two heads": (two_heads, numbers(4), Task.classification().weighted({"1": 0.0})),
    "language": (tokens, ids, Task.language()),
    "regression": (convolutions, numbers(2, 6, 6), Task.regression()),
    "own loss": (convolutions, numbers(2, 6, 6), OWN),
}
#: Weights whose gradients do not come apart into samples.
WHOLE = {"bent.weight"}


class Case(NamedTuple):
    """A network in float64, its graph, and labelled data for it, the last batch smaller."""

    graph: Graph
    layers: tuple[Layer, ...]
    calibration: Calibration
    batches: list[tuple[Inputs, Tensor | None]]
    task: Task

    def zeros(self, layer, fmt):
        """Where the format makes weights zero: half of them, those of the smallest magnitude."""
        weight = self.graph.module.get_parameter(layer.name).detach()
        count = fmt.sparsity.zeros * weight.numel() // 100 if fmt.sparsity else 0
        zeros = torch.zeros(weight.numel(), dtype=torch.bool)
        zeros[sorted(range(weight.numel()), key=lambda place: float(weight.flatten()[place].abs()))[:count]] = True
        return zeros.reshape(weight.shape)

    def inputs(self, batches=None, schemes=SCHEMES):
        batches = self.batches if batches is None else batches
        return MetricInput(self.graph, schemes, self.calibration, batches, self.task, 0)


@functools.cache
def case(name, count=7, size=3):
    torch.manual_seed(2)
    make, data, task = NETWORKS[name]
    model, x = make().eval().double(), data(count)
    return case_of(capture(model, (x.double() if x.is_floating_point() else x)[:3]), x, task, size)


def case_of(graph, x, task, size=3):
    x = x.double() if x.is_floating_point() else x
    layers, batches = graph.layers, batches_of(x, size)
    outputs = task.outputs(graph(x)).detach()
    labels = torch.randint(0, outputs.shape[-1], outputs.shape[:-1]) if task.has_accuracy else torch.randn_like(outputs)
    return Case(graph, layers, calibrate(graph, batches), list(zip(batches, labels.split(size), strict=True)), task)


class Probed(torch.fx.Interpreter):
    """The graph with zeros added to the tensors that layers read; the loss's gradient by them is that by the tensor."""

    def __init__(self, one):
        super().__init__(one.graph.module, garbage_collect_values=False)
        self.names = {name for layer in one.layers for name in layer.inputs}
        self.probes, self.values = {}, {}

    def run_node(self, n):
        value = super().run_node(n)
        if n.name not in self.names:
            return value
        self.values[n.name] = value.detach()
        self.probes[n.name] = torch.zeros_like(value, requires_grad=True)
        return value + self.probes[n.name]


def dense_gradients(one, inputs, labels):
    """Of one sample's loss: by weight, by tensor that layers read, and the values of those."""
    run = Probed(one)
    loss = one.task.loss(run.run(*inputs.args, enable_io_processing=False), labels)
    weights = {layer.name: one.graph.module.get_parameter(layer.name) for layer in one.layers}
    wanted = [*weights.values(), *run.probes.values()]
    slopes = torch.autograd.grad(loss, wanted, materialize_grads=True)
    count = len(weights)
    return (
        dict(zip(weights, slopes[:count], strict=True)),
        dict(zip(run.probes, slopes[count:], strict=True)),
        run.values,
    )


def samples_of(batch):
    inputs, labels = batch
    return [(inputs.rows(slice(i, i + 1)), labels[i : i + 1]) for i in range(inputs.batch_size)]


def noise_power(values, fmt):
    return ((values.max() - values.min()) / (2**fmt.bits - 1)) ** 2 / 12


def reference(one, name):
    """[N, L, C] of the metric of that name, from its formula."""
    found = [[dense_gradients(one, *sample) for sample in samples_of(batch)] for batch in one.batches]
    reads = [name for layer in one.layers for name in layer.inputs]
    seen = {name: torch.cat([sample[2][name].flatten() for batch in found for sample in batch]) for name in reads}
    rows = []
    for batch in found:
        for index, (by_weight, by_read, values) in enumerate(batch):
            table = torch.zeros(len(one.layers), len(SCHEMES), dtype=torch.float64)
            for row, layer in enumerate(one.layers):
                weight, slope = one.graph.module.get_parameter(layer.name).detach(), by_weight[layer.name]
                if layer.name in WHOLE:
                    slope = sum(sample[0][layer.name] for sample in batch) if index == 0 else torch.zeros_like(slope)
                for column, scheme in enumerate(SCHEMES):
                    if scheme.weight is not None and name != "fit_a":
                        errors = dict(zip(one.inputs().weight_formats, one.inputs().weight_errors(layer), strict=True))
                        power = errors[scheme.weight] ** 2
                        if name != "fit_error":
                            noise = noise_power(weight, scheme.weight)
                            zero = one.zeros(layer, scheme.weight)
                            power = torch.where(zero, weight**2, noise)
                        table[row, column] += (slope**2 * power).sum() / 2
                    for read in layer.inputs if scheme.input is not None and name != "fit_w" else ():
                        quantizer = one.calibration.quantizer(read, scheme.input, torch.device("cpu"))
                        error = (quantizer(values[read]) - values[read]) ** 2
                        power = error if name == "fit_error" else noise_power(seen[read], scheme.input)
                        table[row, column] += (by_read[read] ** 2 * power).sum() / 2 / reads.count(read)
            rows.append(table)
    return torch.stack(rows).numpy()


def assert_agrees(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12 * wanted.max())


@pytest.mark.parametrize(
    ("network", "name"),  # each network by one of them in turn, the others in `make slow`
    [
        pytest.param(network, name, marks=[] if (row + column) % len(NAMES) == 0 else [pytest.mark.slow])
        for row, network in enumerate(NETWORKS)
        for column, name in enumerate(NAMES)
    ],
)
def test_entries_are_mean_squares_of_dense_gradients_times_powers(network, name):
    one = case(network)
    answer = METRICS[name](one.inputs())
    entries = reference(one, name)
    assert answer.num_samples == 7
    assert_agrees(answer.loss, entries.mean(0))
    assert_agrees(answer.standard_error, entries.std(0, ddof=1) / np.sqrt(7))
    if network == "two heads" and name != "fit_a":
        assert (answer.loss[:, 0] > 0).tolist() == [layer.name != "c.weight" for layer in one.layers]


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_operator_has_an_entry(kind, monkeypatch):
    """Of a regression, by autograd through the graph for one sample at a time, however few run together."""
    _, _, graph = captured_operator(kind)
    torch.manual_seed(1)
    one = case_of(graph, torch.randn(4, *graph.example.args[0].shape[1:]) + 0.5, Task.regression())
    (layer,) = one.layers
    weight = graph.module.get_parameter(layer.name)
    squares = []
    for inputs, labels in (sample for batch in one.batches for sample in samples_of(batch)):
        (slope,) = torch.autograd.grad(one.task.loss(graph(*inputs.args), labels), [weight])
        squares.append(float(slope.square().sum()))
    inputs = one.inputs(schemes=SCHEMES[:1])
    wanted = np.mean(squares) * float(noise_power(weight.detach(), SCHEMES[0].weight)) / 2
    np.testing.assert_allclose(fit_w(inputs).loss, wanted, rtol=1e-9)
    monkeypatch.setattr(importlib.import_module("mixbit.graph.walk"), "FEW_ELEMENTS", 1)
    np.testing.assert_allclose(fit_w(inputs).loss, wanted, rtol=1e-9)


def test_the_parts_add_up():
    inputs = case("convolutions").inputs()
    np.testing.assert_allclose(fit_w(inputs).loss + fit_a(inputs).loss, fit(inputs).loss)


def test_samples_count_one_by_one_and_not_as_the_published_code_counts_batches():
    """B |mean of B gradients|^2 is far more where labels are one-sided: the mean gradient is not zero."""
    one = case("convolutions", 24, 12)
    batches = [(inputs, torch.zeros_like(labels)) for inputs, labels in one.batches]
    answer = fit_w(one.inputs(batches, SCHEMES[:1]))
    in_other_batches = [
        (Inputs.of(inputs.args[0][i : i + 1]), labels[i : i + 1]) for inputs, labels in batches for i in range(12)
    ]
    np.testing.assert_allclose(answer.loss, fit_w(one.inputs(in_other_batches, SCHEMES[:1])).loss, rtol=1e-9)
    for row, layer in enumerate(one.layers):
        weight = one.graph.module.get_parameter(layer.name)
        published = 0.0
        for inputs, labels in batches:
            (slope,) = torch.autograd.grad(one.task.loss(one.graph(*inputs.args), labels), [weight])
            published += 12 * float(slope.square().sum()) / len(batches)
        published *= float(noise_power(weight.detach(), SCHEMES[0].weight)) / 2
        assert published > 2 * answer.loss[row, 0]


def worst_relative_errors(one, num_batches):
    """The largest of the traces of all weights and all tensors that layers read, after each of the first batches."""
    some = Case(*one[:3], one.batches[:num_batches], one.task)
    entries = np.concatenate([reference(some, "fit_w")[..., 0], reference(some, "fit_a")[..., 1]], 1)
    seen = [entries[: len(entries) * count // num_batches] for count in range(1, num_batches + 1)]
    return [float((rows.std(0, ddof=1) / np.sqrt(len(rows)) / rows.mean(0)).max()) for rows in seen]


@pytest.mark.slow
def test_the_tolerance_ends_it_once_every_trace_is_known():
    one = case("convolutions", 60, 6)
    worst = worst_relative_errors(one, 7)
    tolerance = 1.001 * min(worst)
    wanted = next(count for count, size in enumerate(worst, 1) if size < tolerance)
    assert wanted > 2
    dense = [scheme for scheme in SCHEMES if scheme.weight is None or scheme.weight.sparsity is None]
    answer = fit(one.inputs(schemes=dense), tolerance=tolerance)
    assert answer.num_samples == 6 * wanted
    assert_agrees(answer.loss, fit(one.inputs(one.batches[:wanted], dense)).loss)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_two_batches_and_all_where_the_tolerance_is_small(name):
    inputs = case("convolutions", 60, 6).inputs()
    assert METRICS[name](inputs, tolerance=100.0).num_samples == 12
    assert METRICS[name](inputs, tolerance=1e-9).num_samples == 60


@pytest.mark.parametrize("name", NAMES)
def test_tolerances_are_checked(name):
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match=f"fit: tolerance={tolerance}: give more than 0"):
            METRICS[name](case("convolutions").inputs(), tolerance=tolerance)


def test_float_alone_costs_nothing():
    answer = fit(case("convolutions").inputs(schemes=SCHEMES[-1:]), tolerance=0.1)
    assert not answer.loss.any()
    assert answer.num_samples == 7
