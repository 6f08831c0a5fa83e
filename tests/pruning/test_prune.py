"""Removing channels: against the user's own network with these channels at zero, and slow references."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.batches import split_all
from mixbit.errors import InvalidInput
from mixbit.evaluation import artefact_runner
from mixbit.printing import print_result
from mixbit.pruning.channels import Channels, find_channels
from mixbit.pruning.importance import Cut, importance, mean_outputs
from mixbit.pruning.prune import KEPT_EVERYWHERE, choose
from mixbit.recheck import recheck
from mixbit.result import Result
from mixbit.target import target_module
from mixbit.task import Inputs
from tests.networks import Attention, Net, Residual, assert_state_is, batches_of, plan_of, state_of

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


def zeroed(model: nn.Module, channels: Channels, keep: Tensor) -> nn.Module:
    """The user's network whose layers have zeros for weights wherever they would read a removed channel."""
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters())
    for reader in channels.readers:
        tensors[reader.layer.name].data.movedim(1 - reader.layer.axis, 0)[~keep[reader.units]] = 0
    return masked


@pytest.mark.parametrize("name", NETWORKS)
def test_smaller_graph_is_the_network_with_zeros_for_these_channels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(name)
    graph = mb.capture(model, x)
    state, seen = state_of(graph.module), {}
    monkeypatch.setattr("mixbit.pruning.prune._check_same", lambda *given: seen.update(channels=given[2], cut=given[3]))
    smaller = mb.prune_channels(graph, batches_of(x, 5), share=0.4, compensate=False)
    assert_state_is(graph.module, state)
    gone = mb.Removal.between(graph, smaller)
    assert gone.parameters[1] < gone.parameters[0]
    assert gone.macs[1] < gone.macs[0]
    assert list(gone.layers) == [layer.name for layer in mb.find_layers(graph)]
    assert gone.layers["d.weight"] == (4, 4)
    expected = zeroed(model, seen["channels"], seen["cut"].keep)(x)
    assert not torch.allclose(expected, model(x), atol=1e-6)
    assert (smaller(x) - expected).abs().max() < 1e-10
    assert (smaller(x[:1]) - expected[:1]).abs().max() < 1e-10


def test_biases_take_up_the_mean_of_what_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("mixbit.pruning.prune._check_same", lambda *given: seen.update(channels=given[2], cut=given[3]))
    for name in ("chain", "transposed"):
        model, x = network(name)
        graph = mb.capture(model, x)
        smaller = mb.prune_channels(graph, batches_of(x, 5), share=0.3)
        masked = zeroed(model, seen["channels"], seen["cut"].keep)
        assert (smaller(x) - masked(x)).abs().max() > 1e-4, "biases moved"
        means = mean_outputs(graph, seen["channels"], split_all(batches_of(x, 5), 1), Cut(seen["channels"].free | True))
        one, other = ({}, {})
        for made, into in ((model, one), (masked, other)):
            for part in ("b", "d"):
                getattr(made, part).register_forward_hook(
                    lambda _, read, out, part=part, into=into: into.update({part: (read[0], out)})
                )
        model(x)
        masked.b(one["b"][0])
        over = [dim for dim in range(one["b"][1].ndim) if dim != 1]
        gap = one["b"][1].mean(over) - other["b"][1].mean(over)
        reader = next(one for one in seen["channels"].readers if one.layer.name == "b.weight")
        gone = ~seen["cut"].keep[reader.units]
        torch.testing.assert_close(means[reader.operation.node][:, gone].sum(1), gap)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "flatten, channels last", "transposed", "sequence"])
@pytest.mark.parametrize("compensate", [False, True])
def test_importance_is_the_fisher_information_of_masks(name: str, compensate: bool) -> None:
    """Against autograd by one mask a unit, sample by sample, on the user's own network."""
    model, x = network(name)
    graph = mb.capture(model, x[:6])
    channels, pairs = find_channels(graph), split_all(batches_of(x[:6], 6), 1)
    none = Cut(torch.ones(channels.num_units, dtype=torch.bool))
    means = mean_outputs(graph, channels, pairs, none) if compensate else {}
    directions = torch.randn(6, 4, dtype=torch.float64)
    task = mb.Task.regression()
    task = mb.Task(task.name, lambda outputs, _: (outputs * directions).sum(), task.divergence, has_accuracy=False)
    found = importance(graph, channels, pairs, means, none, task=task, seed=0)
    masks = torch.ones(channels.num_units, dtype=torch.float64, requires_grad=True)
    masked = copy.deepcopy(model)
    for reader in channels.readers:
        part, operation = reader.layer.name.rpartition(".")[0], reader.operation

        def read(_: nn.Module, given: Any, reader: Any = reader, operation: Any = operation) -> Any:
            shape = (-1, *[1] * (0 if operation.channels_last else given[0].ndim - 2))
            return (given[0] * masks[reader.units].reshape(shape),)

        def shift(_: nn.Module, __: Any, out: Tensor, reader: Any = reader, operation: Any = operation) -> Tensor:
            taken = means[operation.node] @ (1 - masks[reader.units])
            return out + operation.along_channels(taken, out.ndim)

        masked.get_submodule(part).register_forward_pre_hook(read)
        if compensate:
            masked.get_submodule(part).register_forward_hook(shift)
    slow = torch.zeros_like(found)
    for sample, direction in zip(x[:6].split(1), directions, strict=True):
        (gradient,) = torch.autograd.grad((masked(sample) * direction).sum(), masks)
        slow += gradient.square() / 2 / 6
    torch.testing.assert_close(found, slow)
    assert (found[channels.free] > 0).all()


def held(run: Callable[[Any, Tensor], Any], **parts: Any) -> mb.Graph:
    torch.manual_seed(0)
    return mb.capture(Net(run, **parts).double().eval(), torch.randn(4, *IMAGES, dtype=torch.float64))


UNTOUCHABLE: dict[str, Callable[[], mb.Graph]] = {
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
    model, x = network("concatenation")
    channels = find_channels(mb.capture(model, x))
    everything = torch.ones(channels.num_units, dtype=torch.bool)
    losses = torch.arange(channels.num_units).double()
    for wanted in (1, 3, 1000):
        keep = choose(losses, channels.free, channels, everything, wanted)
        assert 0 < int((~keep).sum()) <= wanted
        assert keep[~channels.free].all()
        assert all(keep[units].sum() >= max(1, KEPT_EVERYWHERE * len(units)) for units in channels.tensors)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), True, "0.3", 1e-6])
def test_share_out_of_range(share: Any) -> None:
    model, x = network("chain")
    with pytest.raises(InvalidInput, match=r"share="):
        mb.prune_channels(mb.capture(model, x), [x], share=share)


def test_quantized_graphs_and_unfit_batches_are_refused(anything: str) -> None:
    model, x = network("chain")
    graph = mb.capture(model, x)
    with pytest.raises(InvalidInput, match=r"batch 1: input 0 has shape"):
        mb.prune_channels(graph, [x, x[:, :, :4]])
    quantized = mb.quantize(graph, plan_of(mb.find_layers(graph), "w8a8"), [x])
    with pytest.raises(InvalidInput, match="quantized already"):
        mb.prune_channels(quantized, [x])


def test_same_seed_same_channels() -> None:
    model, x = network("residual")
    graph = mb.capture(model, x)
    one, other = (mb.prune_channels(graph, [x], share=0.5, seed=7).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_smaller_graph_is_measured_quantized_and_exported(target: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    graph = mb.capture(Residual().eval(), x)
    smaller = mb.prune_channels(graph, [x], share=0.4)
    sizes = []
    for number, one in enumerate((graph, smaller)):
        table = mb.measure(one, [x], target=target)
        simulated = mb.quantize(one, mb.search(table, mb.Budget(weight_ratio=0.3)), [x])
        mb.export(simulated, target=target, path=tmp_path / str(number))
        run = artefact_runner(target_module(target).load(tmp_path / str(number), one), one, mb.Task.classification())
        torch.testing.assert_close(run(one.example), simulated(x), atol=1e-3, rtol=1e-3)
        sizes.append(
            sum(int(row.weight_bytes) for row in target_module(target).stored(tmp_path / str(number)).values())
        )
    assert sizes[1] < sizes[0]
    with pytest.raises(InvalidInput):
        smaller.check(Inputs.of(x[:, :1]), "batch")


def test_pipeline_prunes_before_it_quantizes(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = network("residual")
    batches = [(torch.randn(8, *IMAGES), torch.randint(0, 4, (8,))) for _ in range(4)]
    settings, budget = mb.Settings(prune_channels=0.4), mb.Budget(weight_ratio=0.3)
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
        settings = mb.Settings(prune_channels=share)
        mb.auto_quantize(model, [x], target=target, budget=limit, out=tmp_path / "out", settings=settings)

    with pytest.raises(InvalidInput, match="take another target"):
        run("packed", 0.3, budget)
    with pytest.raises(InvalidInput, match="share=1"):
        run("onnxruntime", 1, budget)
    with pytest.raises(InvalidInput, match="give a budget"):
        run("onnxruntime", 0.3, mb.MaxDrop(0.01))
    assert not (tmp_path / "out").exists()
