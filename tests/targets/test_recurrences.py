"""Recurrences in files: the runtime's own operator, whose outputs are those of torch with the stored weights."""

import copy

import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.target import find_target
from mixbit.quantization import calibrate, uniform_plan
from mixbit.quantization.quantizer import weight_quantizers
from tests.networks import Net, overflows

COUNT = 5
#: Name -> the module, and what runs it on [N, 7, 6] and returns, samples first.
RECURRENT = {
    "GRU": (lambda: nn.GRU(6, 4, batch_first=True), lambda net, x: net.a(x)[0]),
    "GRU, two layers both ways, samples second": (
        lambda: nn.GRU(6, 4, 2, bidirectional=True),
        lambda net, x: [each.transpose(0, 1) for each in net.a(x.transpose(0, 1))],
    ),
    "GRU, no bias, given state": (
        lambda: nn.GRU(6, 4, bias=False, batch_first=True),
        lambda net, x: net.a(x, x.mean(1)[None, :, :4].contiguous())[1][0],
    ),
    "LSTM, two layers": (lambda: nn.LSTM(6, 4, 2, batch_first=True), lambda net, x: net.a(x)[0]),
    "LSTM both ways, all results": (
        lambda: nn.LSTM(6, 4, batch_first=True, bidirectional=True),
        lambda net, x: [net.a(x)[0], *(each.transpose(0, 1) for each in net.a(x)[1])],
    ),
    "LSTM, given states": (
        lambda: nn.LSTM(6, 4, batch_first=True),
        lambda net, x: net.a(x, (x.new_zeros(1, x.size(0), 4), x.mean(1)[None, :, :4].contiguous()))[1][1][0],
    ),
    "RNN both ways": (lambda: nn.RNN(6, 4, batch_first=True, bidirectional=True), lambda net, x: net.a(x)[0]),
    "RNN, relu": (
        lambda: nn.RNN(6, 4, nonlinearity="relu"),
        lambda net, x: net.a(x.transpose(0, 1))[0].transpose(0, 1),
    ),
    "one step": (lambda: nn.GRU(6, 4, batch_first=True), lambda net, x: net.a(x[:, :1])[0]),
    "many steps": (lambda: nn.LSTM(6, 4, batch_first=True), lambda net, x: net.a(x.repeat(1, 20, 1))[0]),
    "LSTMCell": (lambda: nn.LSTMCell(6, 4), lambda net, x: net.a(x[:, 1], net.a(x[:, 0]))[1]),
    "GRUCell": (lambda: nn.GRUCell(6, 4), lambda net, x: net.a(x[:, 1], net.a(x[:, 0]))),
    "beside a layer": (
        lambda: nn.GRU(6, 4, batch_first=True),
        lambda net, x: net.a(x, net.b(x).mean(1)[None])[0] + net.b(x),
    ),
    "LSTM beside a layer": (lambda: nn.LSTM(6, 4, batch_first=True), lambda net, x: net.a(x)[0] + net.b(x)),
    "behind a layer": (lambda: nn.GRU(4, 4, batch_first=True), lambda net, x: net.c(net.a(net.b(x).relu())[0])),
}


def data(count=COUNT):
    return torch.randn(count, 7, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    nets = [Net(run, a=make(), b=nn.Linear(6, 4), c=nn.Linear(4, 4)) for make, run in RECURRENT.values()]
    return Net(lambda net, x: [branch(x) for branch in net.branches], branches=nn.ModuleList(nets)).eval()


@pytest.fixture(scope="module")
def graph(network):
    return mb.capture(network, data(2))


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "scheme", ["w8a8", "w3", "w4g2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float16", "float"))]
)
def test_a_file_returns_what_torch_does_with_the_stored_weights(target, scheme, network, graph, tmp_path):
    pytest.importorskip(target)
    scheme = "w6a8" if scheme == "w8a8" and overflows(target) else scheme
    plan, calibration = uniform_plan(graph, scheme, target=target), calibrate(graph, [data()])
    simulated = mb.quantize(graph, plan, calibration, bias_correction="off")
    mb.export(simulated, tmp_path)
    runtime, rounded = find_target(target), copy.deepcopy(network)
    runner = runtime.load(tmp_path, graph)
    for name, quantizer in weight_quantizers(simulated).items():
        rounded.get_parameter(name).data = quantizer(graph.parameter(name)).detach()
    truth = simulated if "a8" in scheme else rounded
    for count in (COUNT, 1, 3):
        with torch.no_grad():
            wanted = torch.utils._pytree.tree_leaves(truth(data(count)))
        for one, other in zip(runner.run([data(count).numpy()]), wanted, strict=True):
            error = float((torch.from_numpy(one) - other).square().mean().sqrt())
            assert error < (0.005 if "a8" in scheme else 1e-5) * float(other.std())
    executed, kinds = runner.executed(), ("RNNSeq",) if target == "openvino" else ("GRU", "LSTM", "RNN")
    assert all(executed[layer.name].startswith(kinds) for layer in graph.layers if ".a." in layer.name)
    if "a8" in scheme:
        assert all("int8" in executed[layer.name] for layer in graph.layers if ".a." not in layer.name)
    stored = runtime.stored(tmp_path)
    for layer in graph.layers:
        size = runtime.weight_bytes(layer.shape, layer.axis, plan.scheme(layer.name).weight)
        assert stored[layer.name].weight_bytes == size


def outputs_and_cells(outputs, states):
    return [outputs, states[1].transpose(0, 1)]


#: Name -> modules, and what runs them on [N, 7, 6]; none is a recurrence that a runtime has an operator for.
OTHERS = {
    "LSTM with projections": (
        {"a": lambda: nn.LSTM(6, 4, batch_first=True, bidirectional=True, proj_size=2)},
        lambda net, x: outputs_and_cells(*net.a(x[:, :3])),
    ),
    "a weight with one dimension more": (
        {"a": lambda: nn.Linear(6, 4)},
        lambda net, x: net.a(x[:, 0]) + (net.a.weight.unsqueeze(0) * x[:, :1]).sum(-1),
    ),
    "halves of a weight": (
        {"a": lambda: nn.Linear(6, 4)},
        lambda net, x: net.a(x[:, 0]) + x[:, 1] @ torch.cat(net.a.weight.chunk(2)[::-1]).t(),
    ),
    "a codebook": (
        {"a": lambda: nn.Embedding(9, 6)},
        lambda net, x: (
            (x.unsqueeze(2) - net.a.weight.unsqueeze(0)).square().sum(-1)
            + net.a((x[..., 0] > 0).long()).sum(-1)[..., None]
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_looks_like_a_recurrence_is_written_as_it_is(kind, target, tmp_path):
    pytest.importorskip(target)
    torch.manual_seed(0)
    modules, run = OTHERS[kind]
    graph = mb.capture(Net(run, **{name: make() for name, make in modules.items()}).eval(), data(2))
    assert {layer.name for layer in graph.layers} == {
        name for name, _ in graph.module.named_parameters() if "weight" in name
    }
    scheme = "w6a8" if overflows(target) else "w8a8"
    simulated = mb.quantize(graph, uniform_plan(graph, scheme, target=target), [data()])
    mb.export(simulated, tmp_path)
    runner = find_target(target).load(tmp_path, graph)
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(simulated(data()))
    for one, other in zip(runner.run([data().numpy()]), wanted, strict=True):
        assert float((torch.from_numpy(one) - other).square().mean().sqrt()) < 0.01 * float(other.std())
    assert set(runner.executed()) == {layer.name for layer in graph.layers}


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_file_takes_sequences_of_any_length(target, tmp_path):
    pytest.importorskip(target)
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(net.a(x)[0].transpose(0, 1))[0].transpose(0, 1),
        a=nn.GRU(6, 4, batch_first=True, bidirectional=True),
        b=nn.LSTM(8, 4),
    )
    graph = mb.capture(net.eval(), data(2), {0: [1]})
    simulated = mb.quantize(graph, uniform_plan(graph, "w8a8", target=target), [data()])
    mb.export(simulated, tmp_path)
    runner = find_target(target).load(tmp_path, graph)
    for length in (7, 1, 150):
        x = data().repeat(1, 22, 1)[:, :length]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(runner.run([x.numpy()])[0]), simulated(x), rtol=0, atol=1e-5)
