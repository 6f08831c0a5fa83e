import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.graph.capture import capture
from mixbit.training.blockwise import find_blocks, single_layers
from tests.networks import Net


def blocks_of(net, shape=(3, 8, 8), find=find_blocks):
    graph = capture(net, torch.randn(2, *shape))
    return graph, find(graph)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def residual():
    def run(net, x):
        x = net.stem(x).relu()
        x = F.relu(x + net.b(net.a(x).relu()))
        return net.head(x.mean((2, 3)))

    return Net(run, stem=conv(3, 4), a=conv(4, 4), b=conv(4, 4), head=nn.Linear(4, 5))


def test_a_residual_block_is_one_with_the_function_behind_it():
    graph, blocks = blocks_of(residual())
    assert [block.layers for block in blocks] == [("stem.weight",), ("a.weight", "b.weight"), ("head.weight",)]
    assert [len(block.outputs) for block in blocks] == [1, 1, 1]
    assert all("relu" in str(graph.node(block.outputs[0]).target) for block in blocks[:2])
    calls = [node.name for node in graph.module.graph.nodes if node.op == "call_function"]
    assert [name for block in blocks for name in block.nodes] == calls


def test_single_layers_end_at_each_operator_or_the_function_behind_it():
    graph, blocks = blocks_of(residual(), find=single_layers)
    assert [block.layers for block in blocks] == [("stem.weight",), ("a.weight",), ("b.weight",), ("head.weight",)]
    kinds = [str(graph.node(block.outputs[0]).target).split(".")[1] for block in blocks]
    assert kinds == ["relu", "relu", "conv2d", "linear"]


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, mask):
        x = self.embed(tokens)
        y = self.norms[0](x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) / 8**0.5 + (1 - mask[:, None, :]) * -100.0
        x = x + self.o(scores.softmax(-1) @ self.v(y))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(x).softmax(-1)


def test_attention_and_feed_forward_fall_out_of_a_transformer_though_a_mask_passes_by():
    graph = capture(Transformer().eval(), (torch.randint(11, (2, 5)), torch.ones(2, 5)))
    blocks = find_blocks(graph)
    names = [tuple(name.removesuffix(".weight") for name in block.layers) for block in blocks]
    assert names == [("embed",), ("q", "k", "v", "o"), ("up", "down"), ("head",)]
    assert all(len(block.outputs) == 1 for block in blocks)


def test_two_heads_are_one_block_with_two_outputs():
    net = Net(lambda net, x: (net.a(y := net.stem(x)), net.b(y)), stem=conv(3, 4), a=conv(4, 2), b=conv(4, 5))
    _, blocks = blocks_of(net)
    assert [block.layers for block in blocks] == [("stem.weight",), ("a.weight", "b.weight")]
    assert len(blocks[1].outputs) == 2


def test_a_weight_read_twice_belongs_to_the_block_that_reads_it_first():
    net = Net(lambda net, x: net.a(net.a(x).relu()), a=conv(3, 3))
    _, blocks = blocks_of(net)
    assert [block.layers for block in blocks] == [("a.weight",)]
    _, blocks = blocks_of(net, find=single_layers)
    assert next(block.layers for block in blocks) == ("a.weight",)


@pytest.mark.parametrize("find", [find_blocks, single_layers])
def test_every_layer_is_in_one_block_and_no_node_in_two(find):
    for net, shape in ((residual(), (3, 8, 8)), (Net(lambda net, x: net.a(x), a=nn.Linear(5, 4)), (5,))):
        graph, blocks = blocks_of(net, shape, find)
        layers = [name for block in blocks for name in block.layers]
        assert sorted(layers) == sorted(layer.name for layer in graph.layers)
        nodes = [name for block in blocks for name in block.nodes]
        assert len(set(nodes)) == len(nodes)
