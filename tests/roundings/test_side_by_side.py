"""Blocks learned apart from one another, on what the float network returns: in any order, by several processes."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core import Engine, InvalidInput, Task
from mixbit.core.batches import Inputs
from mixbit.graph.graph import model_fingerprint
from mixbit.quantization import calibrate, uniform_plan
from mixbit.quantization.quantizer import activation_quantizers, weight_quantizers
from mixbit.quantization.shared import Shared
from mixbit.roundings import _learned
from mixbit.roundings.adaround import adaround
from mixbit.roundings.brecq import brecq
from mixbit.roundings.quantize import quantize
from mixbit.training import side_by_side
from mixbit.training.blockwise import Schedule, find_blocks, single_layers
from tests.networks import Net, crude_scales
from tests.subjects import small_subject

OPTIONS = "inputs=float,iterations=40"


def setup(task=None):
    graph, batches, *_ = small_subject()
    return (graph, batches) if task is None else (graph, batches, task)


def rounded(rounding, shared, *, folder=None, scheme="w3a4"):
    graph, batches = setup()
    plan = uniform_plan(graph, scheme, target="packed")
    with crude_scales():
        calibration = calibrate(graph, batches)
        return quantize(graph, plan, calibration, rounding=rounding, folder=folder, shared=shared)


def assert_same_state(found, wanted):
    state = found.module.state_dict()
    for name, tensor in wanted.module.state_dict().items():
        assert torch.equal(state[name], tensor), name


def changed_layers(found, nearest):
    names = {layer.name for layer in nearest.layers}
    return [name for name in sorted(names) if not torch.equal(found.parameter(name), nearest.parameter(name))]


def rounding_input(net, batches, scheme="w3a8", seed=0):
    """What `quantize` gives a rounding."""
    graph, given = mb.capture(net, batches[0]), []
    names = {layer.name: scheme for layer in graph.layers}
    plan = mb.Plan(target="anything", fingerprint=model_fingerprint(graph.layers), layers=names)
    with crude_scales():
        quantize(graph, plan, batches, rounding=lambda it: given.append(it) or it.simulated, seed=seed)
    return given[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounding", "scheme"),
    [(f"brecq:{OPTIONS},fisher=true", "w3a4"), ("adaround:inputs=float,iterations=200", "w2a8")],
)
def test_two_processes_go_on_to_the_bits_of_one(rounding, scheme, tmp_path, monkeypatch):
    round_ = functools.partial(rounded, rounding, scheme=scheme)
    whole = round_(Shared(setup, Engine()))
    assert len(changed_layers(whole, rounded("nearest", None, scheme=scheme))) >= 3
    learn, calls = side_by_side.learn_block, []

    def until_interrupted(*given, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(given)
        learn(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(side_by_side, "learn_block", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            round_(Shared(setup, Engine()), folder=tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["block-0.safetensors"]
    assert_same_state(round_(Shared(setup, Engine(processes=2)), folder=tmp_path / "parts"), whole)
    monkeypatch.setattr(side_by_side, "learn_block", until_interrupted)
    assert_same_state(round_(None, folder=tmp_path / "parts"), whole)  # all blocks are stored


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(processes=2), Engine(processes=4), Engine("ray", 2), Engine("ray", 4)])
def test_every_engine_learns_the_bits_of_one_process(engine):
    pytest.importorskip("ray")
    rounding = f"brecq:{OPTIONS}"
    assert_same_state(rounded(rounding, Shared(setup, engine)), rounded(rounding, Shared(setup, Engine())))


@pytest.mark.slow
def test_another_task_in_a_worker_is_named():
    shared = Shared(functools.partial(setup, Task.regression()), Engine(processes=2))
    with pytest.raises(InvalidInput, match=r"setup: returns other task than at the caller"):
        rounded(f"brecq:{OPTIONS}", shared)


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("scheme", ["w3a8", "w3a4"])
def test_each_layer_learns_what_it_does_as_a_network_of_its_own(scheme):
    torch.manual_seed(0)
    parts = {name: nn.Linear(8, 8) for name in ("a", "b", "c")}
    net = Net(lambda net, x: net.c(net.b(net.a(x).tanh()).tanh()).tanh(), **parts)
    x = [torch.randn(32, 8) @ torch.randn(8, 8) for _ in range(2)]
    learned = adaround(rounding_input(net, x, scheme), iterations=60, inputs="float")
    with torch.no_grad():
        for number, (name, part) in enumerate(parts.items()):
            alone = rounding_input(
                Net(lambda net, x, name=name: getattr(net, name)(x).tanh(), **{name: part}), x, scheme, number
            )
            wanted = adaround(alone, iterations=60)  # a single block: nothing before it is rounded
            for parameter in (f"{name}.weight", f"{name}.bias"):
                torch.testing.assert_close(learned.parameter(parameter), wanted.parameter(parameter), rtol=0, atol=0)
            assert not torch.equal(wanted.parameter(f"{name}.weight"), alone.simulated.parameter(f"{name}.weight"))
            x = [part(each).tanh() for each in x]


def residual() -> Any:
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(6, 6), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "head": nn.Linear(6, 3)}

    def run(net, x):
        x = net.stem(x).relu()
        return net.head((x + net.b(net.a(x).relu())).relu())

    return Net(run, **parts)


@pytest.mark.usefixtures("anything")
def test_a_block_reads_float_tensors_through_the_quantizers_of_blocks_before():
    net, x = residual(), [torch.randn(16, 6) for _ in range(2)]
    given = rounding_input(net, x, "w4a4")
    learn = side_by_side.SideBySide(
        given.case, given.simulated, single_layers(given.graph), lambda *_: None, Schedule(1, 8, 1.0)
    )
    weights, reads = weight_quantizers(given.simulated), activation_quantizers(given.simulated)
    (part,) = [part for part, block in zip(learn.parts, learn.blocks, strict=True) if block.layers == ("head.weight",)]
    with torch.no_grad():
        y = net.stem(x[0]).relu()
        u = net.b(net.a(y).relu())
        (name,) = [name for name in reads if torch.equal(_node(given.graph, name, x[0]), y)]
        tensors = {each: _node(given.graph, each, x[0]) for each in part.inputs}
        assert any(torch.equal(each, y) for each in tensors.values()), "not what a quantizer makes of it"
        z = (reads[name](y) + u).relu()
        (own,) = [each for each in reads if torch.equal(_node(given.graph, each, x[0]), (y + u).relu())]
        bias = given.simulated.parameter("head.bias")
        wanted = nn.functional.linear(reads[own](z), weights["head.weight"](net.head.weight), bias)
        (output,) = learn.blocks[-1].outputs
        torch.testing.assert_close(part.run(tensors, [output])[output], wanted)


def _node(graph, name, x):
    """The tensor of a node of the float graph."""
    interpreter = torch.fx.Interpreter(graph.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*graph.leaves(Inputs.of(x)), enable_io_processing=False)
    return interpreter.env[graph.node(name)]


@pytest.mark.usefixtures("anything")
def test_the_order_of_blocks_is_all_one_and_the_graph_stays():
    given = rounding_input(residual(), [torch.randn(16, 6) for _ in range(2)], "w3a4")
    before = {name: tensor.clone() for name, tensor in given.simulated.module.state_dict().items()}
    work = functools.partial(_learned._learner, "layers", Schedule(30, 8, 1.0), 0.5)
    in_order = [work(given)(number) for number in range(4)]
    learn = work(given)
    assert {number: learn(number) for number in (2, 3, 0, 2, 1)} == dict(enumerate(in_order))
    assert len(set(in_order)) == 4
    assert all(torch.equal(before[name], each) for name, each in given.simulated.module.state_dict().items())


@pytest.mark.usefixtures("anything")
@pytest.mark.parametrize("rounding", [adaround, brecq])
def test_blocks_come_nearer_to_the_float_network_than_the_nearest_rounding(rounding):
    x = [torch.randn(32, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    given = rounding_input(residual(), x, "w3a8")
    learned = rounding(given, iterations=150, inputs="float")
    assert len(find_blocks(given.graph)) == 3

    def distance(graph):
        with torch.no_grad():
            return sum(float((graph(each) - given.graph(each)).square().mean()) for each in x)

    assert distance(learned) < 0.95 * distance(given.simulated)


@pytest.mark.parametrize(
    ("rounding", "reason"),
    [
        ("nearest", "it learns no blocks"),
        ("gptq", "it learns no blocks"),
        ("brecq", "each of its blocks waits for those before it"),
        ("adaround:inputs=quantized", "each of its blocks waits for those before it"),
    ],
)
def test_what_is_not_shared_out_is_refused_with_the_way_out(rounding, reason):
    shared = Shared(setup, Engine(processes=2))
    way_out = "take adaround:inputs=float or brecq:inputs=float, or leave shared out"
    with pytest.raises(InvalidInput, match=f"rounding {rounding}: is not shared out, since {reason}; {way_out}"):
        rounded(rounding, shared)


def test_inputs_are_float_or_quantized():
    with pytest.raises(InvalidInput, match="inputs"):
        rounded("brecq:inputs=real", None)


def test_weights_are_shared_by_a_partial_too():
    found = rounded(functools.partial(brecq, inputs="float", iterations=5), Shared(setup, Engine()))
    assert_same_state(found, rounded("brecq:inputs=float,iterations=5", Shared(setup, Engine())))
