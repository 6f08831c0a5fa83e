"""The metric `hawq` against the full Hessian."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.metrics.hawq import hawq
from tests.metrics.test_fit import Case, case_of
from tests.networks import Attention, Net, assert_state_is, state_of

SCHEMES = tuple(Scheme.parse(text) for text in ("w2", "w4", "w4a8", "float"))


def convolutions() -> nn.Module:
    """Small enough for its Hessian; `b` is used twice."""
    return Net(
        lambda net, x: net.c(net.b(net.b(net.a(x).tanh()).tanh()).mean((2, 3))),
        a=nn.Conv2d(1, 2, 2),
        b=nn.Conv2d(2, 2, 3, padding=1, groups=2),
        c=nn.Linear(2, 3),
    )


def attention() -> nn.Module:
    """Two heads, which torch runs by a kernel without second derivatives unless told otherwise."""

    def run(net, x):
        q, heads = (y.unflatten(2, (2, 2)).transpose(1, 2) for y in (net.q(x), x))
        return net.head(F.scaled_dot_product_attention(q, heads, heads).mean((1, 2)))

    return Net(run, q=nn.Linear(4, 4), head=nn.Linear(2, 3))


NETWORKS = {
    "convolutions": (convolutions, lambda: torch.randn(12, 1, 4, 4), Task.classification()),
    "embeddings": (Attention, lambda: torch.randint(0, 6, (12, 5)), Task.classification()),
    "attention": (attention, lambda: torch.randn(12, 3, 4), Task.classification()),
    "regression": (convolutions, lambda: torch.randn(12, 1, 4, 4), Task.regression()),
}


@functools.cache
def case(name, size=12):
    torch.manual_seed(3)
    make, data, task = NETWORKS[name]
    x = data()
    graph = capture(make().eval().double(), (x.double() if x.is_floating_point() else x)[:2])
    return case_of(graph, x, task, size)


def asked(one, *, seed=0, schemes=SCHEMES, task=None, batches=None):
    return dataclasses.replace(one.inputs(batches, schemes), task=task or one.task, seed=seed)


@functools.cache
def hessian(name):
    """[W, W] of the mean loss over all data, by all layers' weights one behind the other, row by row."""
    one = case(name)
    ((inputs, labels),) = one.batches
    weights = {layer.name: one.graph.module.get_parameter(layer.name).detach() for layer in one.layers}
    sizes = [weight.numel() for weight in weights.values()]

    def loss(flat):
        parts = flat.split(sizes)
        named = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        return one.task.loss(torch.func.functional_call(one.graph.module, named, inputs.args), labels)

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, torch.cat([weight.flatten() for weight in weights.values()]))


def slices(one):
    ends = np.cumsum([layer.numel for layer in one.layers])
    return [slice(end - layer.numel, end) for end, layer in zip(ends, one.layers, strict=True)]


def squared_errors(one):
    """[L, C] |Q(W) - W|^2."""
    inputs = one.inputs(schemes=SCHEMES)
    by_layer = [[float(error.square().sum()) for error in inputs.weight_errors(layer)] for layer in one.layers]
    formats = inputs.weight_formats
    return np.array(
        [[0.0 if one.weight is None else row[formats.index(one.weight)] for one in SCHEMES] for row in by_layer]
    )


def drawn_traces(name, count, seed):
    """[count, L] of <v_W, (H v)_W> / n by the full Hessian, for the vectors that the metric draws with that seed."""
    one, full = case(name), hessian(name)
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        signs = [torch.randint(0, 2, layer.shape, generator=generator) * 2.0 - 1 for layer in one.layers]
        v = torch.cat([sign.flatten() for sign in signs]).double()
        rows.append([float((v * (full @ v))[some].mean()) for some in slices(one)])
    return np.array(rows)


def assert_agrees(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [12, 5])  # 5, 5 and 2 samples
@pytest.mark.parametrize("name", NETWORKS)
def test_entries_are_those_of_the_full_hessian_for_the_same_vectors(name, size):
    one = case(name, size)
    batched = Case(*case(name)[:3], one.batches, one.task)  # the labels of one draw for all sizes
    assert torch.equal(torch.cat([labels for _, labels in one.batches]), case(name).batches[0][1])
    answer = hawq(asked(batched, seed=5), vectors=8, tolerance=1e-12)
    traces = drawn_traces(name, 8, 5)
    assert answer.num_samples == 12
    assert_agrees(answer.loss, traces.mean(0).clip(min=0)[:, None] * squared_errors(one) / 2)
    assert_agrees(answer.standard_error, traces.std(0, ddof=1)[:, None] / np.sqrt(8) * squared_errors(one) / 2)
    assert (answer.loss[:, 1] == answer.loss[:, 2]).all()  # inputs cost nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutions", "embeddings"])
def test_intervals_hold_the_exact_trace(name):
    """In 90 of 100 seeds or more, each layer's 95 % interval holds the trace of the full Hessian."""
    one, full, count = case(name), hessian(name), 12
    exact = np.array([float(full.diagonal()[some].mean()) for some in slices(one)]) * squared_errors(one)[:, 0] / 2
    answers = [hawq(asked(one, seed=seed, schemes=SCHEMES[:1]), vectors=count, tolerance=1e-12) for seed in range(100)]
    losses, errors = (np.stack([getattr(one, part)[:, 0] for one in answers]) for part in ("loss", "standard_error"))
    inside = np.abs(losses - exact.clip(min=0)) <= stats.t.ppf(0.975, count - 1) * errors
    assert (inside.mean(0) >= 0.9).all()


def test_the_estimate_is_unbiased_and_its_error_honest():
    """For one layer's weight alone, which no estimate puts below zero."""
    torch.manual_seed(0)
    graph = capture(nn.Linear(4, 3).double(), torch.randn(2, 4).double())
    one = case_of(graph, torch.randn(12, 4), Task.classification(), 12)
    ((inputs, _),) = one.batches
    (x,), p = inputs.args, graph(*inputs.args).detach().softmax(1)
    trace = (
        float((x.square().sum(1) * (p * (1 - p)).sum(1)).mean()) / 12
    )  # of (diag(p) - p p') times x x', in 12 weights
    answers = [hawq(asked(one, seed=seed, schemes=SCHEMES[:1]), vectors=12, tolerance=1e-12) for seed in range(100)]
    losses, errors = (np.array([getattr(one, part)[0, 0] for one in answers]) for part in ("loss", "standard_error"))
    spread = losses.std(ddof=1)
    assert abs(losses.mean() - trace * squared_errors(one)[0, 0] / 2) < 3 * spread / 10
    assert 0.8 * spread < np.sqrt((errors**2).mean()) < 1.25 * spread


def count_vectors(one, **options):
    """How many vectors it takes, from how often it asks for the loss."""
    calls = []

    def loss(outputs, labels):
        calls.append(1)
        return F.cross_entropy(outputs, labels)

    hawq(asked(one, seed=5, task=one.task.with_loss(loss)), **options)
    return len(calls) / len(one.batches)


@pytest.mark.parametrize("tolerance", [0.5, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.3, 0.2))])
def test_it_ends_by_the_standard_error_of_the_sum(tolerance):
    totals = drawn_traces("convolutions", 200, 5).sum(1)
    relative = [totals[:k].std(ddof=1) / np.sqrt(k) / abs(totals[:k].mean()) for k in range(5, 201)]
    wanted = next(k for k, size in enumerate(relative, 5) if size < tolerance)
    assert count_vectors(case("convolutions"), vectors=200, tolerance=tolerance) == wanted
    assert count_vectors(case("convolutions"), vectors=wanted - 1, tolerance=tolerance) == wanted - 1


def test_it_takes_five_vectors_however_large_the_tolerance():
    assert count_vectors(case("convolutions"), tolerance=1e9) == 5


@pytest.mark.parametrize("tolerance", [None, 0.01, 0.001])
def test_it_ends_by_the_rule_of_nncf(tolerance):
    totals = drawn_traces("convolutions", 200, 5).sum(1)
    means = np.cumsum(totals) / np.arange(1, 201)
    changes = np.abs(np.diff(means)) / (np.abs(means[:-1]) + 1e-6)
    wanted = next(k for k, size in enumerate(changes, 2) if size < (tolerance or 1e-4))
    assert count_vectors(case("convolutions"), vectors=200, rule="nncf", tolerance=tolerance) == wanted


def test_a_negative_trace_costs_nothing():
    one = case("convolutions")
    downhill = one.task.with_loss(lambda outputs, labels: -outputs.square().mean() + 0 * labels.sum())
    answer = hawq(asked(one, task=downhill))
    last = [layer.name for layer in one.layers].index("c.weight")
    assert (answer.loss[last] == 0).all()
    assert (answer.standard_error[last, :-1] > 0).all()


def test_a_loss_that_is_linear_in_the_weights_costs_nothing():
    torch.manual_seed(0)
    model = Net(lambda net, x: net.a(x), a=nn.Linear(3, 2)).eval()
    one = case_of(capture(model.double(), torch.randn(2, 3).double()), torch.randn(4, 3), Task.regression())
    answer = hawq(asked(one, task=one.task.with_loss(lambda outputs, labels: outputs.mean() + 0 * labels.sum())))
    assert not answer.loss.any()
    assert not answer.standard_error.any()


def test_weights_that_the_loss_does_not_reach_cost_nothing():
    torch.manual_seed(0)
    model = Net(lambda net, x: (net.a(x), net.b(x)), a=nn.Linear(3, 2), b=nn.Linear(3, 2)).eval().double()
    one = case_of(
        capture(model, torch.randn(2, 3).double()), torch.randn(4, 3), Task.classification().weighted({"1": 0.0})
    )
    answer = hawq(asked(one))
    assert (answer.loss[0, :-1] > 0).all()
    assert not answer.loss[1].any()


def test_the_graph_stays_as_it_was():
    torch.manual_seed(0)
    graph = capture(Attention(), torch.randint(0, 6, (2, 5)))
    one = case_of(graph, torch.randint(0, 6, (8, 5)), Task.classification())
    graph.module.get_parameter("q.weight").requires_grad_(requires_grad=False)
    state = state_of(graph.module)
    hawq(asked(one))
    assert_state_is(graph.module, state)


def test_what_it_cannot_use_is_refused():
    one = case("convolutions")
    for options in ({"vectors": 1}, {"tolerance": 0.0}, {"tolerance": float("nan")}):
        with pytest.raises(InvalidInput, match=rf"hawq: {next(iter(options))}=.*: give "):
            hawq(asked(one), **options)
    with pytest.raises(InvalidInput, match="rule 'luck' is unknown; known: standard_error, nncf"):
        hawq(asked(one), rule="luck")


def test_an_operator_without_second_derivatives_is_named():
    torch.manual_seed(0)
    model = Net(lambda net, x: torch.cdist(net.a(x), net.b(x), p=3.0), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    graph = capture(model.eval().double(), torch.randn(2, 3, 4).double())
    one = case_of(graph, torch.randn(4, 3, 4), Task.regression())
    with pytest.raises(InvalidInput, match=r"no second derivatives: .*_cdist_backward"):
        hawq(asked(one))


def test_one_parameter_under_two_names_is_one_used_twice():
    torch.manual_seed(0)
    once = Net(lambda net, x: net.c(net.a(net.a(x).tanh()).tanh()), a=nn.Linear(3, 3, bias=False), c=nn.Linear(3, 2))
    twice = Net(lambda net, x: net.c(net.b(net.a(x).tanh()).tanh()), a=once.a, b=nn.Linear(3, 3, bias=False), c=once.c)
    twice.b.weight = once.a.weight
    tables, x = [], torch.randn(6, 3)
    for module in (once, twice):
        torch.manual_seed(1)
        one = case_of(capture(module.eval().double(), x[:2].double()), x, Task.classification(), 6)
        tables.append(hawq(asked(one), vectors=5))
    assert_agrees(tables[1].loss, tables[0].loss)
    assert_agrees(tables[1].trace, tables[0].trace)
    assert tables[0].loss.max() > 0
