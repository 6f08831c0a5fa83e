"""A weight that several operators read, each in its own way: every one of them does what the simulation does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.quantization.offers import why_not
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from tests.networks import Net, matrix, plan_of

#: What reads `w`: square, 32 x 32; `n`, 32 x 64; `e`, a table of 16 rows; `k`, kernels of 8 x 8 x 3 x 3.
READS = {
    "as it is, then turned": lambda net, x: torch.tanh(x @ net.w[0]) @ net.w[0].t(),
    "turned, then as it is": lambda net, x: torch.tanh(x @ net.w[1].t()) @ net.w[1],
    "by a linear layer, then turned": lambda net, x: F.linear(torch.tanh(F.linear(x, net.w[2], net.b)), net.w[2].t()),
    "twice in the same way": lambda net, x: torch.tanh(x @ net.w[3]) @ net.w[3],
    "both ways, not square": lambda net, x: torch.tanh(x @ net.n[0]) @ net.n[0].t(),
    "by an autoencoder": lambda net, x: F.linear(torch.tanh(F.linear(x, net.n[1].t(), None)), net.n[1]),
    "as a table and as a head": lambda net, x: F.linear(torch.tanh(net.l(net.e[0][indices(x)])), net.e[0]),
    "as a table, a head, and a layer": lambda net, x: (
        F.linear(torch.tanh(F.embedding(indices(x), net.w[4])), net.w[4]) @ net.w[4]
    ),
    "by convolutions that undo each other": lambda net, x: F.conv_transpose2d(
        torch.tanh(F.conv2d(maps(x), net.k[0], padding=1)), net.k[0]
    ),
    "by convolutions, the transposed one first": lambda net, x: F.conv2d(
        torch.tanh(F.conv_transpose2d(maps(x), net.k[1])), net.k[1]
    ),
    "flattened": lambda net, x: F.linear(
        F.conv2d(maps(x), net.k[2], padding=1).flatten(1)[:, :72], net.k[2].flatten(1)
    ),
}
SCHEMES = {"onnxruntime": ("w8a8", "w4g8", "w8a8d"), "openvino": ("w8a8", "w4g8", "w8a8dg32", "float")}
#: Largest root mean square difference by the spread. OpenVINO takes no ranges at run time for a second way of reading.
TOLERANCE, TOLERANCE_OF_RANGES = 0.01, 0.02


def indices(x: Tensor) -> Tensor:
    return x.abs().mul(4).long().clamp(max=15)[:, 0]


def maps(x: Tensor) -> Tensor:
    return x.reshape(-1, 8, 2, 2).repeat(1, 1, 2, 2)


def network() -> nn.Module:
    """A branch for each of READS; the rows and the columns of each weight differ a hundredfold and tenfold in size."""
    sizes = {"w": [(32, 32)] * 5, "n": [(32, 64), (32, 64)], "e": [(16, 32)], "k": [(8, 8, 3, 3)] * 3}
    parts = {name: nn.ParameterList(matrix(*shape) for shape in shapes) for name, shapes in sizes.items()}
    with torch.no_grad():
        for weight in (weight for weights in parts.values() for weight in weights):
            rows, columns, *rest = weight.shape
            weight.mul_(torch.logspace(-1, 1, rows).reshape(-1, *[1] * (weight.ndim - 1)))
            weight.mul_(torch.logspace(0, -1, columns).reshape(1, -1, *[1] * len(rest)) / 4)
    net = Net(lambda net, x: [read(net, x) for read in READS.values()], b=matrix(32), l=nn.Linear(32, 32), **parts)
    return net.eval()


def samples() -> Tensor:
    return torch.randn(32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(network(), samples()[:2])


def outputs_of(folder: Path, x: Tensor) -> list[Tensor]:
    """Every output of the file, from its runtime directly."""
    if (folder / "model.onnx").exists():
        session = pytest.importorskip("onnxruntime").InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    else:
        settings = {"EXECUTION_MODE_HINT": "ACCURACY"}
        compiled = pytest.importorskip("openvino").Core().compile_model(folder / "model.xml", "CPU", settings)
        outputs = compiled([x.numpy()]).to_tuple()
    return [torch.from_numpy(output) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "scheme"),
    [(name, each) for name, schemes in SCHEMES.items() for each in schemes],
)
def test_every_reader_gets_the_weight_as_simulated(graph, target, scheme, tmp_path):
    def taken(layer):
        return scheme if why_not(layer, Scheme.parse(scheme), find_target(target)) is None else "w8"

    plan = plan_of(graph.layers, {layer.name: taken(layer) for layer in graph.layers}, target)
    simulated = quantize(graph, plan, [samples()])
    export(simulated, tmp_path)
    with torch.no_grad():
        spreads = [output.std() for output in simulated(samples())]
        errors = {
            (name, count): float((found - wanted).square().mean().sqrt() / spread)
            for count in (1, 3, 16, 32)
            for name, found, wanted, spread in zip(
                READS, outputs_of(tmp_path, samples()[:count]), simulated(samples()[:count]), spreads, strict=True
            )
        }
    tolerance = TOLERANCE_OF_RANGES if "d" in scheme else TOLERANCE
    assert {place: error for place, error in errors.items() if error > tolerance} == {}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "packed"])
@pytest.mark.parametrize("scheme", ["w8a8", "w3", "w4g32", "float16", "float"])
def test_a_weight_that_is_rounded_for_each_reader_is_stored_once(target, scheme, tmp_path):
    """As weights in files are, which are read for each operator by itself."""
    runtime, x = find_target(target), torch.arange(6).reshape(3, 2)
    table = nn.Embedding(16, 32)
    network = Net(lambda net, x: F.linear(torch.tanh(net.e(x)), net.e.weight), e=table).eval()
    once = capture(network, x)
    apart = once.copy()
    (node,) = apart.module.graph.find_nodes(op="get_attr")
    with apart.module.graph.inserting_after(node):
        other = apart.module.graph.get_attr(node.target)
    other.meta = dict(node.meta)
    (reader, *_) = [user for user in node.users if user.op == "call_function"][1:]
    reader.replace_input_with(node, other)
    apart.module.recompile()
    found = []
    for name, graph in (("once", once), ("apart", apart)):
        plan = plan_of(graph.layers, scheme, target)
        export(quantize(graph, plan, [x]), tmp_path / name)
        runner = runtime.load(tmp_path / name, graph)
        found.append((runtime.stored(tmp_path / name), [torch.from_numpy(y) for y in runner.run([x.numpy()])]))
    (held, outputs), (held_apart, outputs_apart) = found
    assert held == held_apart
    assert all(map(torch.equal, outputs, outputs_apart))
