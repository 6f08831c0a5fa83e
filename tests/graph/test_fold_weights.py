"""Weights computed from parameters alone: layers of the names that users know, equal to what the model computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from mixbit.graph.capture import capture
from tests.networks import Net, matrix


class Standardised(nn.Module):
    def forward(self, weight):
        mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return (weight - mean) / deviation


def older(norm, layer):
    with pytest.warns(FutureWarning) if norm is nn.utils.weight_norm else torch.no_grad():
        return norm(layer)


def trained(network):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    return network.double().eval()


#: Name -> the network, a sample's shape, and the names of its parameters once captured.
COMPUTED = {
    "weight norm": (
        lambda: Net(lambda net, x: net.a(x), a=parametrizations.weight_norm(nn.Conv1d(3, 4, 3))),
        (3, 8),
        {"a.weight", "a.bias"},
    ),
    "spectral norm": (
        lambda: Net(lambda net, x: net.a(x), a=parametrizations.spectral_norm(nn.Linear(3, 4))),
        (3,),
        {"a.weight", "a.bias"},
    ),
    "orthogonal": (
        lambda: Net(lambda net, x: net.a(x), a=parametrizations.orthogonal(nn.Linear(4, 4))),
        (4,),
        {"a.weight", "a.bias"},
    ),
    "standardised, read twice": (
        lambda: Net(lambda net, x: net.a(net.a(x)), a=nn.Conv2d(4, 4, 3, padding=1)),
        (4, 5, 5),
        {"a.weight", "a.bias"},
    ),
    "branches": (
        lambda: Net(
            lambda net, x: F.conv2d(x, net.a.weight + F.pad(net.b.weight, [1, 1, 1, 1]), net.a.bias + net.b.bias),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 4, 1),
        ),
        (3, 5, 5),
        {"a.weight", "a.bias"},
    ),
    "times a scale that is read elsewhere": (
        lambda: Net(lambda net, x: F.linear(x * net.s, net.w * net.s), w=matrix(4, 3), s=matrix(3)),
        (3,),
        {"w", "s"},
    ),
    "joined": (
        lambda: Net(lambda net, x: x @ torch.cat([net.v, net.w]).T, v=matrix(2, 3), w=matrix(5, 3)),
        (3,),
        {"w"},
    ),
    "also read as it is": (
        lambda: Net(lambda net, x: F.linear(x, net.w) + F.linear(x, net.w * 2), w=matrix(4, 3)),
        (3,),
        {"w", "w_1"},
    ),
    "a copy": (
        lambda: Net(lambda net, x: F.linear(x, net.w) + F.linear(x, net.w.clone()), w=matrix(4, 3)),
        (3,),
        {"w"},
    ),
    "turned": (lambda: Net(lambda net, x: F.linear(x, net.w.t()), w=matrix(3, 4)), (3,), {"w"}),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_a_layer_under_the_name_that_users_know(kind):
    make, shape, names = COMPUTED[kind]
    model, x = make(), torch.randn(3, *shape, dtype=torch.float64)
    if kind.startswith("standardised"):
        parametrize.register_parametrization(model.a, "weight", Standardised())
    model = trained(model)
    graph = capture(model, x)
    assert set(dict(graph.module.named_parameters())) == names
    assert {layer.name for layer in graph.layers} == {name for name in names if name not in ("a.bias", "s")}
    torch.testing.assert_close(graph(2 * x), model(2 * x))


@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export:UserWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_older_norms(norm):
    model = trained(Net(lambda net, x: net.a(x), a=older(norm, nn.Conv1d(3, 4, 3))))
    x = torch.randn(3, 3, 8, dtype=torch.float64)
    expected = model(x)
    graph = capture(model, x)
    assert set(dict(graph.module.named_parameters())) == {"a.weight", "a.bias"}
    assert not dict(graph.module.named_buffers())
    torch.testing.assert_close(graph(x), expected)


def test_a_norm_after_a_computed_weight_is_folded_into_it():
    model = trained(nn.Sequential(parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4)))
    model[1].running_var.fill_(2)
    graph = capture(model, x := torch.randn(3, 3, 8, dtype=torch.float64))
    assert set(dict(graph.module.named_parameters())) == {"0.weight", "0.bias"}
    torch.testing.assert_close(graph(x), model(x))


def test_what_would_grow_stays_computed():
    """A filter that is repeated for every channel, and a mask that no operator reads as a weight."""
    net = Net(
        lambda net, x: F.conv1d(x, net.f.expand(40, 1, 3), groups=40) + net.m.expand(40, 6).tril(), a=nn.Linear(2, 2)
    )
    net.register_buffer("f", torch.ones(1, 1, 3))
    net.register_buffer("m", torch.ones(1, 6))
    graph = capture(net, torch.randn(2, 40, 8))
    assert graph.layers == ()
    assert sum(buffer.numel() for buffer in graph.module.buffers()) == 9


def test_weights_that_inputs_have_a_part_in_stay_computed():
    net = Net(lambda net, x: F.linear(net.a(x), net.w * x.mean()), a=nn.Linear(3, 3), w=matrix(4, 3))
    model = trained(Net(lambda net, x: x @ (net.w * net.w.size(0)), w=matrix(3, 4)))
    assert [layer.name for layer in capture(model, torch.randn(2, 3).double()).layers] == ["w"]
    with pytest.raises(Exception, match="depends on its batch"):
        capture(net, torch.randn(2, 3))
