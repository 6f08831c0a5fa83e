import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.quantization.prepare import reestimated
from tests.networks import Net, assert_state_is, batches_of, state_of


def network():
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.c(F.relu(net.n2(net.b(F.relu(net.n1(net.a(x)))))).mean((2, 3))),
        a=nn.Conv2d(2, 4, 3),
        n1=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 5, 3),
        n2=nn.BatchNorm2d(5),
        c=nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)),
    ).double()


def read_by(model, x):
    """Name of each batch norm -> all that it reads, as rows, for all data in one batch."""
    seen, hooks = {}, []
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            hooks.append(
                part.register_forward_pre_hook(
                    lambda _, args, name=name: seen.update({name: args[0].movedim(1, -1).flatten(0, -2)})
                )
            )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("size", [1, 7, 40])
def test_every_norm_holds_the_statistics_of_what_it_reads(size):
    """However the data is cut; the plain mean and variance of all values at once."""
    x = 3 * torch.randn(40, 2, 8, 8, dtype=torch.float64) + 1
    found = reestimated(network(), batches_of(x, size))
    seen = read_by(found, x)
    assert seen.keys() == {"n1", "n2", "c.1"}
    for name, rows in seen.items():
        norm = found.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, rows.mean(0))
        torch.testing.assert_close(norm.running_var, rows.var(0, correction=0))


def test_the_users_model_is_left_as_it_is():
    model = network().train()
    state = state_of(model)
    found = reestimated(model, batches_of(torch.randn(10, 2, 8, 8, dtype=torch.float64), 5))
    assert_state_is(model, state)
    assert not found.training
    assert all(not part._forward_pre_hooks for part in found.modules())


def test_it_restores_statistics_that_were_spoilt():
    """On the data of training, a network whose statistics were lost is what it was."""
    x = torch.randn(60, 2, 8, 8, dtype=torch.float64)
    good = reestimated(network(), batches_of(x, 20))
    spoilt = copy.deepcopy(good)
    spoilt.n1.running_mean.add_(3)
    spoilt.n2.running_var.mul_(9)
    found = reestimated(spoilt, batches_of(x, 15))
    assert (spoilt(x) - good(x)).abs().max() > 0.1
    torch.testing.assert_close(found(x), good(x))


def test_a_norm_called_twice_pools_both():
    net = Net(lambda net, x: net.n(net.n(x) * 2 + 1), n=nn.BatchNorm1d(3)).double()
    x = torch.randn(30, 3, dtype=torch.float64) + 2
    found = reestimated(net, batches_of(x, 8))
    first = x
    second = F.batch_norm(x, torch.zeros(3).double(), torch.ones(3).double(), eps=net.n.eps) * 2 + 1  # as it was
    rows = torch.cat([first, second])
    torch.testing.assert_close(found.n.running_mean, rows.mean(0))
    torch.testing.assert_close(found.n.running_var, rows.var(0, correction=0))


def test_a_constant_channel_keeps_its_variance():
    net = nn.BatchNorm1d(2).double()
    net.running_var.fill_(4.0)
    x = torch.stack([torch.full((6,), 3.0), torch.arange(6.0)], 1).double()
    found = reestimated(net, [Inputs.of(x)])
    assert found.running_mean.tolist() == [3.0, 2.5]
    assert found.running_var.tolist() == pytest.approx([4.0, 35 / 12])


@pytest.mark.parametrize(
    ("make", "batches", "message"),
    [
        (lambda: nn.BatchNorm1d(2), [torch.randn(1, 2)], "sees a single value for each channel.*give more samples"),
        (network, [torch.randn(1, 2, 8, 8).double()], r"c\.1: sees a single value for each channel"),
        (lambda: nn.Linear(2, 2), [torch.randn(4, 2)], "runs no batch norm"),
        (lambda: nn.BatchNorm1d(2, track_running_stats=False), [torch.randn(4, 2)], "runs no batch norm"),
        (lambda: nn.BatchNorm1d(2), [], "holds no batch"),
        (lambda: nn.BatchNorm1d(2), [torch.randn(4, 2), torch.randn(4, 3)], "batch 1: input 0 has shape"),
        (lambda: nn.BatchNorm1d(2), [torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])], "holds NaN or inf"),
    ],
    ids=["one value", "batch of one", "no norm", "no statistics", "no batch", "shape", "nan"],
)
def test_what_has_no_statistics_is_refused(make, batches, message):
    with pytest.raises(InvalidInput, match=message):
        reestimated(make(), [Inputs.of(x) for x in batches])
