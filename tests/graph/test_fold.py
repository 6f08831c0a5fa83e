import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.graph.capture import capture, scaled
from tests.networks import Net

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}


def trained(norm):
    """A batch norm whose statistics and factors are those of no fresh one."""
    torch.manual_seed(0)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        if tensor is not None:
            nn.init.normal_(tensor)
    if norm.running_var is not None:
        nn.init.uniform_(norm.running_var, 0.2, 3)
    return norm


def num_norms(graph):
    return sum("batch_norm" in str(node.target) for node in graph.module.graph.nodes)


def assert_folds(model, x, count):
    """All but `count` batch norms are gone, and outputs agree with the model's to float64's precision."""
    graph = capture(model.eval().double(), x.double())
    assert num_norms(graph) == count
    other = torch.randn(7, *x.shape[1:], dtype=torch.float64)
    torch.testing.assert_close(graph(other), model(other), rtol=1e-10, atol=1e-10)
    return graph


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_norm_after_a_convolution_is_folded(kind):
    """With and without a bias before it, with and without factors of its own."""
    dimensions = int(kind[-2])
    make, norm = CONVOLUTIONS[kind], NORMS[dimensions]
    model = nn.Sequential()
    for bias in (True, False):
        for affine in (True, False):
            model.extend([make(2, 2, 3, bias=bias, padding=1), trained(norm(2, eps=0.1, affine=affine)), nn.Tanh()])
    graph = assert_folds(model, torch.randn(3, 2, *[4] * dimensions), 0)
    names = {f"{position}.{name}" for position in (0, 3, 6, 9) for name in ("weight", "bias")}
    assert set(dict(graph.module.named_parameters())) == names


def test_a_norm_after_a_linear_operator_is_folded():
    model = nn.Sequential(
        nn.Linear(4, 3),
        trained(nn.BatchNorm1d(3)),
        nn.Linear(3, 3, bias=False),
        trained(nn.BatchNorm1d(3, affine=False)),
    )
    assert_folds(model, torch.randn(3, 4), 0)


def test_groups_are_folded_where_they_divide_the_output():
    assert_folds(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), trained(nn.BatchNorm2d(4))), torch.randn(3, 4, 5, 5), 0)
    transposed = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), trained(nn.BatchNorm2d(4)))
    assert_folds(transposed, torch.randn(3, 4, 5, 5), 1)


def test_a_norm_over_other_channels_is_not_folded():
    """After linear on [N, C, L], the norm's channels are C."""
    assert_folds(nn.Sequential(nn.Linear(4, 3), trained(nn.BatchNorm1d(5))), torch.randn(3, 5, 4), 1)


def test_a_shared_convolution_keeps_both_norms():
    model = Net(
        lambda net, x: net.first(net.a(x)) + net.second(net.a(x + 1)),
        a=nn.Conv2d(2, 3, 3),
        first=trained(nn.BatchNorm2d(3)),
        second=trained(nn.BatchNorm2d(3)),
    )
    assert_folds(model, torch.randn(3, 2, 5, 5), 2)


def test_an_output_that_others_read_keeps_its_norm():
    model = Net(lambda net, x: (y := net.a(x)) + net.b(y), a=nn.Conv2d(2, 3, 3), b=trained(nn.BatchNorm2d(3)))
    assert_folds(model, torch.randn(3, 2, 5, 5), 1)


def test_a_shared_bias_stays_as_it_is_for_its_other_reader():
    bias = nn.Parameter(torch.randn(3))
    model = Net(
        lambda net, x: net.norm(F.linear(x, net.v, net.bias)) * F.linear(x, net.w, net.bias),
        v=nn.Parameter(torch.randn(3, 4)),
        w=nn.Parameter(torch.randn(3, 4)),
        bias=bias,
        norm=trained(nn.BatchNorm1d(3)),
    )
    graph = assert_folds(model, torch.randn(3, 4), 0)
    assert torch.equal(dict(graph.module.named_parameters())["bias"], bias)


def test_a_name_that_is_taken_is_not_taken_over():
    model = Net(
        lambda net, x: net.norm(F.linear(x, net.weight)) + net.bias,
        weight=nn.Parameter(torch.randn(3, 4)),
        bias=nn.Parameter(torch.randn(3)),
        norm=trained(nn.BatchNorm1d(3)),
    )
    graph = assert_folds(model, torch.randn(3, 4), 0)
    assert set(dict(graph.module.named_parameters())) == {"weight", "bias", "bias_1"}


def test_a_norm_without_statistics_that_never_change_is_refused_or_kept():
    """It normalises by the batch: the captured graph cannot be right for every batch."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    with pytest.raises(Exception, match="depends on its batch"):
        capture(model, torch.randn(3, 2, 5, 5))


def test_scaled_is_the_norm_of_the_operator():
    torch.manual_seed(1)
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((6, 4), (3, 4), (3,)))
    gamma, beta, mean = torch.randn(3, 3, dtype=torch.float64)
    variance = torch.rand(3, dtype=torch.float64)
    new_weight, new_bias = scaled(weight, bias, (gamma, beta, mean, variance), 0.1, 0)
    slow = [
        [
            (sum(w * v for w, v in zip(weight[c], row, strict=True)) + bias[c] - mean[c])
            / (variance[c] + 0.1) ** 0.5
            * gamma[c]
            + beta[c]
            for c in range(3)
        ]
        for row in x
    ]
    torch.testing.assert_close(x @ new_weight.T + new_bias, torch.tensor(slow, dtype=torch.float64))
