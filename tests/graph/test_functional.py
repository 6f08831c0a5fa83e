"""The operators of captured graphs are those that torch's own decomposition leaves."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from mixbit.graph.functional import functional_module
from mixbit.graph.graph import without_torchs_warnings
from tests.networks import Net

CASES = {
    "norm and flatten": lambda net, x: net.norm(x).relu().flatten(1),
    "sizes": lambda net, x: x.reshape(x.shape[0], 3, -1).transpose(1, 2).reshape(-1, 3) * x.shape[0],
    "parts": lambda net, x: torch.cat(x.chunk(2, 2)[::-1], 1).unflatten(1, (2, -1)).contiguous(),
    "moves": lambda net, x: x.movedim(1, -1).expand_as(x.movedim(1, -1)).to(torch.float64),
    "written in place": lambda net, x: F.relu((x * 2).add_(x), inplace=True).clamp_(max=3).flatten(),
    "read before it is written": lambda net, x: (y := x * 2).sum() + y.mul_(3) + y,
    "a view is written": lambda net, x: (y := x * 2).view(-1).add_(1).sum() + y,
    "a part is written": lambda net, x: _with_zeros(x * 2),
    "written after a view": lambda net, x: (y := x * 2).view(-1) + (y.relu_().view(-1)),
    "an input is written": lambda net, x: x.relu_() + x,
    "of another type": lambda net, x: x.mul(2).add_(torch.ones(1, dtype=torch.float64)),
    "without gradients": lambda net, x: _without_gradients(x) + x,
}


def _with_zeros(x):
    x[:, 0] = 0
    return x


def _without_gradients(x):
    with torch.no_grad():
        return x.flatten(1).sum(1)[:, None, None, None]


@pytest.mark.parametrize("name", CASES)
def test_operators_are_those_of_torchs_decomposition(name):
    net, x = Net(CASES[name], norm=nn.BatchNorm2d(3)).eval(), torch.randn(4, 3, 4, 2)
    with without_torchs_warnings():
        program = torch.export.export(net, (x.clone(),), dynamic_shapes=({0: Dim.DYNAMIC},))
        module, wanted = functional_module(program), program.run_decompositions({}).module(check_guards=False)
    for size in (4, 3):
        some = x[:size]
        torch.testing.assert_close(module(some.clone()), wanted(some.clone()), rtol=0, atol=0)
    assert _kinds(module) == _kinds(wanted)


def _kinds(module):
    """Operators on tensors, in order: views by what they return, since either spelling of one is right."""
    module.graph.eliminate_dead_code()
    kinds = []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.Tensor) and "copy_" not in str(node.target):
            kind = str(node.target).replace("aten.reshape", "aten.view").replace("_unsafe_view", "view")
            kinds.append((kind, value.dtype, [str(size) for size in value.shape]))
    return kinds
