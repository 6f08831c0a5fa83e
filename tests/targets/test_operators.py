"""Operators before a quantized layer that runtimes fuse with its quantizer: outputs as simulated, layers in int8."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.quantization import calibrate
from mixbit.quantization.quantizer import activation_quantizers
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from tests.networks import Net, plan_of, scheme_of_bytes

#: Between a convolution `a` and the layer `b` behind it, or between `a` and the linear layers `m` and `l`.
RUNS = {
    "times a number": lambda net, x: net.b(net.a(x).relu() * 10),
    "times a vector": lambda net, x: net.b(net.a(x).relu() * net.v),
    "plus a vector": lambda net, x: net.b(net.a(x).relu() + net.v),
    "scaled input": lambda net, x: net.b(net.a(x / 255 * 7).relu()),
    "layer norm of rows": lambda net, x: net.l(net.n(net.m(x.mean((2, 3))))),
    "layer norm of tokens": lambda net, x: net.l(net.n(net.m(x.mean(2).transpose(1, 2)))).mean(1),
    "maximum": lambda net, x: net.l(net.a(x).relu().amax((2, 3))),
    "maximum, dimensions kept": lambda net, x: net.b(net.a(x).relu().amax((2, 3), keepdim=True).expand(-1, -1, 4, 4)),
    "minimum": lambda net, x: net.l(net.a(x).amin((2, 3))),
    "adaptive maximum": lambda net, x: net.l(F.adaptive_max_pool2d(net.a(x).relu(), 1).flatten(1)),
    "maximum of windows": lambda net, x: net.l(F.max_pool2d(net.a(x).relu(), 8).flatten(1)),
    "mean": lambda net, x: net.l(net.a(x).relu().mean((2, 3))),
    "dropout": lambda net, x: net.l(F.dropout(net.m(x.mean((2, 3))).relu(), 0.5, training=False)),
    "first token": lambda net, x: net.l(net.m(x.mean(2).transpose(1, 2)).relu()[:, 0]),
    "gate": lambda net, x: net.b((y := net.a(x)) * y.mean((2, 3), keepdim=True).sigmoid()),
    "scaled, then joined": lambda net, x: net.d(torch.cat([net.a(x).relu() * 10, x], 1)),
    "added to itself": lambda net, x: net.b((y := net.a(x)) + y),
    "added to its input": lambda net, x: net.b(net.a(y := net.c(x).relu()) + y),
    "average with counted padding": lambda net, x: net.b(F.avg_pool2d(F.hardswish(net.a(x)), 3, 1, 1)),
    "average with padding left out": lambda net, x: net.b(F.avg_pool2d(F.hardswish(net.a(x)), 3, 1, 1, False, False)),
    "average beside a layer": lambda net, x: net.d(
        torch.cat([net.b(y := F.hardswish(net.a(x))), F.avg_pool2d(y, 3, 1, 1)], 1)
    ),
    "average, rounded up": lambda net, x: net.b(F.avg_pool2d(F.hardswish(net.a(x)), 3, 3, ceil_mode=True)),
    "average, rounded up, beside a layer": lambda net, x: net.d(
        torch.cat(
            [F.max_pool2d(net.b(y := F.hardswish(net.a(x))), 3, 3, ceil_mode=True), F.avg_pool2d(y, 3, 3, 0, True)], 1
        )
    ),
    "average, padded and rounded up": lambda net, x: net.b(F.avg_pool2d(F.hardswish(net.a(x)), (3, 2), 2, 1, True)),
    "average of a sequence": lambda net, x: net.l(
        F.avg_pool1d(net.m(x.mean(2).transpose(1, 2)).relu().transpose(1, 2), 3, 2, 1, True).mean(2)
    ),
    "average of a row": lambda net, x: net.l(F.avg_pool1d(net.m(x.mean((2, 3))).relu(), 3, 1, 1)),
    "attention with a learned mask": lambda net, x: attention(net, x.mean(2).transpose(1, 2)),
    "two added": lambda net, x: net.b(net.a(x) + net.c(x)),
    "padded": lambda net, x: net.b(F.pad(net.a(x).relu(), (1, 0, 0, 2))),
}
#: Images that are run at once.
COUNTS = (1, 3, 32)
PARTS = {
    "a": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "b": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "c": lambda: nn.Conv2d(16, 16, 3, padding=1),
    "d": lambda: nn.Conv2d(32, 16, 1),
    "m": lambda: nn.Linear(16, 16),
    "n": lambda: nn.LayerNorm(16),
    "l": lambda: nn.Linear(16, 10),
    "v": lambda: nn.Parameter(torch.rand(16, 1, 1) * 4 + 0.1),
    "p": lambda: nn.Parameter(torch.randn(1, 2, 8, 8)),
}


def attention(net: Net, x: Tensor) -> Tensor:
    q = net.m(x).view(-1, 8, 2, 8).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, q, q, attn_mask=net.p.expand(x.shape[0], -1, -1, -1))
    return net.l(y.transpose(1, 2).contiguous().view(-1, 8, 16)).mean(1)


def images() -> Tensor:
    return torch.randn(32, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def branches():
    """A network that runs all of RUNS on the same images, an output for each: one file for each target holds them."""
    torch.manual_seed(0)
    nets = [Net(run, **{part: make() for part, make in PARTS.items()}) for run in RUNS.values()]
    with torch.no_grad():  # as trained: an untrained norm multiplies by one
        for net in nets:
            net.n.weight.uniform_(0.2, 4)
            net.n.bias.normal_()
    return Net(lambda net, x: [branch(x) for branch in net.branches], branches=nn.ModuleList(nets)).eval()


@pytest.fixture(scope="module")
def graph():
    return capture(branches(), images()[:2])


@pytest.fixture(scope="module")
def calibration(graph):
    return calibrate(graph, [images()])


@pytest.fixture(scope="module", params=["openvino", "onnxruntime", "litert"])
def deployed(request, graph, calibration, tmp_path_factory):
    """Name -> simulated and deployed outputs by count of images, and layer -> what the runtime executed."""
    folder = tmp_path_factory.mktemp(request.param)
    simulated = quantize(graph, plan_of(graph.layers, "w4a8", request.param), calibration)
    sizes = graph.module.graph.find_nodes(op="placeholder")[0].meta["val"].shape
    symbol = str(sizes[0])
    export(simulated, folder)
    assert str(sizes[0]) == symbol, "writing a file decided what a size is, in all graphs that share it"
    assert not symbol.isdecimal()
    runner = find_target(request.param).load(folder)
    with torch.no_grad():
        outputs = [
            zip(simulated(x), map(torch.from_numpy, runner.run([x.numpy()])), strict=True)
            for x in (images()[:count] for count in COUNTS)
        ]
    executed = runner.executed()
    assert executed.keys() == {layer.name for layer in graph.layers}
    return dict(zip(RUNS, zip(*outputs, strict=True), strict=True)), executed


@pytest.mark.parametrize("name", RUNS)
def test_outputs_are_as_simulated_and_layers_run_in_int8(name, deployed):
    outputs, executed = deployed
    for wanted, found in outputs[name]:
        assert (found - wanted).square().mean().sqrt() <= 0.005 * outputs[name][-1][0].std()
    layers = [text for layer, text in executed.items() if layer.startswith(f"branches.{[*RUNS].index(name)}.")]
    assert layers
    assert all("int8" in text for text in layers), layers


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "packed", "litert"])
def test_dead_channels_keep_their_bias(target, tmp_path):
    """Channels whose weights are nearly or wholly zero, as norms with a vanishing factor leave them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    with torch.no_grad():
        net[1].weight[:3] = torch.tensor([1e-8, 0.0, 1e-12])
        net[1].bias[:3] = torch.tensor([0.5, 0.7, 900.0])
        net[4].weight[1] = 1e-9
        net[4].weight[2] = 0
        net[4].bias[:3] = torch.tensor([3.0, 5.0, 7.0])
    graph = capture(net, images()[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme_of_bytes(target), target), [images()])
    with torch.no_grad():
        wanted, expected = simulated(images()), net(images())
    steps = activation_quantizers(simulated)  # that of the output, where the target returns integers
    step = float(steps[last].scale) if (last := graph.layers[1].operations[0].node) in steps else 0.0
    assert (wanted - expected)[:, 1:3].abs().max() < 0.01 + step / 2
    export(simulated, tmp_path)
    runner = find_target(target).load(tmp_path, graph)
    found = torch.from_numpy(runner.run([images().numpy()])[0])
    assert (found - wanted).square().mean().sqrt() <= 0.005 * wanted.std()


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "litert"])
@pytest.mark.parametrize("zero_point", [100, 101])
def test_ties_go_where_the_runtime_lets_them_go(target, zero_point, tmp_path):
    """Half of the inputs are in the middle between two integers; the zero point is even or odd."""
    x = (torch.randint(-200, 300, (16, 4, 8, 8)) / 2).clamp(-zero_point, 255 - zero_point)
    graph = capture(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)).eval(), x[:2])
    plan = plan_of(graph.layers, scheme_of_bytes(target), target)
    simulated = quantize(graph, plan, [x], bias_correction="off")
    quantizer = activation_quantizers(simulated)[graph.layers[0].inputs[0]]
    quantizer.scale.fill_(1)
    quantizer.zero_point.fill_(zero_point)
    export(simulated, tmp_path)
    (found,) = find_target(target).load(tmp_path).run([x.numpy()])
    with torch.no_grad():
        wanted = simulated(x)
    differ = (torch.from_numpy(found) - wanted).abs() > 1e-5 * wanted.std()
    assert differ.double().mean() < 0.01  # onnxruntime rounds outputs too, a few of which are near the middle
