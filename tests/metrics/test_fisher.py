"""The metric `fisher` against the exact Fisher information, from dense gradients of each sample's output."""

import dataclasses
import functools
import importlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core.batches import Inputs
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer
from mixbit.metrics import MetricInput
from mixbit.metrics.fisher import fisher
from mixbit.quantization.calibrate import Calibration, calibrate, mean_output
from mixbit.quantization.scales import weight_quantizer
from mixbit.roundings.quantize import quantize
from tests.networks import (
    OPERATORS,
    Attention,
    BentPositions,
    Net,
    Residual,
    batches_of,
    captured_operator,
    matrix,
    plan_of,
)

SCHEMES = tuple(Scheme.parse(text) for text in ("w2", "w3a3", "w4a3", "w8a8", "w3@50%", "float"))


class Encoder(nn.Module):
    """torch's own attention, whose last projection reads rows of all samples in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def convolutional() -> nn.Module:
    return Net(
        lambda net, x: net.c(net.b(net.a(x).relu() + x).tanh().mean((2, 3))),
        a=nn.Conv2d(2, 2, 3, padding=1),
        b=nn.Conv2d(2, 4, 3, stride=2),
        c=nn.Linear(4, 3),
    )


def grouped() -> nn.Module:
    return Net(
        lambda net, x: net.d(net.c(net.b(net.a(x).relu()).tanh()).relu().mean((2, 3))),
        a=nn.Conv2d(2, 4, 3, groups=2, padding=1),
        b=nn.Conv2d(4, 4, 3, groups=4, bias=False),
        c=nn.ConvTranspose2d(4, 6, 2, groups=2),
        d=nn.Linear(6, 3),
    )


NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), (5,)),
    "convolutions": (convolutional, (2, 6, 6)),
    "groups": (grouped, (2, 6, 6)),
    "shared": (lambda: Net(lambda net, x: net.a(net.a(x).tanh())[:, :3], a=nn.Linear(4, 4)), (4,)),
    "matmul": (
        lambda: Net(lambda net, x: ((x @ net.w).relu() @ net.v.T).mean(1), w=matrix(4, 5), v=matrix(3, 5)),
        (2, 4),
    ),
    "separate q, k, v": (
        lambda: Net(
            lambda net, x: F.scaled_dot_product_attention(net.q(x), net.k(x), net.v(x)).mean(1),
            q=nn.Linear(3, 3),
            k=nn.Linear(3, 3),
            v=nn.Linear(3, 3),
        ),
        (4, 3),
    ),
    "torch's attention": (Encoder, (3, 4)),
    "two heads": (lambda: Net(lambda net, x: (net.a(x), net.b(x)), a=nn.Linear(4, 3), b=nn.Linear(4, 2)), (4,)),
}


class Case(NamedTuple):
    """A network in float64, its graph, and what a metric is given of it."""

    model: nn.Module
    graph: Graph
    layers: tuple[Layer, ...]
    calibration: Calibration
    batches: list[Inputs]

    def inputs(self, seed=0, task=None, schemes=SCHEMES):
        task = task or Task.classification().weighted({"1": 0.0})
        return MetricInput(self.graph, schemes, self.calibration, unlabelled(self.batches), task, seed)


@functools.cache
def case(name, count=7):
    torch.manual_seed(2)
    make, shape = NETWORKS[name]
    return case_of(make(), torch.randn(count, *shape))


def unlabelled(batches):
    return [(inputs, None) for inputs in batches]


def case_of(model, x):
    model = model.eval().double()
    x = x.double() if x.is_floating_point() else x
    graph = capture(model, x[:3])
    layers = graph.layers
    batches = batches_of(x, max(4, len(x) // 3))
    return Case(model, graph, layers, calibrate(graph, batches), batches)


class Operations(torch.fx.Interpreter):
    """The graph with every operator's input and output kept, gradients on."""

    def __init__(self, case, inputs):
        super().__init__(case.graph.module, garbage_collect_values=False)
        self.names = {name for layer in case.layers for name in layer.inputs}
        self.returned = self.run(*case.graph.leaves(inputs), enable_io_processing=False)

    def run_node(self, n):
        value = super().run_node(n)
        if n.name in self.names and not value.requires_grad:
            value.requires_grad_()
        return value

    def value(self, name):
        return next(value for node, value in self.env.items() if node.name == name)


def gradients(case, inputs, vector):
    """Of <vector, outputs> for one sample: by weight (dense), by the output of each operator, by each layer's input."""
    run = Operations(case, inputs)
    loss = (vector * Task.classification().outputs(run.returned)).sum()
    weights = {layer.name: case.graph.module.get_parameter(layer.name) for layer in case.layers}
    outputs = {one.node: run.value(one.node) for layer in case.layers for one in layer.operations}
    reads = {name: run.value(name) for layer in case.layers for name in layer.inputs}
    found = []
    for group in (weights, outputs, reads):
        slopes = torch.autograd.grad(loss, group.values(), retain_graph=True, allow_unused=True)
        found.append({name: None if one is None else one.detach() for name, one in zip(group, slopes, strict=True)})
    return *found, {name: value.detach() for name, value in reads.items()}


def weight_error(case, layer, fmt):
    weight = case.graph.module.get_parameter(layer.name).detach()
    return weight_quantizer(case.graph, layer, fmt, case.calibration)(weight) - weight


def mean_errors_of(case):
    """(layer, format) -> `means_of` its rounding error, each worked out once."""
    return functools.cache(lambda layer, fmt: means_of(case, layer, weight_error(case, layer, fmt)))


def means_of(case, layer, error):
    """Operator -> mean over all data of its output for the error, by channel; None where no bias takes it off."""
    means = {}
    for operation in layer.operations:
        node = case.graph.node(operation.node)
        if not operation.takes_bias:
            means[operation.node] = None
            continue
        outputs = []
        for inputs in case.batches:
            x = Operations(case, inputs).value(node.args[operation.data].name).detach()
            output = case.graph.run(operation, x, error)
            outputs.append(output.movedim(-1 if operation.channels_last else 1, -1).flatten(0, -2))
        means[operation.node] = torch.cat(outputs).mean(0)
    return means


def change(case, layer, scheme, means, found):
    """(g . d of the weight, [g . d of each input]) of one sample for one layer's scheme."""
    by_weight, by_output, by_read, reads = found
    weight = torch.zeros(())
    if scheme.weight is not None and by_weight[layer.name] is not None:
        weight = (by_weight[layer.name] * weight_error(case, layer, scheme.weight)).sum()
        for operation in layer.operations:
            mean, slope = means[operation.node], by_output[operation.node]
            if mean is not None and slope is not None:
                weight = weight - (slope.movedim(-1 if operation.channels_last else 1, -1) * mean).sum()
    inputs = []
    for name in layer.inputs if scheme.input is not None else ():
        if by_read[name] is not None:
            quantizer = case.calibration.quantizer(name, scheme.input, torch.device("cpu"))
            inputs.append(((quantizer(reads[name]) - reads[name]) * by_read[name]).sum())
    return weight, inputs


def exact_entries(one, means_for, vectors_of):
    """[N, L, C]: mean over a sample's vectors of 1/2 (g . d)^2, each input shared among those that read it."""
    readers = [name for layer in one.layers for name in layer.inputs]
    rows = []
    for inputs in one.batches:
        outputs = Task.classification().outputs(one.graph(*inputs.args)).detach()
        for index, vectors in enumerate(vectors_of(outputs)):
            sample = inputs.map(lambda leaf, index=index: leaf[index : index + 1])
            table = torch.zeros(len(one.layers), len(SCHEMES), dtype=torch.float64)
            for weight_of_vector, vector in vectors:
                found = gradients(one, sample, vector)
                for row, layer in enumerate(one.layers):
                    for column, scheme in enumerate(SCHEMES):
                        means = means_for(layer, scheme.weight) if scheme.weight else {}
                        weight, parts = change(one, layer, scheme, means, found)
                        entry = weight.square() / 2
                        for name, part in zip(layer.inputs, parts, strict=len(parts) > 0):
                            entry = entry + part.square() / 2 / readers.count(name)
                        table[row, column] += weight_of_vector * entry.item()
            rows.append(table)
    return torch.stack(rows).numpy()


def drawn_vectors(seed):
    """The vectors that the metric draws with that seed, one a sample: the gradients of the task's own draw."""
    generator = torch.Generator().manual_seed(seed)

    def vectors_of(outputs):
        rows = outputs.clone().requires_grad_()
        Task.classification().head.draw(rows, generator).backward()
        return [[(1.0, row)] for row in rows.grad]

    return vectors_of


def label_vectors(outputs):
    """Every label's gradient of -log p(label), with its probability: what draws stand for."""
    return [
        [(float(p[label]), p - F.one_hot(torch.tensor(label), len(p))) for label in range(len(p))]
        for p in outputs.softmax(1)
    ]


def assert_agrees(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12 * wanted.max())


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_half_the_mean_square_of_dense_gradients_times_errors(name):
    one = case(name)
    answer = fisher(one.inputs(seed=3))
    entries = exact_entries(one, mean_errors_of(one), drawn_vectors(3))
    assert answer.num_samples == 7
    assert_agrees(answer.loss, entries.mean(0))
    assert_agrees(answer.standard_error, entries.std(0, ddof=1) / np.sqrt(7))
    assert (answer.loss[:, -1] == 0).all()
    if name == "two heads":  # the second does not reach the logits; its input does, through the first
        assert answer.loss[1, 0] == 0
        assert (answer.loss[0, :-1] > 0).all()
    else:
        assert (answer.loss[:, :-1] > 0).all()


class OwnAxis(Attention):
    """Positions with a dimension of length 1 for samples, as transformers have them."""

    def forward(self, ids):
        return self.attend(self.positions(self.numbers.unsqueeze(0)) + self.tokens(ids))


@pytest.mark.parametrize("network", [Attention, OwnAxis])
def test_every_sample_has_its_gradient_of_what_arithmetic_adds_to_all(network):
    torch.manual_seed(0)
    one = case_of(network(), torch.randint(0, 6, (7, 5)))
    answer, entries = fisher(one.inputs(seed=3)), exact_entries(one, mean_errors_of(one), drawn_vectors(3))
    assert_agrees(answer.loss, entries.mean(0))
    assert_agrees(answer.standard_error, entries.std(0, ddof=1) / np.sqrt(7))


def test_tensors_that_all_samples_share_count_by_the_whole_batch():
    """These positions have one gradient a batch; the square of it estimates the sum over samples."""
    torch.manual_seed(0)
    one = case_of(BentPositions(), torch.randint(0, 6, (7, 5)))
    answer = fisher(one.inputs(seed=3))
    names = [layer.name for layer in one.layers]
    entries = exact_entries(one, mean_errors_of(one), drawn_vectors(3))
    per_sample = [name for name in names if name != "bent.weight"]
    rows = [names.index(name) for name in per_sample]
    assert_agrees(answer.loss[rows], entries.mean(0)[rows])
    generator, total = torch.Generator().manual_seed(3), torch.zeros(len(SCHEMES), dtype=torch.float64)
    layer = one.layers[names.index("bent.weight")]
    weight = one.graph.module.get_parameter(layer.name)
    for inputs in one.batches:
        (slope,) = torch.autograd.grad(Task.classification().head.draw(one.graph(*inputs.args), generator), [weight])
        for column, scheme in enumerate(SCHEMES[:-1]):
            total[column] += (slope * weight_error(one, layer, scheme.weight)).sum().square().item() / 2
    assert_agrees(answer.loss[names.index("bent.weight")], total.numpy() / 7)


@pytest.mark.slow
def test_the_estimate_for_shared_tensors_is_unbiased_and_its_error_honest():
    torch.manual_seed(0)
    one = case_of(BentPositions(), torch.randint(0, 6, (7, 5)))
    row = [layer.name for layer in one.layers].index("bent.weight")
    exact = exact_entries(one, mean_errors_of(one), label_vectors).mean(0)[row, 0]
    answers = [fisher(one.inputs(seed, schemes=SCHEMES[:1])) for seed in range(150)]
    losses, errors = (np.array([getattr(one, name)[row, 0] for one in answers]) for name in ("loss", "standard_error"))
    spread = losses.std(ddof=1)
    assert abs(losses.mean() - exact) < 3 * spread / np.sqrt(len(losses))
    assert 0.9 * spread < np.sqrt(np.mean(errors**2)) < 2 * spread


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "convolutions"])
def test_sampled_entries_agree_with_the_expectation_over_labels(name):
    """In 90 of 100 seeds, nearly every entry's 95 % interval holds the expectation over all labels."""
    one = case(name, 192)
    exact = exact_entries(one, mean_errors_of(one), label_vectors)
    answers = [fisher(one.inputs(seed)) for seed in range(100)]
    losses, errors = (
        np.stack([getattr(one, part) for one in answers])[..., :-1] for part in ("loss", "standard_error")
    )
    wanted = exact.mean(0)[:, :-1]
    spread = losses.std(0, ddof=1)
    assert (np.abs(losses.mean(0) - wanted) < 4 * spread / 10).all()  # no bias
    holds = (np.abs(losses - wanted) <= 1.96 * errors).mean(0)
    assert np.mean(holds >= 0.9) > 0.9
    between = exact.std(0, ddof=1)[:, :-1] / np.sqrt(len(exact))
    assert (np.sqrt((errors**2).mean(0)) <= 1.5 * np.sqrt(spread**2 + between**2)).all()  # nor an idle error


@pytest.mark.parametrize("kind", OPERATORS)
def test_every_operator_has_an_entry(kind, monkeypatch):
    """A regression whose outputs are the operator's own: entries by finite differences of the graph itself."""
    _, _, graph = captured_operator(kind)
    torch.manual_seed(1)
    layers = graph.layers
    x = torch.randn(4, *graph.example.args[0].shape[1:], dtype=torch.float64) + 0.5
    batches = batches_of(x, 3)
    calibration = calibrate(graph, batches)
    scheme, task = Scheme.parse("w2"), Task.regression()
    inputs = MetricInput(graph, (scheme, Scheme.parse("w3")), calibration, unlabelled(batches), task, 7)
    answer = fisher(inputs)
    for name in ("MOST_GRADIENTS", "IN_CACHE", "MOST_CHANNELS"):
        monkeypatch.setattr(importlib.import_module("mixbit.metrics.fisher"), name, 1)
    monkeypatch.setattr(importlib.import_module("mixbit.graph.windows"), "MOST_ELEMENTS", 1)
    monkeypatch.setattr(importlib.import_module("mixbit.metrics._input"), "MOST_KEPT", 1)
    anew = fisher(dataclasses.replace(inputs, kept={}))
    np.testing.assert_allclose(anew.loss, answer.loss, rtol=1e-12)  # however few rows run together, and errors kept
    (layer,) = layers
    one = Case(graph.module, graph, layers, calibration, batches)
    error = weight_error(one, layer, scheme.weight)
    mean = means_of(one, layer, error)[layer.operations[0].node]
    weight = graph.module.get_parameter(layer.name).detach()
    generator, entries = torch.Generator().manual_seed(7), []
    for inputs in batches:
        outputs = graph(*inputs.args).detach()
        changed = torch.func.functional_call(graph.module, {layer.name: weight + error}, inputs.args) - outputs
        if mean is not None:
            conv, rows_summed = layer.operations[0].kind.name.startswith("conv"), kind == "linear, rows first"
            shape = [1] * outputs.ndim
            shape[1 if conv else -1] = -1
            changed = changed - mean.view(shape) * (3 if rows_summed else 1)
        signs = torch.randint(0, 2, outputs.flatten(1).shape, generator=generator) * 2 - 1
        entries.append((signs * changed.flatten(1)).sum(1).square() / 2)
    np.testing.assert_allclose(answer.loss[0, 0], torch.cat(entries).mean().item(), rtol=1e-9, atol=1e-15)


def test_a_layer_without_a_bias_counts_as_one_with_zeros():
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    plain = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    zeros = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for one, other in ((plain[0], zeros[0]), (plain[2], zeros[2])):
        other.weight.data, other.bias.data = one.weight.data, torch.zeros(len(one.weight))
    np.testing.assert_allclose(fisher(case_of(plain, x).inputs()).loss, fisher(case_of(zeros, x).inputs()).loss)


def tokens():
    return nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 7))


def maps():
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))


PREDICTED = {
    "classification": (Residual, lambda: torch.randn(400, 2, 6, 6, dtype=torch.float64)),
    "segmentation": (maps, lambda: torch.randn(400, 2, 6, 6, dtype=torch.float64)),
    "language": (tokens, lambda: torch.randint(0, 7, (400, 6))),
    "regression": (Residual, lambda: torch.randn(400, 2, 6, 6, dtype=torch.float64)),
}


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_agree_with_the_divergence_of_small_changes(name):
    """What the entries are for: at many bits, the expected divergence of the network with one layer rounded."""
    torch.manual_seed(0)
    make, data = PREDICTED[name]
    model, x = make().eval().double(), data()
    graph = capture(model, x[:2])
    layers, task = graph.layers, Task.named(name)
    calibration = calibrate(graph, batches_of(x, 100))
    scheme = Scheme.parse("w6")
    inputs = MetricInput(graph, (scheme,), calibration, unlabelled(batches_of(x, 100)), task, 0)
    answer = fisher(inputs)
    for row, layer in enumerate(layers):
        schemes = dict.fromkeys((one.name for one in layers), "float") | {layer.name: "w6"}
        changed = quantize(graph, plan_of(layers, schemes), calibration)
        outputs = [task.outputs(one(x)) for one in (graph, changed)]
        measured = float(task.head.divergence(*outputs).mean().detach())
        assert abs(answer.loss[row, 0] - measured) < 4 * answer.standard_error[row, 0] + 0.05 * measured


def test_with_the_users_own_loss_gradients_are_those_of_its_labels():
    """Half the mean square of <gradient of the sample's loss, error>, exactly: nothing is drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).eval().double()
    x, labels = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    one = case_of(model, x)
    task = Task.classification().with_loss(lambda output, labels: (output - labels).abs().pow(3).mean())
    batches = [
        (inputs, part) for inputs, part in zip(one.batches, labels.split(len(one.batches[0].args[0])), strict=True)
    ]
    inputs = MetricInput(one.graph, (Scheme.parse("w3"),), one.calibration, batches, task, 0)
    answer = fisher(inputs)
    for row, layer in enumerate(one.layers):
        (error,) = inputs.weight_errors(layer)
        weight = one.model.get_parameter(layer.name)
        operation = layer.operations[0]
        shift = mean_output(one.graph, operation, one.calibration, error)
        squares = []
        for sample, label in zip(x, labels, strict=True):
            loss = (one.model(sample[None]) - label).abs().pow(3).mean()
            slope, by_bias = torch.autograd.grad(
                loss, [weight, one.model.get_parameter(layer.name.replace("weight", "bias"))]
            )
            squares.append(((slope * error).sum() - (by_bias * shift).sum()).square() / 2)
        np.testing.assert_allclose(answer.loss[row, 0], torch.stack(squares).mean().item(), rtol=1e-6)
