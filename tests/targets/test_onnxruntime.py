"""What only onnxruntime does: it quantizes weights itself that stand between quantized tensors."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core import Scheme, TargetMismatch, find_target
from mixbit.graph.capture import capture
from mixbit.quantization import uniform_plan
from mixbit.roundings.quantize import quantize
from mixbit.targets._integers import BLOCK_BITS, BLOCK_SIZES
from mixbit.targets.export import export
from mixbit.targets.onnxruntime import _opened, lacks
from tests.networks import Net, plan_of

#: The layer `b` between quantized tensors, its scheme, and how it is run between two convolutions.
BETWEEN = {
    "up 1d": (lambda: nn.ConvTranspose1d(8, 8, 3, stride=2), "w8a8", "rows"),
    "up 2d": (lambda: nn.ConvTranspose2d(8, 8, 2, stride=2), "w4a8", "maps"),
    "up 2d, without bias": (lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, bias=False), "w8a8", "maps"),
    "up 2d, in groups": (lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=4), "w6a8", "maps"),
    "up 2d, one scale": (lambda: nn.ConvTranspose2d(8, 8, 3, 1, 1, dilation=2), "w8ta8", "maps"),
    "up 3d": (lambda: nn.ConvTranspose3d(8, 8, 2, stride=2), "w8a8", "volumes"),
    "convolution in float": (lambda: nn.Conv2d(8, 8, 3, padding=1), "float", "maps"),
    "linear in float": (lambda: nn.Linear(8, 8), "float16", "vectors"),
}


def between(kind: str, net: Net, x: Tensor) -> Tensor:
    """First and last layers read integers, so what the one in the middle returns is quantized, and what it reads."""
    y = F.relu(net.first(x))
    if kind == "rows":
        y = y.flatten(2)
    elif kind == "volumes":
        y = y.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    elif kind == "vectors":
        y = y[:, :, 0, 0]
    return net.last(F.relu(net.b(y)))


def last(kind: str) -> nn.Module:
    shapes = {"rows": nn.Conv1d, "maps": nn.Conv2d, "volumes": nn.Conv3d}
    return shapes[kind](8, 4, 1) if kind in shapes else nn.Linear(8, 4)


def network() -> nn.Module:
    """A branch for each of BETWEEN, the weights of whose layer differ a hundredfold from channel to channel."""
    nets = []
    for make, _, kind in BETWEEN.values():
        net = Net(partial(between, kind), first=nn.Conv2d(3, 8, 3), b=make(), last=last(kind))
        axis = 1 if "Transpose" in type(net.b).__name__ else 0
        with torch.no_grad():
            sizes = torch.logspace(-2, 0, net.b.weight.shape[axis])
            net.b.weight.mul_(sizes.reshape([-1 if axis == d else 1 for d in range(net.b.weight.ndim)]))
            net.last.weight.div_(torch.logspace(-2, 0, 8).reshape(1, -1, *[1] * (net.last.weight.ndim - 2)))
        nets.append(net)
    return Net(lambda net, x: [branch(x) for branch in net.branches], branches=nn.ModuleList(nets)).eval()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """Inputs, the simulation and the session of its file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    x, folder = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    graph = capture(network(), x[:2])
    kinds = [scheme for _, scheme, _ in BETWEEN.values()]
    schemes = {layer.name: "w8a8" for layer in graph.layers}
    schemes |= {f"branches.{number}.b.weight": scheme for number, scheme in enumerate(kinds)}
    simulated = quantize(graph, plan_of(graph.layers, schemes, "onnxruntime"), [x])
    export(simulated, folder)
    session, _ = _opened(onnxruntime, folder / "model.onnx", {})
    return x, simulated, session


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_in_float_between_quantized_tensors_keep_their_weights(name, deployed):
    x, simulated, session = deployed
    number = [*BETWEEN].index(name)
    spread = simulated(x)[number].std()
    for count in (1, 3, len(x)):
        with torch.no_grad():
            wanted = simulated(x[:count])[number]
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x[:count].numpy()})[number])
        assert (found - wanted).square().mean().sqrt() <= 0.005 * spread


def test_weights_in_another_file_are_refused_before_they_are_read(tmp_path, apart):
    onnx = pytest.importorskip("onnx")
    graph = capture(nn.Linear(4, 3).eval(), torch.randn(2, 4))
    export(quantize(graph, uniform_plan(graph, "w8a8", target="onnxruntime"), [torch.randn(8, 4)]), tmp_path / "out")
    target, path = find_target("onnxruntime"), tmp_path / "out" / "model.onnx"
    target.load(path.parent)
    proto = onnx.load(path)
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    os.mkfifo(tmp_path / "out" / "pipe")
    for place in ("/etc/passwd", "../secret", "pipe"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=place)
        path.write_bytes(proto.SerializeToString())
        for read in (target.load, target.stored, lambda folder: target.try_apart(folder, [])):
            with pytest.raises(TargetMismatch, match="stored in another file"):
                read(path.parent)


class Confusing(nn.Module):
    """Parameters named as inputs, outputs and values inside the file are."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("x", "linear", "val_0", "val_3"):
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = F.linear(F.linear(x, self.val_0).relu(), self.val_3)
        return [F.linear(x, self.x), F.linear(y, self.linear), x]


@pytest.mark.parametrize("scheme", ["w8a8", "float"])
def test_names_of_parameters_may_be_those_of_anything(scheme, tmp_path):
    pytest.importorskip("onnxruntime")
    x = torch.randn(8, 4)
    graph = capture(Confusing().eval(), x)
    simulated = quantize(graph, plan_of(graph.layers, scheme, "onnxruntime"), [x])
    export(simulated, tmp_path / "out")
    target = find_target("onnxruntime")
    assert target.stored(tmp_path / "out").keys() == {"x", "linear", "val_0", "val_3"}
    with torch.no_grad():
        wanted = simulated(x)
    for want, found in zip(wanted, target.load(tmp_path / "out").run([x.numpy()]), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), want, rtol=0, atol=0.02 * float(want.std()))


#: Every width and group in which it takes inputs that are rounded at run time.
IN_GROUPS = [
    text
    for text in (f"w{bits}g{group}a8dg{group}" for bits in BLOCK_BITS for group in BLOCK_SIZES)
    if lacks(Scheme.parse(text)) is None
]


@pytest.mark.parametrize("scheme", IN_GROUPS)
def test_the_runtime_rounds_inputs_of_groups_as_the_simulation_does(scheme, tmp_path):
    onnx = pytest.importorskip("onnx")
    bits, group = int(scheme[1]), int(scheme.partition("dg")[2])
    torch.manual_seed(0)
    x = torch.randn(5, 256) * torch.randn(5, 256).exp()
    graph = capture(nn.Linear(256, 24).eval(), x)
    simulated = quantize(graph, uniform_plan(graph, scheme, target="onnxruntime"), [x])
    export(simulated, tmp_path / "out")
    runner = find_target("onnxruntime").load(tmp_path / "out")
    assert runner.executed() == {"weight": f"MatMulNBits int8, inputs in groups of {group}, weights in {bits} bits"}

    file = onnx.load(tmp_path / "out" / "model.onnx").graph
    parts = {tensor.name.rpartition("::")[2]: onnx.numpy_helper.to_array(tensor) for tensor in file.initializer}
    (words,) = [array for name, array in parts.items() if name.endswith("blocks")]
    (scale,) = [array for name, array in parts.items() if name.endswith("scale")]
    fields = [(words >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    weights = np.stack(fields, -1).reshape(*scale.shape, group) - 2.0 ** (bits - 1)
    blocks = x.double().numpy().reshape(5, -1, group)
    steps = np.abs(blocks).max(-1, keepdims=True) / 127
    bias = simulated(torch.zeros(1, 256)).detach().double().numpy()
    product = "ngi,cgi,cg->nc"
    rounded = np.einsum(product, np.rint(blocks / steps) * steps, weights, scale.astype(float)) + bias
    in_float = np.einsum(product, blocks, weights, scale.astype(float)) + bias

    (found,), wanted = runner.run([x.numpy()]), simulated(x).detach().numpy()
    close = 1e-5 * rounded.std()
    np.testing.assert_allclose(found, rounded, rtol=0, atol=close)
    np.testing.assert_allclose(wanted, rounded, rtol=0, atol=close)
    assert np.abs(found - in_float).max() > 100 * close


@pytest.mark.parametrize("kind", ["products", "products without biases", "table and head"])
def test_products_in_groups_read_what_other_layers_in_groups_return(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    first, second = (nn.Linear(64, 64, bias="without" not in kind) for _ in range(2))
    x = torch.randn(4, 7, 64)
    if kind == "table and head":
        first, second, x = nn.Embedding(50, 64), nn.Linear(64, 50), torch.randint(0, 50, (4, 7))
        second.weight = first.weight
    graph = capture(nn.Sequential(first, second).eval(), x)
    simulated = quantize(graph, uniform_plan(graph, "w8g32a8dg32", target="onnxruntime"), None)
    export(simulated, tmp_path / "out")
    (found,) = find_target("onnxruntime").load(tmp_path / "out").run([x.numpy()])
    wanted = simulated(x).detach()
    # numbers of a table may lie half between two integers and become the other one: few tokens
    assert float((torch.from_numpy(found) - wanted).abs().median()) < 1e-5 * float(wanted.std())


def test_inputs_of_groups_are_rounded_too_where_a_table_shares_the_weight(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    table = nn.Embedding(50, 64)
    net = Net(lambda net, t: net.head(net.body(net.table(t)).view(-1, 64)), table=table, body=nn.Linear(64, 64))
    net.head = nn.Linear(64, 50, bias=False)
    net.head.weight = table.weight
    tokens = torch.randint(0, 50, (4, 7))
    graph = capture(net.eval(), tokens)
    # at min-max scales hardly a value of the table is right between two integers of what its reader makes of it
    simulated = quantize(graph, uniform_plan(graph, "w8g32a8dg32", target="onnxruntime"), None)
    export(simulated, tmp_path / "out")
    (found,) = find_target("onnxruntime").load(tmp_path / "out").run([tokens.numpy()])
    wanted = simulated(tokens).detach()
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-5 * float(wanted.std()))


@pytest.mark.parametrize("scheme", ["w8za8", "w5za8", "w4tza8", "w2za8"])
@pytest.mark.parametrize("sizes", [(48,), (10, 48)], ids=["QGemm", "MatMulIntegerToFloat"])
def test_products_with_a_matrix_run_zero_points_of_weights_in_integers(scheme, sizes, tmp_path):
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32, bias=False)).eval()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, mean=0.1, std=0.1)
    x = torch.randn(32, *sizes)
    graph = capture(model, x[:2])
    simulated = quantize(graph, uniform_plan(graph, scheme, target="onnxruntime"), [x])
    export(simulated, tmp_path)
    runner = find_target("onnxruntime").load(tmp_path)
    assert all(text.endswith("int8") for text in runner.executed().values())
    (found,) = runner.run([x.numpy()])
    np.testing.assert_allclose(found, simulated.module(x).detach().numpy(), rtol=1e-5, atol=1e-4)


def test_a_kernel_takes_no_zero_points_beside_quantized_inputs():
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval(), torch.randn(2, 3, 8, 8))
    assert uniform_plan(graph, "w4za8", target="onnxruntime").layers == {"0.weight": "float", "2.weight": "w4za8"}


@pytest.mark.parametrize("inputs", [32, 48])
def test_a_weight_with_zero_points_read_in_both_directions_is_right(inputs, tmp_path):
    net = Net(lambda net, x: F.linear(F.linear(x, net.a.weight).relu(), net.a.weight.t()), a=nn.Linear(48, inputs))
    x = torch.randn(64, 48)
    graph = capture(net.eval(), x[:2])
    simulated = quantize(graph, uniform_plan(graph, "w4za8", target="onnxruntime"), [x])
    export(simulated, tmp_path)
    (found,) = find_target("onnxruntime").load(tmp_path).run([x.numpy()])
    np.testing.assert_allclose(found, simulated.module(x).detach().numpy(), rtol=1e-4, atol=1e-4)
