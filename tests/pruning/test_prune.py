"""Removing channels: against the user's own network with these channels at zero, and slow references."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.app.commands.quantize import print_result
from mixbit.core.batches import Inputs, split_all
from mixbit.core.errors import InvalidInput, UnsupportedModel
from mixbit.core.io.store import Store
from mixbit.core.target import find_target
from mixbit.graph import Graph
from mixbit.graph.graph import argument, tensor_of
from mixbit.pipeline import Settings
from mixbit.pruning.channels import Channels, find_channels
from mixbit.pruning.importance import DAMPING, LEAST_SHARE, choose, importance, make_up, predict
from mixbit.pruning.prune import Removal, without_channels
from mixbit.results.recheck import recheck
from mixbit.results.result import Result
from mixbit.targets.verify import artefact_runner
from mixbit.training import blockwise
from mixbit.training.blockwise import find_blocks
from tests.networks import (
    Attention,
    Net,
    Residual,
    assert_state_is,
    batches_of,
    plan_of,
    skip_if_sums_overflow,
    state_of,
)

IMAGES = (3, 8, 8)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
            tensor.uniform_(0.5, 1.5)
    return made


def padded_residual(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.a(x))
    y = F.relu(net.c(F.relu(net.b(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    return net.d(F.relu(y + net.e(y)).mean((2, 3)))


def gated(net: Any, x: Tensor) -> Tensor:
    x = F.hardswish(net.a(x))
    gate = torch.sigmoid(net.c(F.silu(net.b(F.adaptive_avg_pool2d(x, 1)))))
    return net.d((x * gate * net.scale).mean((2, 3)))


def sliced(net: Any, x: Tensor) -> Tensor:
    x = F.relu(net.a(x))
    return net.d(torch.cat([net.b(x[:, :3]), net.c(x[:, 3:])], 1).amax((2, 3)))


#: Name -> parts and the function; `d` makes the outputs.
NETWORKS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[Any, Tensor], Tensor]]] = {
    "chain": (
        lambda: {"a": conv(3, 8), "b": conv(8, 8, stride=2, bias=False), "d": nn.Linear(8, 4)},
        lambda net, x: net.d(F.relu(net.b(F.max_pool2d(F.relu(net.a(x)), 2))).mean((2, 3))),
    ),
    "residual": (
        lambda: {"a": conv(3, 8), "b": conv(8, 6), "c": conv(6, 8), "d": nn.Linear(8, 4)},
        lambda net, x: net.d(((y := net.a(x)) + net.c(F.relu(net.b(y)))).mean((2, 3))),
    ),
    "padded residual": (
        lambda: {
            "a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 10, stride=2), "d": nn.Linear(10, 4), "e": conv(10, 10)
        },
        padded_residual,
    ),
    "depthwise": (
        lambda: {"a": conv(3, 8), "b": conv(8, 8, groups=8), "c": conv(8, 6, 1), "d": nn.Linear(6, 4)},
        lambda net, x: net.d(F.relu6(net.c(F.relu6(net.b(F.relu6(net.a(x)))))).mean((2, 3))),
    ),
    "concatenation": (
        lambda: {"a": conv(3, 6), "b": conv(9, 4), "d": nn.Linear(10, 4)},
        lambda net, x: net.d(torch.cat([net.b(torch.cat([x, y := F.relu(net.a(x))], 1)), y], 1).mean((2, 3))),
    ),
    "flatten": (
        lambda: {"a": conv(3, 6, stride=2), "b": nn.Linear(96, 8), "d": nn.Linear(8, 4)},
        lambda net, x: net.d(F.gelu(net.b(F.relu(net.a(x)).flatten(1)))),
    ),
    "flatten, channels last": (
        lambda: {"a": conv(3, 6, stride=2), "b": nn.Linear(96, 8), "d": nn.Linear(8, 4)},
        lambda net, x: net.d(net.b(torch.tanh(net.a(x)).permute(0, 2, 3, 1).reshape(x.shape[0], -1))),
    ),
    "norm": (
        lambda: {"a": conv(3, 8), "n": norm(8), "b": conv(8, 6), "d": nn.Linear(6, 4)},
        lambda net, x: net.d(net.b(net.n(F.relu(net.a(x)))).mean((2, 3))),
    ),
    "transposed": (
        lambda: {"a": conv(3, 6), "b": nn.ConvTranspose2d(6, 5, 3, stride=2, output_padding=1), "d": nn.Linear(5, 4)},
        lambda net, x: net.d(F.relu(net.b(F.relu(net.a(x)))).mean((2, 3))),
    ),
    "gated": (
        lambda: {
            "a": conv(3, 8), "b": conv(8, 4, 1), "c": conv(4, 8, 1), "d": nn.Linear(8, 4),
            "scale": nn.Parameter(torch.rand(8, 1, 1)),
        },
        gated,
    ),
    "sliced": (lambda: {"a": conv(3, 7), "b": conv(3, 5), "c": conv(4, 5), "d": nn.Linear(10, 4)}, sliced),
    "sequence": (
        lambda: {"a": nn.Linear(8, 10), "b": nn.Linear(10, 10), "d": nn.Linear(10, 4)},
        lambda net, x: net.d(F.gelu(net.b(F.silu(net.a(x.flatten(1, 2)).unsqueeze(1)))).squeeze(1)).mean(1),
    ),
    "inner layer of a transformer": (
        lambda: {
            "a": nn.Linear(8, 6), "n": nn.LayerNorm(6), "b": nn.Linear(6, 9), "c": nn.Linear(9, 6), "d": nn.Linear(6, 4)
        },
        lambda net, x: net.d(((y := net.a(x.flatten(1, 2))) + net.c(F.gelu(net.b(net.n(y))))).mean(1)),
    ),
    "product": (
        lambda: {
            "w": nn.Parameter(torch.randn(192, 12) / 9), "v": nn.Parameter(torch.randn(9, 12)), "d": nn.Linear(9, 4)
        },
        lambda net, x: net.d(F.relu(F.relu(x.flatten(1) @ net.w) @ net.v.T)),
    ),
}  # fmt: skip


def network(name: str) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    parts, run = NETWORKS[name]
    return Net(run, **parts()).double().eval(), torch.randn(12, *IMAGES, dtype=torch.float64)


@functools.cache
def captured(name: str) -> tuple[Net, Tensor, Graph]:
    """The network, its inputs and its graph, made once; no test changes them."""
    model, x = network(name)
    return model, x, mb.capture(model, x)


def zeroed(model: nn.Module, channels: Channels, keep: Tensor) -> nn.Module:
    """The user's network whose layers have zeros for weights wherever they would read a removed channel."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    for reader in channels.readers:
        tensors[reader.layer.name].data.movedim(1 - reader.layer.axis, 0)[~keep[reader.units]] = 0
    return masked


def some_kept(channels: Channels, share: float = 0.4) -> Tensor:
    """[units] with that share of those gone that can go, at random."""
    losses = torch.rand(channels.num_units, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(channels.num_units, dtype=torch.bool)
    return choose(losses, channels.free, channels, everything, int(share * channels.free.sum()))


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_graph_is_the_network_with_zeros_for_these_channels(name: str) -> None:
    model, x, original = captured(name)
    channels = find_channels(original)
    keep = some_kept(channels)
    masked = zeroed(model, channels, keep)
    expected, graph = masked(x), mb.capture(masked, x)
    state = state_of(graph.module)
    smaller = mb.capture(without_channels(graph, keep).module, x)
    assert_state_is(graph.module, state)
    gone = Removal.between(graph, smaller)
    assert gone.parameters[1] < gone.parameters[0]
    assert gone.macs[1] < gone.macs[0]
    assert list(gone.layers) == [layer.name for layer in graph.layers]
    assert gone.layers["d.weight"] == (4, 4)
    assert not torch.allclose(expected, model(x), atol=1e-6)
    assert (smaller(x) - expected).abs().max() < 1e-10
    assert (smaller(x[:1]) - expected[:1]).abs().max() < 1e-10


def test_channels_that_are_read_are_not_cut() -> None:
    _, _, graph = captured("chain")
    with pytest.raises(UnsupportedModel, match=r"differs by .* from the graph with zeros in their place"):
        without_channels(graph, some_kept(find_channels(graph)))


def read_rows(model: nn.Module, x: Tensor, part: str, *, conv: bool) -> Tensor:
    """[N, channels] what a layer of the model reads, sample after sample, position after position."""
    seen: list[Tensor] = []
    handle = model.get_submodule(part).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x)
    handle.remove()
    return (seen[0].movedim(1, -1) if conv else seen[0]).flatten(0, -2).detach()


def missing(rows: Tensor, kept: Tensor, going: Tensor, *, centred: bool) -> Tensor:
    """[N, going] what ridge regression on the kept channels leaves of those that go, from its normal equations."""
    off = rows - rows.mean(0) if centred else rows
    moments = off.T @ off / len(off)
    there = kept | going
    ridge = DAMPING * moments.diagonal()[there].mean()
    inner = moments[kept][:, kept] + ridge * torch.eye(int(kept.sum()), dtype=torch.float64)
    return off[:, going] - off[:, kept] @ torch.linalg.solve(inner, moments[kept][:, going])


@pytest.mark.parametrize("name", ["chain", "depthwise", "sequence", "gated", "product"])
def test_channels_are_predicted_by_ridge_regression_on_the_others(name: str) -> None:
    model, x, graph = captured(name)
    channels, pairs = find_channels(graph), split_all(batches_of(x, 5), 1)
    keep = some_kept(channels, 0.2)
    predictions = predict(graph, channels, pairs, keep)
    (reader,) = [one for one in channels.readers if one.layer.name == "d.weight"]
    rows = read_rows(model, x, "d", conv=False)
    kept = keep[reader.units]
    found = predictions[reader.operation.node].missing(rows)
    assert (found[:, ~kept] == 0).all()
    for unit in kept.nonzero().flatten().tolist():
        one = torch.arange(len(kept)) == unit
        torch.testing.assert_close(found[:, one], missing(rows, kept & ~one, one, centred=True))


def test_outputs_without_a_bias_are_predicted_without_a_mean() -> None:
    model, x, graph = captured("product")
    channels, pairs = find_channels(graph), split_all(batches_of(x, 5), 1)
    (reader,) = [one for one in channels.readers if one.layer.name == "v"]
    everything = torch.ones(channels.num_units, dtype=torch.bool)
    rows = F.relu(x.flatten(1) @ model.w.detach())
    found = predict(graph, channels, pairs, everything)[reader.operation.node].missing(rows)
    one = torch.arange(12) == 3
    torch.testing.assert_close(found[:, one], missing(rows, ~one, one, centred=False))


def test_where_positions_are_channels_each_is_predicted_by_its_mean() -> None:
    model, x, graph = captured("flatten")
    channels, pairs = find_channels(graph), split_all(batches_of(x, 5), 1)
    (reader,) = [one for one in channels.readers if one.layer.name == "b.weight"]
    predictions = predict(graph, channels, pairs, torch.ones(channels.num_units, dtype=torch.bool))
    rows = read_rows(model, x, "b", conv=False)
    torch.testing.assert_close(predictions[reader.operation.node].missing(rows), rows - rows.mean(0))


@pytest.mark.parametrize("name", ["chain", "sequence", "flatten", "transposed", "residual"])
def test_layers_make_up_for_what_they_no_longer_read(name: str) -> None:
    """Linear layers lose the weights times what regression on the channels that stay leaves; means stay everywhere."""
    model, x = network(name)
    graph, masked = mb.capture(model, x), mb.capture(model, x)
    channels, pairs = find_channels(graph), split_all(batches_of(x, 5), 1)
    before, after = torch.ones(channels.num_units, dtype=torch.bool), some_kept(channels)
    make_up(masked, channels, predict(graph, channels, pairs, before), before, after)
    for reader in channels.readers:
        node, kept = graph.node(reader.operation.node), after[reader.units]
        weight = masked.module.get_parameter(reader.layer.name).movedim(1 - reader.layer.axis, 0)
        assert (weight[~kept] == 0).all()
        conv = not reader.operation.channels_last
        part = reader.layer.name.rpartition(".")[0]
        rows, read = read_rows(model, x, part, conv=conv), {}
        layer = model.get_submodule(part)
        handle = layer.register_forward_pre_hook(lambda _, given, read=read: read.update(x=given[0]))
        model(x)
        handle.remove()
        made = masked.node(node.name)
        changed = masked.module.get_parameter(reader.layer.name)
        bias = tensor_of(masked.module, argument(made, 2)).detach()
        change = masked.run(reader.operation, read["x"], changed).detach() - layer(read["x"]).detach()
        change = change + reader.operation.along_channels(bias, change.ndim)
        over = [dim for dim in range(change.ndim) if dim != (1 if conv else change.ndim - 1)]
        assert change.abs().max() > 1e-3, "some of it is lost"
        torch.testing.assert_close(change.mean(over), torch.zeros(change.shape[1 if conv else -1]).double())
        if not conv and name != "flatten":
            lost = missing(rows, kept, ~kept, centred=True) @ model.get_submodule(part).weight.detach()[:, ~kept].T
            torch.testing.assert_close(change.flatten(0, -2), -lost)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "flatten, channels last", "transposed", "sequence"])
def test_importance_is_the_fisher_information_of_masks(name: str) -> None:
    """Against autograd by one mask a unit, sample by sample, on the user's own network."""
    model, x = network(name)
    graph = mb.capture(model, x[:6])
    channels, pairs = find_channels(graph), split_all(batches_of(x[:6], 6), 1)
    predictions = predict(graph, channels, pairs, torch.ones(channels.num_units, dtype=torch.bool))
    directions = torch.randn(6, 4, dtype=torch.float64)
    task = mb.Task.regression()
    head = dataclasses.replace(task.head, draw=lambda outputs, _: (outputs.flatten(1) * directions).sum())
    task = dataclasses.replace(task, heads={"output": head})
    found = importance(graph, channels, pairs, predictions, task=task, seed=0)
    masks = torch.ones(channels.num_units, dtype=torch.float64, requires_grad=True)
    masked = copy.deepcopy(model)
    for reader in channels.readers:

        def read(_: nn.Module, given: Any, reader: Any = reader) -> Any:
            x, last = given[0], reader.operation.channels_last
            rows = x if last else x.movedim(1, -1)
            off = (1 - masks[reader.units]) * predictions[reader.operation.node].missing(rows.detach())
            return (x - (off if last else off.movedim(-1, 1)),)

        masked.get_submodule(reader.layer.name.rpartition(".")[0]).register_forward_pre_hook(read)
    slow = torch.zeros_like(found)
    for sample, direction in zip(x[:6].split(1), directions, strict=True):
        (gradient,) = torch.autograd.grad((masked(sample) * direction).sum(), masks)
        slow += gradient.square() / 2 / 6
    torch.testing.assert_close(found, slow)
    assert (found[channels.free] > 0).all()


def test_the_smaller_network_learns_block_by_block_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, graph = captured("padded residual")
    state = state_of(graph.module)

    def pruned(iterations: int, folder: Path | None = None) -> Graph:
        return mb.prune_channels(graph, batches_of(x, 5), share=0.4, iterations=iterations, folder=folder)

    @torch.no_grad()
    def distance(smaller: Graph) -> float:
        return float((smaller(x) - model(x)).square().mean())

    learned = pruned(60)
    assert distance(learned) < 0.8 * distance(pruned(0))
    assert_state_is(graph.module, state)
    saved: list[str] = []

    def put(store: Store, name: str, *given: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(name)
        put_part(store, name, *given)

    put_part = Store.put
    monkeypatch.setattr(Store, "put", put)
    with pytest.raises(KeyboardInterrupt):
        pruned(60, tmp_path)
    monkeypatch.setattr(Store, "put", put_part)
    learn, calls = blockwise.learn_block, []
    monkeypatch.setattr(
        blockwise, "learn_block", lambda *given, **options: (calls.append(given), learn(*given, **options))
    )
    again, wanted = pruned(60, tmp_path).module.state_dict(), learned.module.state_dict()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    assert len(calls) == len(find_blocks(graph)) - 2


@pytest.mark.parametrize("iterations", [-1, 1.5, True, "9"])
def test_iterations_out_of_range(iterations: Any) -> None:
    _, x, graph = captured("chain")
    with pytest.raises(InvalidInput, match=r"iterations="):
        mb.prune_channels(graph, [x], iterations=iterations)


def held(run: Callable[[Any, Tensor], Any], **parts: Any) -> Graph:
    torch.manual_seed(0)
    return mb.capture(Net(run, **parts).double().eval(), torch.randn(4, *IMAGES, dtype=torch.float64))


UNTOUCHABLE: dict[str, Callable[[], Graph]] = {
    "output": lambda: held(lambda net, x: net.a(x), a=conv(3, 4)),
    "added to the input": lambda: held(
        lambda net, x: net.d((net.a(x) + x).mean((2, 3))), a=conv(3, 3), d=nn.Linear(3, 4)
    ),
    "layer norm": lambda: held(
        lambda net, x: net.d(net.n(net.a(x).mean((2, 3)))), a=conv(3, 4), n=nn.LayerNorm(4), d=nn.Linear(4, 4)
    ),
    "softmax over channels": lambda: held(
        lambda net, x: net.d(net.a(x).softmax(1).mean((2, 3))), a=conv(3, 4), d=nn.Linear(4, 4)
    ),
    "grouped": lambda: held(
        lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=conv(4, 4, groups=2)
    ),
    "weight used twice": lambda: held(
        lambda net, x: net.d(net.b(net.b(x.flatten(1)))), b=nn.Linear(192, 192), d=nn.Linear(192, 4)
    ),
    "channels split into two dimensions": lambda: held(
        lambda net, x: net.d(net.a(x).view(-1, 2, 2, 8, 8).sum((1, 3))), a=conv(3, 4), d=nn.Linear(8, 4)
    ),
    "shuffled": lambda: held(
        lambda net, x: net.d(F.pixel_shuffle(net.a(x), 2)), a=conv(3, 4), d=conv(1, 4)
    ),
    "read by another dimension": lambda: held(lambda net, x: net.d(net.a(x)), a=conv(3, 4), d=nn.Linear(8, 4)),
    "attention": lambda: mb.capture(Attention().double().eval(), torch.randint(0, 6, (3, 5))),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOUCHABLE)
def test_what_cannot_be_followed_is_not_cut(name: str) -> None:
    graph = UNTOUCHABLE[name]()
    with pytest.raises(InvalidInput, match="no channels that can be cut"):
        mb.prune_channels(graph, [graph.example])


def test_choose_keeps_a_tenth_of_every_tensor_and_never_takes_more_than_asked() -> None:
    _, _, original = captured("concatenation")
    channels = find_channels(original)
    everything = torch.ones(channels.num_units, dtype=torch.bool)
    losses = torch.arange(channels.num_units).double()
    for wanted in (1, 3, 1000):
        keep = choose(losses, channels.free, channels, everything, wanted)
        assert 0 < int((~keep).sum()) <= wanted
        assert keep[~channels.free].all()
        for place in channels.tensors.values():
            assert keep[place.units].sum() >= max(1, LEAST_SHARE * len(place.units))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), True, "0.3", 1e-6])
def test_share_out_of_range(share: Any) -> None:
    _, x, graph = captured("chain")
    with pytest.raises(InvalidInput, match=r"share="):
        mb.prune_channels(graph, [x], share=share)


def test_quantized_graphs_and_unfit_batches_are_refused(anything: str) -> None:
    _, x, graph = captured("chain")
    with pytest.raises(InvalidInput, match=r"batch 1: input 0 has shape"):
        mb.prune_channels(graph, [x, x[:, :, :4]])
    quantized = mb.quantize(graph, plan_of(graph.layers, "w8a8"), [x])
    with pytest.raises(InvalidInput, match="quantized already"):
        mb.prune_channels(quantized, [x])


def test_inputs_whose_squares_are_not_finite_are_refused() -> None:
    _, x, graph = captured("chain")
    spoilt = x.clone()
    spoilt[1, 2, 3, 4] = 1e200
    with pytest.raises(InvalidInput, match=r"b.weight: .* leave out such samples"):
        mb.prune_channels(graph, [x, spoilt], iterations=0)


def test_what_is_given_is_checked_before_anything_runs(tmp_path: Path) -> None:
    model, x, graph = captured("chain")

    def failing() -> Any:
        yield x
        raise KeyError("image 7")

    calls: dict[str, Callable[[], Any]] = {
        "graph: a Net; give what capture": lambda: mb.prune_channels(model, [x]),  # type: ignore[arg-type]
        "task=3: give": lambda: mb.prune_channels(graph, [x], task=3),  # type: ignore[arg-type]
        "seed=1.5": lambda: mb.prune_channels(graph, [x], seed=1.5),  # type: ignore[arg-type]
        "folder='': give the path": lambda: mb.prune_channels(graph, [x], folder=""),
        "the data fails while iterated: KeyError: 'image 7'": lambda: mb.prune_channels(graph, failing()),
    }
    for message, call in calls.items():
        with pytest.raises(InvalidInput, match=message):
            call()
    with torch.no_grad():  # what learns asks for gradients itself
        mb.prune_channels(graph, [x], iterations=2, folder=str(tmp_path / "parts"))
    assert (tmp_path / "parts" / "recovered-0.safetensors").exists()


def test_losses_without_a_gradient_are_refused() -> None:
    _, x, graph = captured("chain")
    task = mb.Task.classification().with_loss(lambda outputs, _: (outputs.sum() * 0).sqrt())
    with pytest.raises(InvalidInput, match="the gradient of its loss is NaN or inf"):
        mb.prune_channels(graph, [(x, torch.zeros(12, dtype=torch.long))], task=task)


def test_a_network_of_single_channels_keeps_them() -> None:
    graph = held(lambda net, x: net.d(net.a(x).mean((2, 3))), a=conv(3, 1), d=nn.Linear(1, 4))
    with pytest.raises(InvalidInput, match="every tensor keeps a tenth of its channels, and one at least"):
        mb.prune_channels(graph, [graph.example], share=0.9)


@pytest.mark.slow
def test_same_seed_same_channels() -> None:
    _, x, graph = captured("residual")
    one, other = (mb.prune_channels(graph, [x], share=0.5, seed=7).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("target", ["onnxruntime", "litert", pytest.param("openvino", marks=pytest.mark.slow)])
def test_smaller_graph_is_measured_quantized_and_exported(target: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    graph = mb.capture(Residual().eval(), x)
    smaller = mb.prune_channels(graph, [x], share=0.4)
    sizes = []
    for number, one in enumerate((graph, smaller)):
        table = mb.measure(one, [x], target=target)
        plan = mb.search(table, mb.Budget(weight_ratio=0.3))
        skip_if_sums_overflow(target, plan)
        simulated = mb.quantize(one, plan, [x])
        mb.export(simulated, tmp_path / str(number))
        run = artefact_runner(find_target(target).load(tmp_path / str(number), one), one)
        torch.testing.assert_close(run(one.example), simulated(x), atol=1e-3, rtol=1e-3)
        sizes.append(sum(int(row.weight_bytes) for row in find_target(target).stored(tmp_path / str(number)).values()))
    assert sizes[1] < sizes[0]
    with pytest.raises(InvalidInput):
        smaller.check(Inputs.of(x[:, :1]), "batch")


@pytest.mark.slow
def test_pipeline_prunes_before_it_quantizes(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = network("residual")
    batches = [(torch.randn(8, *IMAGES), torch.randint(0, 4, (8,))) for _ in range(4)]
    settings, budget = Settings(prune_channels=0.4), mb.Budget(weight_ratio=0.3)
    made = mb.auto_quantize(
        model.float(), batches, target="onnxruntime", budget=budget, out=tmp_path / "out", settings=settings
    )
    made.comparison.check()
    pruned = Result.load(tmp_path / "out").pruned
    assert pruned is not None
    assert pruned == made.result.pruned
    before, after = (sum(pair[index] for pair in pruned.layers.values()) for index in (0, 1))
    assert after < before
    assert pruned.parameters[1] < pruned.parameters[0]
    assert pruned.pruned["divergence"] > 0
    assert {"accuracy"} == pruned.dense.keys()
    print_result(made.result)
    assert "output channels 26 -> " in capsys.readouterr().err
    assert recheck(tmp_path / "out").problems == ()


def test_pipeline_refuses_what_pruning_does_not_fit(tmp_path: Any) -> None:
    x, model, budget = torch.randn(4, 2, 8, 8), Residual().eval(), mb.Budget(mean_bits=8)

    def run(target: str, share: float, limit: Any) -> None:
        settings = Settings(prune_channels=share)
        mb.auto_quantize(model, [x], target=target, budget=limit, out=tmp_path / "out", settings=settings)

    with pytest.raises(InvalidInput, match="take another target"):
        run("packed", 0.3, budget)
    with pytest.raises(InvalidInput, match="share=1"):
        run("onnxruntime", 1, budget)
    with pytest.raises(InvalidInput, match="give a budget"):
        run("onnxruntime", 0.3, mb.Budget(max_drop=0.01))
    assert not (tmp_path / "out").exists()
