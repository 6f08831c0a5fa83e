"""Windows of convolutions against torch's own convolution, and gradients of weights against torch's autograd."""

import pytest
import torch
from torch import nn

from mixbit.core import Inputs
from mixbit.graph import SampleGradients
from mixbit.graph.capture import capture
from mixbit.graph.windows import convolution_gradients, windows

CASES = {
    "plain": (nn.Conv2d(4, 6, 3), (9, 8)),
    "stride, padding and dilation": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (9, 8)),
    "groups": (nn.Conv2d(4, 8, 3, groups=4, stride=2), (9, 8)),
    "same, even kernel": (nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 3)), (9, 8)),
    "valid": (nn.Conv1d(4, 6, 3, padding="valid"), (9,)),
    "one dimension": (nn.Conv1d(4, 6, 3, padding=1, groups=2), (9,)),
    "three dimensions": (nn.Conv3d(4, 6, 2, stride=2), (5, 4, 6)),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (5, 4),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CASES)
def test_equal_autograds_of_each_sample(name):
    module, sizes = CASES[name]
    torch.manual_seed(0)
    x = torch.randn(3, 4, *sizes)
    graph = capture(module, (x,))
    (layer,) = graph.layers
    (operation,) = layer.operations
    weight = graph.parameter(layer.name).detach().requires_grad_()
    gradient = torch.randn_like(graph(x))
    wanted = [
        torch.autograd.grad(graph.run(operation, one[None], weight), weight, slope[None])[0]
        for one, slope in zip(x, gradient, strict=True)
    ]
    node, detached = graph.node(operation.node), weight.detach()
    alone = torch.cat([*convolution_gradients(node, detached, x.unsqueeze(1), gradient.unsqueeze(1))])
    torch.testing.assert_close(alone, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    together = torch.cat([*convolution_gradients(node, detached, x.unsqueeze(0), gradient.unsqueeze(0))])
    torch.testing.assert_close(together[0], torch.stack(wanted).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_samples_are_those_of_the_network_whose_means_stay(name):
    module, sizes = CASES[name]
    torch.manual_seed(0)
    x, middle = torch.randn(3, 4, *sizes), torch.randn(1, 4, *sizes)
    graph, found = capture(module, (x,)), []

    def means(operation, weight):
        return graph.run(operation, middle, weight).flatten(2).mean((0, 2))

    def loss(output, factors):
        return (output * factors).sum()

    backward = SampleGradients(graph, graph.layers, lambda _, parts: found.extend(parts), means=means)
    factors = torch.randn_like(graph(x))
    backward.run_batch(Inputs.of(x), factors, loss)
    (operation,) = graph.layers[0].operations
    weight = graph.parameter(graph.layers[0].name).detach().requires_grad_()
    wanted = []
    for one, factor in zip(x, factors, strict=True):
        output = graph.run(operation, one[None], weight)
        moved = output - operation.along_channels(means(operation, weight), output.ndim)
        wanted.append(torch.autograd.grad(loss(moved, factor[None]), weight)[0])
    torch.testing.assert_close(torch.cat(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [name for name in CASES if name != "transposed"])
def test_windows_times_the_weight_are_what_the_convolution_returns(name):
    module, sizes = CASES[name]
    x = torch.randn(3, 4, *sizes)
    graph = capture(module, (x,))
    ((operation,),) = (layer.operations for layer in graph.layers)
    weight = graph.parameter(graph.layers[0].name).detach()
    cut = windows(graph.node(operation.node), x, weight.shape[2:])
    spatial, groups = len(sizes), operation.groups
    rows = cut.permute(0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)).flatten(2 + spatial)
    matrix = weight.flatten(1).unflatten(0, (groups, -1))
    outputs = torch.einsum("ng...k,gck->ngc...", rows, matrix).flatten(1, 2)
    torch.testing.assert_close(outputs, graph.run(operation, x, weight), rtol=1e-4, atol=1e-5)
