"""Weights of every kind in files: outputs as simulated at several batch sizes, and which layers run in integers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.quantization import calibrate
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from tests.networks import Net, matrix, overflows, plan_of


def numbers(x: Tensor) -> Tensor:
    return x[:, :3, 0].abs().mul(3).long().clamp(max=6)


#: Name -> what the branch does with [N, 6, 8], and its parts.
BRANCHES = {
    "weight norm": (lambda net, x: net.a(x), lambda: {"a": parametrizations.weight_norm(nn.Conv1d(6, 5, 3))}),
    "merged": (
        lambda net, x: F.conv1d(x, net.a.weight + F.pad(net.b.weight, [1, 1]), net.a.bias + net.b.bias),
        lambda: {"a": nn.Conv1d(6, 5, 3), "b": nn.Conv1d(6, 5, 1)},
    ),
    "on the left": (lambda net, x: net.w @ x, lambda: {"w": matrix(5, 6)}),
    "on the left, twice": (lambda net, x: net.w @ (net.w @ x).relu(), lambda: {"w": matrix(6, 6)}),
    "experts": (
        lambda net, x: (torch.bmm(x.transpose(0, 1), net.w).relu() @ net.v).transpose(0, 1),
        lambda: {"w": matrix(6, 8, 5), "v": matrix(6, 5, 4)},
    ),
    "experts of one input": (
        lambda net, x: torch.baddbmm(net.b, x.mean(1).expand(3, -1, -1), net.w).transpose(0, 1),
        lambda: {"w": matrix(3, 8, 5), "b": matrix(3, 1, 5)},
    ),
    "experts of tokens": (
        lambda net, x: (x.unsqueeze(1) @ net.w).relu() @ net.v + net.b,
        lambda: {"w": matrix(3, 8, 5), "v": matrix(3, 5, 4), "b": matrix(3, 1, 4)},
    ),
    "heads": (
        lambda net, x: torch.einsum("bthd,hde->bthe", x.unflatten(2, (2, 4)), net.w),
        lambda: {"w": matrix(2, 4, 5)},
    ),
    "einsum": (lambda net, x: torch.einsum("...td,dhe->...hte", x, net.w), lambda: {"w": matrix(8, 2, 5)}),
    "LSTM": (
        lambda net, x: net.a(x)[0],
        lambda: {"a": nn.LSTM(8, 6, batch_first=True, bidirectional=True)},
    ),
    "GRU": (lambda net, x: net.a(x[:, :3])[1].transpose(0, 1), lambda: {"a": nn.GRU(8, 6, 2, batch_first=True)}),
    "behind a split": (
        lambda net, x: net.b(net.a(x).chunk(2, -1)[1]) + net.c(net.a(x).split([4, 8], -1)[0]),
        lambda: {"a": nn.Linear(8, 12), "b": nn.Linear(6, 4), "c": nn.Linear(4, 4)},
    ),
    "bilinear": (lambda net, x: net.a(x, x.relu()), lambda: {"a": nn.Bilinear(8, 8, 3)}),
    "bag": (lambda net, x: net.a(numbers(x)), lambda: {"a": nn.EmbeddingBag(7, 4)}),
    "weighted bag": (
        lambda net, x: net.a(numbers(x), per_sample_weights=x[:, :3, 1]),
        lambda: {"a": nn.EmbeddingBag(7, 4, mode="sum")},
    ),
    "look-up": (lambda net, x: net.w[numbers(x)], lambda: {"w": matrix(7, 4)}),
}
#: Branches whose layers look rows up, which computes nothing, or are of a recurrence, which runtimes compute in float.
IN_FLOAT = ("bag", "weighted bag", "look-up", "LSTM", "GRU")


def data(count: int = 24) -> Tensor:
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    nets = [Net(run, **parts()) for run, parts in BRANCHES.values()]
    return Net(lambda net, x: [branch(x) for branch in net.branches], branches=nn.ModuleList(nets)).eval()


@pytest.fixture(scope="module")
def graph(network):
    return capture(network, data(2))


@pytest.fixture(scope="module")
def calibration(graph):
    return calibrate(graph, [data()])


@pytest.fixture(
    scope="module",
    params=[
        ("openvino", "w8a8"),
        ("onnxruntime", "w8a8"),
        pytest.param(("onnxruntime", "w3"), marks=pytest.mark.slow),
    ],
)
def deployed(request, graph, calibration, tmp_path_factory):
    """Name -> simulated and deployed outputs at several batch sizes; layer -> what was executed; and the scheme."""
    target, scheme = request.param
    if scheme == "w8a8" and overflows(target):  # in onnxruntime too, which cannot add exactly what is read twice
        scheme = "w6a8"
    folder = tmp_path_factory.mktemp(target)
    simulated = quantize(graph, plan_of(graph.layers, scheme, target), calibration)
    export(simulated, folder)
    runner, pairs = find_target(target).load(folder, graph), {name: [] for name in BRANCHES}
    for count in (24, 1, 3):
        with torch.no_grad():
            wanted = simulated(data()[:count])
        for name, *pair in zip(BRANCHES, wanted, runner.run([data()[:count].numpy()]), strict=True):
            pairs[name].append(pair)
    return pairs, runner.executed(), scheme


@pytest.mark.parametrize("name", BRANCHES)
def test_a_file_does_what_the_simulation_does(name, deployed):
    pairs, executed, scheme = deployed
    spread = pairs[name][0][0].std()
    for wanted, found in pairs[name]:
        assert (torch.from_numpy(found) - wanted).square().mean().sqrt() <= (0.005 if "a8" in scheme else 1e-5) * spread
    layers = [text for layer, text in executed.items() if layer.startswith(f"branches.{[*BRANCHES].index(name)}.")]
    assert layers
    if name not in IN_FLOAT and "a8" in scheme:
        assert all("int8" in text for text in layers), layers


def test_every_weight_is_a_layer_and_computes_what_the_model_does(network, graph):
    names = {layer.name for layer in graph.layers}
    loose = {name for name, parameter in graph.module.named_parameters() if name not in names}
    assert all(name.split(".")[-1].startswith("b") for name in loose)  # biases
    for wanted, found in zip(network(data()), graph(data()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
