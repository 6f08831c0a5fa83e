from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

from mixbit.core.errors import InvalidInput
from mixbit.graph.capture import capture
from mixbit.quantization.prepare import _pairs, equalized, equalizing_factors
from mixbit.roundings.quantize import quantize
from tests.networks import Attention, Net, Residual, assert_state_is, plan_of, state_of

pytestmark = pytest.mark.usefixtures("anything")


def spoil(net, *names):
    """Scale each named layer's output channels by up to a hundred either way, the next layer's inputs back."""
    with torch.no_grad():
        for first, second in pairwise(names):
            one, two = net.get_submodule(first), net.get_submodule(second)
            factors = torch.exp(4.6 * (2 * torch.rand(one.weight.shape[0]).double() - 1))
            one.weight.mul_(factors.reshape(-1, *[1] * (one.weight.ndim - 1)))
            if one.bias is not None:
                one.bias.mul_(factors)
            if getattr(two, "groups", 1) == 1:
                two.weight.div_(factors.reshape(1, -1, *[1] * (two.weight.ndim - 2)))
            else:  # depthwise
                two.weight.div_(factors.reshape(-1, 1, 1, 1))
    return net


def depthwise():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.c(F.relu(net.b(F.relu(net.a(x))))).mean((2, 3)),
        a=nn.Conv2d(3, 16, 1),
        b=nn.Conv2d(16, 16, 3, padding=1, groups=16),
        c=nn.Conv2d(16, 8, 1),
    ).double()
    return spoil(net, "a", "b", "c")


def grouped():
    torch.manual_seed(1)
    return Net(
        lambda net, x: net.c(net.b(F.relu(net.a(x)))),
        a=nn.Conv2d(3, 6, 3, groups=3, bias=False),
        b=nn.Conv2d(6, 9, 3, groups=3, padding=1),
        c=nn.Conv2d(9, 4, 3, stride=2),
    ).double()


def linear():
    torch.manual_seed(2)
    return Net(lambda net, x: net.b(F.relu(net.a(x))), a=nn.Linear(8, 6), b=nn.Linear(6, 3)).double()


NETWORKS = {"depthwise": (depthwise, 2), "grouped": (grouped, 2), "linear": (linear, 1)}


def ranges_between(graph, pair):
    """Largest magnitude of each channel on either side, from the weights one channel at a time."""
    tensors = {name: tensor.detach() for name, tensor in graph.module.named_parameters()}
    first, second = tensors[pair.first], tensors[pair.second]
    per_group = len(second) // pair.groups
    ours, theirs = [], []
    for channel in range(len(first)):
        group, place = divmod(channel, second.shape[1])
        ours.append(float(first[channel].abs().max()))
        theirs.append(float(second[group * per_group : (group + 1) * per_group, place].abs().max()))
    return ours, theirs


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_both_ranges_are_equal(name):
    make, count = NETWORKS[name]
    torch.manual_seed(3)
    x = torch.randn(4, 8, dtype=torch.float64) if name == "linear" else torch.randn(4, 3, 8, 8, dtype=torch.float64)
    graph = capture(make(), x)
    found = equalized(graph)
    torch.testing.assert_close(found(x), graph(x), rtol=0, atol=1e-10)
    pairs = _pairs(found)
    assert len(pairs) == count
    for pair in pairs:
        ours, theirs = ranges_between(found, pair)
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert max(map(lambda a, b: abs(a / b - 1), *ranges_between(graph, pairs[0]))) > 0.1


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=8))
def test_the_factors_make_both_ranges_their_geometric_mean(ranges):
    first, second = torch.tensor(ranges, dtype=torch.float64).unbind(1)
    factors = equalizing_factors(first, second)
    torch.testing.assert_close(first / factors, (first * second).sqrt())
    torch.testing.assert_close(second * factors, (first * second).sqrt())


@pytest.mark.parametrize("scheme", ["w4a4", "w8a4"])
def test_a_depthwise_network_loses_less_behind_it(scheme):
    torch.manual_seed(4)
    graph, x = capture(depthwise(), torch.randn(2, 3, 8, 8).double()), torch.randn(64, 3, 8, 8).double()

    def error(graph):
        with torch.no_grad():
            return float((quantize(graph, plan_of(graph.layers, scheme), [x])(x) - graph(x)).square().mean())

    assert error(equalized(graph)) < 0.2 * error(graph)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.b(F.relu6(net.a(x))),
        lambda net, x: net.b(torch.clamp(net.a(x), 0, 1)),
        lambda net, x: net.b(F.gelu(net.a(x))),
        lambda net, x: net.b(F.relu(net.a(x))) + net.a(x).mean(1, keepdim=True),
        lambda net, x: net.b(F.relu(net.a(x))) + F.relu(net.a(x)).mean(1, keepdim=True),
        lambda net, x: net.b(net.b(net.a(x))),
        lambda net, x: net.b(F.relu(net.a(x)) + 1),
        lambda net, x: (net.b(net.a(x)), net.a.bias * 2),
        lambda net, x: net.b(net.a(x)) + net.b.weight.sum(),
    ],
    ids=["relu6", "clamp", "gelu", "shared", "read twice", "used twice", "added", "bias read", "weight read"],
)
def test_what_lets_no_factors_through_is_left_as_it_is(run):
    torch.manual_seed(5)
    net = Net(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    graph = capture(net, x)
    found = equalized(graph)
    for name, tensor in graph.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], tensor), name


def test_channels_that_a_relu6_does_not_cut_on_the_data_are_equalized_below_its_cut():
    torch.manual_seed(7)
    net = Net(
        lambda net, x: net.c(F.relu6(net.b(F.relu6(net.a(x))))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, padding=1, groups=8), c=nn.Conv2d(8, 4, 1),
    ).double()  # fmt: skip
    spoil(net, "a", "b", "c")
    batches = [torch.randn(4, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    graph = capture(net, batches[0])
    found = equalized(graph, batches)
    first = [torch.cat([layer(x) for x in batches]).amax((0, 2, 3)) for layer in (net.a, found_layer(found, "a"))]
    cut = first[0] >= 0.9 * 6
    assert cut.any()
    assert not cut.all()
    assert (first[1][~cut] <= 0.9 * 6 + 1e-9).all()
    torch.testing.assert_close(first[1][cut], first[0][cut])
    assert ((first[1] / first[0])[~cut] - 1).abs().max() > 0.1
    for x in batches:
        torch.testing.assert_close(found(x), graph(x), rtol=0, atol=1e-10)


def found_layer(graph, name):
    """The convolution of that name, as a function."""
    parameters = (graph.module.get_parameter(f"{name}.{part}").detach() for part in ("weight", "bias"))
    return lambda x, pair=tuple(parameters): F.conv2d(x, *pair)


@pytest.mark.parametrize("make", [lambda: Residual().eval(), Attention], ids=["residual", "attention"])
def test_whole_networks_keep_their_function(make):
    torch.manual_seed(6)
    net = make()
    x = torch.randint(0, 6, (3, 5)) if isinstance(net, Attention) else torch.randn(3, 2, 6, 6)
    graph = capture(net, x)
    state = state_of(graph.module)
    torch.testing.assert_close(equalized(graph)(x), graph(x), rtol=1e-4, atol=1e-5)
    assert_state_is(graph.module, state)


def test_channels_of_zeros_stay():
    net = linear()
    with torch.no_grad():
        net.a.weight[1] = 0
        net.b.weight[:, 2] = 0
    x = torch.randn(3, 8, dtype=torch.float64)
    graph = capture(net, x)
    found = equalized(graph)
    assert all(tensor.isfinite().all() for tensor in found.module.parameters())
    torch.testing.assert_close(found(x), graph(x), rtol=0, atol=1e-12)
    assert torch.equal(found.module.get_parameter("a.bias")[1:3], net.a.bias[1:3])


def test_a_quantized_graph_is_refused():
    x = torch.randn(3, 8, dtype=torch.float64)
    graph = capture(linear(), x)
    with pytest.raises(InvalidInput, match="quantized already"):
        equalized(quantize(graph, plan_of(graph.layers, "w4"), [x]))
