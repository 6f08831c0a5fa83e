"""What AutoQ's agent sees of layers, by hand."""

import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.pipeline.features import layer_features
from mixbit.searches.autoq import FEATURES
from tests.networks import Net


def features(network, x):
    graph = mb.capture(network.eval(), x)
    return [dict(zip(FEATURES, row, strict=True)) for row in layer_features(graph).tolist()]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # depthwise, input and output channels, stride, kernel, number of weights, size of the input
        (nn.Conv2d(3, 8, 3, stride=2), (3, 9, 7), (0, 3, 8, 2, 3, 3 * 8 * 9, 63)),
        (nn.Conv2d(6, 6, 5, groups=6), (6, 8, 8), (1, 6, 6, 1, 5, 6 * 25, 64)),
        (nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8), (1, 6, 12, 1, 3, 12 * 9, 64)),
        (nn.Conv2d(6, 12, 3, groups=2), (6, 8, 8), (0, 6, 12, 1, 3, 12 * 3 * 9, 64)),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (6, 5, 5), (0, 6, 4, 2, 2, 6 * 2 * 4, 25)),
        (nn.Conv1d(2, 5, 3), (2, 11), (0, 2, 5, 1, 3, 30, 11)),
        (nn.Linear(7, 4), (7,), (0, 7, 4, 0, 1, 28, 7)),
    ],
)
def test_of_one_layer(layer, shape, expected):
    [found] = features(Net(lambda net, x: net.layer(x).tanh(), layer=layer), torch.randn(2, *shape))
    assert tuple(found[name] for name in FEATURES) == expected


def test_of_embeddings_there_is_no_input_but_indices():
    network = Net(lambda net, x: net.b(net.a(x)), a=nn.Embedding(9, 6), b=nn.Linear(6, 3))
    first, second = features(network, torch.zeros(2, 5, dtype=torch.int64))
    assert (first["output_channels"], first["num_weights"], first["input_size"]) == (9, 54, 1)
    assert second["input_size"] == 6
