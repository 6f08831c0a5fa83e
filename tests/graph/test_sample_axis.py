import pytest
import torch
from torch import nn

from mixbit.graph.capture import capture
from mixbit.graph.graph import SampleAxis, sample_axis
from tests.networks import Net

#: torch says it of its own trees.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

RUNS = {
    "first": (lambda x: x + 1, SampleAxis(0)),
    "second": (lambda x: x.transpose(0, 1), SampleAxis(1)),
    "last": (lambda x: x.permute(1, 2, 0), SampleAxis(2)),
    "rows of one sample together": (lambda x: x.reshape(-1, 5), SampleAxis(0, 1, 4)),
    "rows of one sample apart": (lambda x: x.transpose(0, 1).reshape(-1, 5), SampleAxis(0, 4, 1)),
    "both": (lambda x: x.view(-1, 2, 2, 5).transpose(0, 1).reshape(-1, 5), SampleAxis(0, 2, 2)),
    "through operators": (lambda x: (x.flatten(0, 1).relu() * 2).tanh(), SampleAxis(0, 1, 4)),
    "and back": (lambda x: x.flatten(0, 1).relu().view(-1, 4, 5), SampleAxis(0)),
    "all in one": (lambda x: x.reshape(-1), SampleAxis(0, 1, 20)),
    "none": (lambda x: x.sum(0), None),
}
#: The same where the second dimension is dynamic too.
FREE = {
    "first": (lambda x: x + 1, SampleAxis(0)),
    "second": (lambda x: x.transpose(0, 1), SampleAxis(1)),
    "rows of one sample together": (lambda x: x.reshape(-1, 5), SampleAxis(0, 1, None)),
    "rows of one sample apart": (lambda x: x.transpose(0, 1).reshape(-1, 5), SampleAxis(0, None, 1)),
    "through operators": (lambda x: (x.flatten(0, 1).relu() * 2).tanh(), SampleAxis(0, 1, None)),
    "and back": (lambda x: x.flatten(0, 1).relu().view(x.shape[0], -1, 5), SampleAxis(0)),
    "all in one": (lambda x: x.reshape(-1), SampleAxis(0, 1, None)),
    "on both sides": (lambda x: x.movedim(1, 0).unsqueeze(2).expand(-1, -1, x.shape[1], -1).reshape(-1, 5), None),
    "none": (lambda x: x.sum(0), None),
}


@pytest.fixture(params=[*[(RUNS, name) for name in RUNS], *[(FREE, name) for name in FREE]], scope="module")
def tensor(request):
    """The node of one tensor, its value where sample n holds n + 1 all over, and the axis it should have."""
    runs, name = request.param
    run, axis = runs[name]
    net = Net(lambda net, x: run(x))
    x = torch.arange(1.0, 4).view(3, 1, 1).expand(3, 4, 5)
    program = torch.export.export(
        net, (x,), dynamic_shapes=(dict.fromkeys((0, 1) if runs is FREE else (0,), torch.export.Dim.DYNAMIC),)
    ).run_decompositions({})
    return program.graph.find_nodes(op="output")[0].args[0][0], net(x), axis


def test_the_axis_is_read_from_symbolic_shapes(tensor):
    node, _, axis = tensor
    assert sample_axis(node) == axis


def test_rows_are_grouped_by_sample(tensor):
    _, value, axis = tensor
    if axis is None:
        return
    groups = axis.group(value, 3)
    assert groups.shape[1:].numel() == value.numel() // 3
    for number, group in enumerate(groups):
        assert group.unique().numel() == 1  # one sample's rows, all of them, in order of samples
        assert group.unique() == value.unique()[number]


def test_a_captured_graph_tells_it_too():
    net = Net(lambda net, x: net.a(x.transpose(0, 1).reshape(-1, 5)), a=nn.Linear(5, 5))
    graph = capture(net, torch.randn(3, 4, 5))
    (node,) = [node for node in graph.module.graph.nodes if "linear" in str(node.target)]
    assert sample_axis(node) == SampleAxis(0, 4, 1)
    assert sample_axis(graph.node("x")) == SampleAxis(0)
    assert all(sample_axis(node) is None for node in graph.module.graph.find_nodes(op="get_attr"))
