"""GPTQ on graphs, each layer against the plain loop on what the operator reads in the finished network."""

import dataclasses
import itertools
import logging
from importlib import import_module

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mixbit.core.errors import InvalidInput
from mixbit.core.task import Task
from mixbit.graph import walk
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer, Operation, argument
from mixbit.quantization.affine import along
from mixbit.quantization.quantizer import Quantizer
from mixbit.quantization.rows import rows_of
from mixbit.quantization.statistics import Moments, SampleMoments
from mixbit.roundings._input import RoundingInput
from mixbit.roundings.gptq import gptq
from mixbit.roundings.quantize import quantize
from tests import networks
from tests.networks import (
    OPERATORS,
    Attention,
    Net,
    Residual,
    assert_state_is,
    batches_of,
    captured_operator,
    plan_of,
    state_of,
)
from tests.roundings.test_compensate import nearest, slow

pytestmark = pytest.mark.usefixtures("anything")
COVERED = [name for name in OPERATORS if not name.startswith(("conv_transpose", "embedding"))]


def rounding_input(graph: Graph, x: Tensor, schemes: str | dict[str, str], size: int = 2, **options) -> RoundingInput:
    """What `quantize` gives a rounding."""
    given = []
    plan = plan_of(graph.layers, schemes)
    quantize(graph, plan, batches_of(x, size), rounding=lambda it: given.append(it) or it.simulated, **options)
    return given[0]


def tensors_read(graph: Graph, x: Tensor) -> dict[fx.Node, Tensor]:
    interpreter = fx.Interpreter(graph.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*graph.leaves(networks.Inputs.of(x)), enable_io_processing=False)
    return interpreter.env


def columns(graph: Graph, operation: Operation, weight: Tensor, axis: int, x: Tensor) -> Tensor:
    """[G, positions, columns] what the operator multiplies with each weight of a row, by running it on unit weights."""
    groups = operation.groups
    channels = weight.shape[axis]
    rows = torch.eye(weight.numel() // channels, dtype=weight.dtype)
    shape = weight.movedim(axis, 0).shape
    found = []
    for unit in rows:
        unit_weight = unit.expand(channels, -1).reshape(shape).movedim(0, axis).contiguous()
        output = graph.run(operation, x, unit_weight).movedim(-1 if operation.channels_last else 1, 0)
        found.append(output.reshape(groups, channels // groups, -1)[:, 0])
    return torch.stack(found, 2)


def parts_of(read: Tensor, batches: list[int]) -> list[Tensor]:
    """[groups, rows, columns] of at least four samples each, where there are so many: four parts of a batch at most."""
    parts, held = [], []
    for batch in read.unflatten(1, (sum(batches), -1)).split(batches, 1):
        held.append(batch)
        count = sum(part.shape[1] for part in held)
        if count < 4:
            continue
        num = min(4, count // 4, max(1, batch.shape[1] * batch.shape[2] // batch.shape[3])) if len(held) == 1 else 1
        parts += torch.cat(held, 1).split(-(-count // num), 1)
        held = []
    return [part.flatten(1, 2) for part in parts + ([torch.cat(held, 1)] if held else [])]


def shrunk(read: Tensor, batches: list[int], centred: bool) -> Tensor:
    """[groups, columns, columns] second moments, those around the mean drawn as Ledoit and Wolf say, group by group."""
    parts, found = parts_of(read, batches), []
    for rows, *few in zip(read, *parts, strict=True):
        shift, mean, unit = few[0].mean(0), rows.mean(0), torch.eye(rows.shape[1]).double()
        around = (rows - mean).T @ (rows - mean) / len(rows)
        whole = (rows - shift).T @ (rows - shift) / len(rows)
        errors = [len(part) * ((part - shift).T @ (part - shift) / len(part) - whole).square().sum() for part in few]
        error = float(sum(errors)) / max(1, len(few) - 1) / len(rows)
        distance = float((around - unit * around.diagonal().mean()).square().sum())
        share = 0.0 if len(few) == 1 or error <= 0 else min(1.0, error / distance) if distance else 1.0
        drawn = (1 - share) * around + share * unit * around.diagonal().mean()
        found.append(len(rows) * (drawn if centred else drawn + mean.outer(mean)))
    return torch.stack(found)


def expected_weight(
    given: RoundingInput, result: Graph, layer: Layer, x: Tensor, *, by_activation: bool, more: Tensor | float = 0.0
) -> Tensor:
    """The plain loop, for what the layer's operators read in the result, and more second moments."""
    env, weight = tensors_read(result, x), given.simulated.parameter(layer.name).detach()
    quantizer = result.module.get_submodule(f"mixbit_quantizers.weights.{layer.name}")
    hessian = more
    for operation in layer.operations:
        node = result.node(operation.node)
        read = columns(result, operation, weight, layer.axis, env[argument(node, operation.data)])
        centred = given.bias_correction and operation.takes_bias
        hessian = hessian + shrunk(read, [inputs.batch_size for inputs in given.batches], centred)
    groups = len(hessian)
    scale, zero_point = (
        along(factor, layer.axis, weight.shape)
        .expand_as(weight)
        .movedim(layer.axis, 0)
        .reshape(groups, -1, hessian.shape[2])
        for factor in (quantizer.scale, quantizer.zero_point)
    )
    rows = weight.movedim(layer.axis, 0)
    limits = quantizer.format.integer_range
    found = []
    for group in zip(rows.reshape(scale.shape), hessian, scale, zero_point, strict=True):
        tried = slow(*group, limits, damping=0.01, by_activation=by_activation)
        near = nearest(group[0], *group[2:], limits)
        for w, *both in zip(group[0], tried, near, strict=True):
            found.append(min(both, key=lambda q: float((q - w) @ group[1] @ (q - w))))
    return torch.stack(found).reshape(rows.shape).movedim(0, layer.axis)


@pytest.mark.parametrize("kind", COVERED)
def test_rows_times_weight_are_what_the_operator_returns(kind):
    _, x, graph = captured_operator(kind)
    (layer,) = graph.layers
    (operation,) = layer.operations
    node, weight = graph.node(operation.node), graph.parameter(layer.name).detach()
    read = tensors_read(graph, x)[argument(node, operation.data)]
    rows = torch.cat([rows for rows, _ in rows_of(node, operation, read, layer.shape[2:])], 1)
    torch.testing.assert_close(rows, columns(graph, operation, weight, layer.axis, read))


def test_few_samples_at_a_time_give_the_same_rows(monkeypatch):
    _, x, graph = captured_operator("conv2d")
    (operation,) = graph.layers[0].operations
    node = graph.node(operation.node)
    whole = list(rows_of(node, operation, x, (3, 3)))
    monkeypatch.setattr("mixbit.quantization.rows.FEW_ELEMENTS", 1)
    parts = list(rows_of(node, operation, x, (3, 3)))
    assert (len(whole), len(parts)) == (1, 3)
    assert torch.equal(torch.cat([rows for rows, _ in parts], 1), whole[0][0])
    assert [share for _, share in parts] == [1 / 3] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_keep_their_digits_beside_a_large_mean(dtype):
    x = torch.randn(2, 300, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1000
    moments = Moments()
    for part in x.to(dtype).split(70, 1):
        moments.update(part)
    x = x.to(dtype).double()
    torch.testing.assert_close(moments.mean, x.mean(1))
    torch.testing.assert_close(moments.hessian("layer", centred=False), x.mT @ x)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(moments.hessian("layer", centred=True), centred.mT @ centred, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_moments_of_few_samples_come_nearer_to_those_of_all(size, mean):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator).double() / 8 + torch.eye(24).double()
    shares, gains = [], []
    for count in (16, 64, 4096):
        # Three rows of a sample are the same: taken for samples of their own they would make errors look smaller.
        samples = torch.randn(1, count, 24, generator=generator).double() @ mixing + mean
        rows, moments = samples.repeat_interleave(3, 1), SampleMoments()
        for part in rows.split(3 * size, 1):
            moments.update(part, part.shape[1] / 3)
        shares.append(float(moments.shrinkage()))
        for centred in (True, False):
            around = mixing.T @ mixing + (0 if centred else mean**2)
            plain = moments.moments.hessian("layer", centred=centred)[0] / rows.shape[1]
            drawn = moments.hessian("layer", centred=centred)[0] / rows.shape[1]
            gains.append(float((drawn - around).norm() / (plain - around).norm()))
    assert min(shares[:2]) > 0.3
    assert 0 < shares[2] < 0.02
    assert gains[0] < 0.7
    assert gains[2] < 0.95
    assert max(gains) < 1.02


def test_of_one_sample_nothing_is_known_of_moments():
    moments = SampleMoments()
    moments.update(torch.randn(2, 9, 3), 1)
    assert torch.equal(moments.shrinkage(), torch.zeros(2).double())


@pytest.mark.parametrize(
    ("kind", "scheme"), list(zip(COVERED, itertools.cycle(["w3", "w2za8", "w3ta4"]), strict=False))
)
def test_every_operator_gets_what_the_plain_loop_finds(kind, scheme):
    _, x, graph = captured_operator(kind)
    given = rounding_input(graph, x, scheme)
    result = gptq(given)
    (layer,) = graph.layers
    expected = expected_weight(given, result, layer, x, by_activation=True)
    torch.testing.assert_close(result.parameter(layer.name).detach(), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("kind", ["matmul", "matmul, permuted", "linear", "grouped"])
def test_groups_share_scales_along_a_row(kind):
    torch.manual_seed(0)
    width = {"matmul, permuted": 2}.get(kind)
    if kind == "grouped":
        model, x, width = nn.Conv2d(8, 4, 1, groups=2).double(), torch.randn(6, 8, 3, 3).double(), 2
    elif kind == "linear":
        model, x, width = nn.Linear(8, 3).double(), torch.randn(9, 8).double(), 4
    else:
        _, x, _ = captured_operator(kind)
        w = nn.Parameter(torch.randn(x.shape[-1], x.shape[-1]).double())
        x = torch.cat([x, x * 0.5 + 1])
        width = {5: 5, 4: 2}[x.shape[-1]]
        model = Net((lambda net, x: x @ net.w.T) if "permuted" in kind else (lambda net, x: x @ net.w), w=w)
    graph = capture(model, x)
    given = rounding_input(graph, x, f"w3g{width}z")
    result = gptq(given, order="natural")
    (layer,) = graph.layers
    expected = expected_weight(given, result, layer, x, by_activation=False)
    torch.testing.assert_close(result.parameter(layer.name).detach(), expected, atol=1e-8, rtol=0)


def whole_networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(1)
    chain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    separate = Attention()
    separate.head = nn.Linear(4, 6)
    return {
        "chain": (chain.double(), torch.randn(12, 5).double()),
        "residual": (Residual().double().eval(), torch.randn(6, 2, 6, 6).double()),
        "attention": (separate.double(), torch.randint(0, 6, (10, 5))),
    }


@pytest.mark.parametrize("scheme", ["w3", "w3a8"])
@pytest.mark.parametrize("name", ["chain", "residual", "attention"])
def test_layers_are_rounded_for_what_they_read_in_the_finished_network(name, scheme):
    model, x = whole_networks()[name]
    graph = capture(model, x)
    given = rounding_input(graph, x, scheme, 4)
    result = gptq(given)
    for layer in graph.layers:
        weight = result.parameter(layer.name).detach()
        if layer.operations[0].input is None:
            assert torch.equal(weight, graph.parameter(layer.name))
            continue
        expected = expected_weight(given, result, layer, x, by_activation=True)
        torch.testing.assert_close(weight, expected, atol=1e-8, rtol=0, msg=layer.name)


@pytest.mark.parametrize("scheme", ["w2", "w2a8"])
def test_biases_take_off_the_mean_error(scheme):
    _, x, graph = captured_operator("conv2d")
    given = rounding_input(graph, x, scheme)
    result = gptq(given)
    (operation,) = graph.layers[0].operations
    node = result.node(operation.node)
    read = tensors_read(result, x)[argument(node, 0)]
    change = result.parameter("a.weight") - graph.parameter("a.weight")
    error = graph.run(operation, read, change).mean((0, 2, 3))
    expected = graph.parameter("a.bias") - error
    step = 0.0
    if scheme.endswith("a8"):
        quantizers = {one.tensor: one for one in result.module.modules() if isinstance(one, Quantizer)}
        step = quantizers[operation.input].scale * quantizers["a.weight"].scale
        expected = torch.round(expected / step) * step
    torch.testing.assert_close(result.parameter("a.bias").detach(), expected.detach(), atol=1e-10, rtol=0)


def test_without_bias_correction_rows_keep_their_mean_and_biases_stay():
    _, x, graph = captured_operator("linear, 3 dimensions")
    given = rounding_input(graph, x, "w3", bias_correction="off")
    result = gptq(given)
    (layer,) = graph.layers
    torch.testing.assert_close(
        result.parameter(layer.name).detach(),
        expected_weight(given, result, layer, x, by_activation=True),
        atol=1e-8,
        rtol=0,
    )
    assert torch.equal(result.parameter("a.bias"), graph.parameter("a.bias"))


def twice(net: Net, x: Tensor) -> Tensor:
    return net.a(torch.tanh(net.b(torch.tanh(net.a(x)))))


def test_a_weight_read_twice_counts_all_that_reads_it():
    torch.manual_seed(2)
    x = torch.randn(16, 5).double()
    graph = capture(Net(twice, a=nn.Linear(5, 5).double(), b=nn.Linear(5, 5).double()), x)
    given = rounding_input(graph, x, "w3", 5)
    result = gptq(given)
    shared, other = graph.layers
    # The shared one is rounded first, in the network as it is then: with itself and the other rounded to the nearest.
    expected = expected_weight(given, given.simulated, shared, x, by_activation=True)
    torch.testing.assert_close(result.parameter(shared.name).detach(), expected, atol=1e-8, rtol=0)
    expected = expected_weight(given, result, other, x, by_activation=True)
    torch.testing.assert_close(result.parameter(other.name).detach(), expected, atol=1e-8, rtol=0)


class Words(nn.Module):
    """A table of 60 words that is looked up, and the head over them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.between = nn.Embedding(60, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.between(self.table(ids)).tanh(), self.table.weight)


def test_a_head_tied_to_an_embedding_is_rounded_for_what_the_head_reads_and_for_what_is_looked_up():
    torch.manual_seed(3)
    ids, model = torch.randint(0, 60, (10, 5)), Words().double()
    graph = capture(model, ids)
    given = rounding_input(graph, ids, "w3", 4, task=Task.language())
    tied, _ = graph.layers
    generator, squares, norm = torch.Generator().manual_seed(given.seed), torch.zeros(8, 8).double(), 0.0
    for inputs in given.batches:  # the gradients of a label drawn for each sample, by plain torch
        looked_up = model.table(inputs.args[0]).detach().requires_grad_()
        logits = F.linear(model.between(looked_up).tanh(), model.table.weight)
        value = given.task.information(logits, None, generator)
        rows, slopes = torch.autograd.grad(value, [looked_up, logits])
        squares += rows.reshape(-1, 8).T @ rows.reshape(-1, 8)
        norm += float(slopes.square().sum())
    head = dataclasses.replace(tied, operations=tied.operations[1:])
    more = 50 / norm * squares.unsqueeze(0)
    expected = expected_weight(given, given.simulated, head, ids, by_activation=True, more=more)
    found = gptq(given).parameter(tied.name).detach()
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)
    assert not torch.equal(found, expected_weight(given, given.simulated, head, ids, by_activation=True))


def test_a_matrix_read_from_both_sides_counts_the_side_of_its_channels():
    torch.manual_seed(4)
    x = torch.randn(12, 4).double()
    graph = capture(Net(lambda net, x: F.linear(x, net.w) @ net.w, w=nn.Parameter(torch.randn(4, 4).double())), x)
    given = rounding_input(graph, x, "w3", 4)
    (layer,) = graph.layers
    first = dataclasses.replace(layer, operations=layer.operations[:1])
    expected = expected_weight(given, given.simulated, first, x, by_activation=True)
    torch.testing.assert_close(gptq(given).parameter("w").detach(), expected, atol=1e-8, rtol=0)


def test_dead_inputs_and_unequal_batches():
    torch.manual_seed(5)
    x = torch.randn(11, 6).double()
    x[:, 2] = 0
    model = nn.Linear(6, 4).double()
    graph = capture(model, x)
    given = rounding_input(graph, x, "w3", 4)
    result = gptq(given)
    found, near = result.parameter("weight"), given.simulated
    quantizer = near.module.get_submodule("mixbit_quantizers.weights.weight")
    assert torch.equal(found[:, 2], quantizer(near.parameter("weight"))[:, 2])
    assert torch.equal(gptq(rounding_input(graph, x, "w3", 11)).module.weight, found)


def test_sparse_formats_keep_their_zeros():
    _, x, graph = captured_operator("linear, 3 dimensions")
    x = torch.randn(40, *x.shape[1:], generator=torch.Generator().manual_seed(0)).double().cumsum(-1)
    given = rounding_input(graph, x, "w4")
    quantizer = given.simulated.module.get_submodule("mixbit_quantizers.weights.a.weight")
    weight = graph.parameter("a.weight").detach()
    quantizer.mask = weight.abs() >= weight.abs().median()
    found = gptq(given).parameter("a.weight")
    assert (found[~quantizer.mask] == 0).all()
    assert torch.equal(quantizer(found), found)
    assert not torch.equal(found, quantizer(weight))


def test_floats_stay():
    model, x = whole_networks()["chain"]
    graph = capture(model, x)
    given = rounding_input(graph, x, {"0.weight": "float16", "2.weight": "float", "4.weight": "w3"})
    result = gptq(given)
    for name in ("0.weight", "2.weight"):
        assert torch.equal(result.parameter(name), graph.parameter(name))


def test_tensors_between_layers_go_to_files_beyond_the_limit(monkeypatch, tmp_path, caplog):
    model, x = whole_networks()["residual"]
    given = rounding_input(capture(model, x), x, "w3a8")
    expected = state_of(gptq(given).module)["tensors"]
    monkeypatch.setattr(walk, "MOST_BYTES", 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING, "mixbit"):
        found = state_of(gptq(given).module)["tensors"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert f"activations are kept in files in {tmp_path}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def interrupted(monkeypatch, after: int) -> None:
    calls, module = [], import_module("mixbit.roundings.gptq")

    def stop(*given, **options):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return compensated(*given, **options)

    compensated = module.compensated
    monkeypatch.setattr(module, "compensated", stop)


def test_an_interrupted_run_goes_on_at_the_layer(monkeypatch, tmp_path):
    model, x = whole_networks()["chain"]
    graph = capture(model, x)
    given = dataclasses.replace(rounding_input(graph, x, "w3a8", 4), folder=tmp_path / "parts")
    expected = state_of(gptq(dataclasses.replace(given, folder=None)).module)["tensors"]
    with monkeypatch.context() as patched:
        interrupted(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            gptq(given)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    with monkeypatch.context() as patched:
        interrupted(patched, 1)  # one layer is left
        found = state_of(gptq(given).module)["tensors"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with monkeypatch.context() as patched:
        interrupted(patched, 0)  # nothing is left
        found = state_of(gptq(given).module)["tensors"]
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        for other in (dataclasses.replace(given, batches=given.batches[1:]), dataclasses.replace(given, seed=1)):
            with pytest.raises(KeyboardInterrupt):
                gptq(other)
        with pytest.raises(KeyboardInterrupt):
            gptq(given, damping=0.02)


def test_a_file_that_is_no_part_is_named(tmp_path):
    _, x, graph = captured_operator("linear")
    (tmp_path / "gptq-0000.safetensors").write_text("something else")
    with pytest.raises(InvalidInput, match=r"gptq-0000.*delete it"):
        gptq(dataclasses.replace(rounding_input(graph, x, "w3"), folder=tmp_path))


def test_a_network_of_embeddings_alone_stays():
    _, x, graph = captured_operator("embedding")
    given = rounding_input(graph, x, "w3")
    result = gptq(given)
    assert torch.equal(result.parameter("a.weight"), graph.parameter("a.weight"))


def test_bad_options_are_refused():
    _, x, graph = captured_operator("linear")
    given = rounding_input(graph, x, "w3")
    for damping in (-1.0, float("nan")):
        with pytest.raises(InvalidInput, match="damping"):
            gptq(given, damping=damping)
    with pytest.raises(InvalidInput, match="no batch"):
        gptq(dataclasses.replace(given, batches=[]))
    with pytest.raises(InvalidInput, match="order 'sideways' is unknown; known: activation, natural"):
        quantize(graph, plan_of(graph.layers, "w3"), batches_of(x, 2), rounding="gptq:order=sideways")


def test_options_are_read_and_the_graphs_stay():
    _, x, graph = captured_operator("conv1d")
    before = state_of(graph.module)
    plan = plan_of(graph.layers, "w2a8")
    found = quantize(graph, plan, batches_of(x, 2), rounding="gptq:damping=0.5,order=natural")
    expected = gptq(rounding_input(graph, x, "w2a8"), damping=0.5, order="natural")
    assert torch.equal(found.parameter("a.weight"), expected.parameter("a.weight"))
    assert_state_is(graph.module, before)


def test_a_tied_head_whose_outputs_fit_no_task_is_rounded_for_what_it_reads():
    torch.manual_seed(3)
    ids = torch.randint(0, 60, (10, 5))
    graph = capture(Words().double(), ids)
    given = rounding_input(graph, ids, "w3", 4)  # classification, which wants [N, C]
    tied, _ = graph.layers
    head = dataclasses.replace(tied, operations=tied.operations[1:])
    expected = expected_weight(given, given.simulated, head, ids, by_activation=True)
    torch.testing.assert_close(gptq(given).parameter(tied.name).detach(), expected, atol=1e-8, rtol=0)


class InThree(nn.Module):
    """A product with a matrix, as the sum of three with a third of its columns each."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.thirds = nn.ModuleList(nn.Linear(4, 5, bias=False) for _ in range(3))
        for third, weight in zip(self.thirds, whole.weight.detach().split(4, 1), strict=True):
            third.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        return sum(third(part) for third, part in zip(self.thirds, x.split(4, 1), strict=True))


def test_columns_with_too_many_moments_are_rounded_in_parts(monkeypatch):
    torch.manual_seed(3)
    whole, x = nn.Linear(12, 5, bias=False), torch.randn(40, 12, dtype=torch.float64) @ torch.randn(12, 12).double()
    graphs = [capture(net.double(), x[:2]) for net in (InThree(whole), whole)]
    thirds = gptq(rounding_input(graphs[0], x, "w3", 8))
    alone = gptq(rounding_input(graphs[1], x, "w3g4", 8))
    monkeypatch.setattr(import_module("mixbit.roundings.gptq"), "MOST_MOMENTS", 48)
    found = gptq(rounding_input(graphs[1], x, "w3g4", 8)).parameter("weight").detach()
    expected = torch.cat([thirds.parameter(layer.name).detach() for layer in graphs[0].layers], 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert not torch.equal(found, alone.parameter("weight").detach())
