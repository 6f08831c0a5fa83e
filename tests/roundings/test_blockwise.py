import itertools
import logging
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Format
from mixbit.core.task import Task
from mixbit.graph.graph import model_fingerprint
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.quantizer import quantizers_of
from mixbit.roundings import _learned
from mixbit.roundings._input import RoundingInput
from mixbit.roundings.adaround import adaround
from mixbit.roundings.brecq import brecq
from mixbit.roundings.quantize import quantize
from mixbit.training import blockwise
from mixbit.training.blockwise import Passes, find_blocks, needed_later, squared_gradients, stretches
from tests.networks import Net, crude_scales

pytestmark = pytest.mark.usefixtures("anything")


def rounding_input(net, batches, scheme, **others):
    graph = mb.capture(net, batches[0])
    layers = graph.layers
    names = {layer.name: scheme for layer in layers}
    plan = mb.Plan(target="anything", fingerprint=model_fingerprint(layers), layers=names)
    simulated = quantize(graph, plan, batches)
    return RoundingInput(graph, simulated, [Inputs.of(batch) for batch in batches], Task.classification(), **others)


def residual_net():
    torch.manual_seed(0)

    def run(net, x):
        x = net.stem(x).relu()
        x = (x + net.b(net.a(x).relu())).relu()
        return net.head(x.mean((2, 3)))

    parts = {name: nn.Conv2d(inputs, 6, 3, padding=1) for name, inputs in (("stem", 3), ("a", 6), ("b", 6))}
    return Net(run, **parts, head=nn.Linear(6, 4))


def images(count=4):
    return [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def distance(given, rounded):
    with torch.no_grad():
        return sum(float((rounded(*x.args) - given.graph(*x.args)).square().mean()) for x in given.batches)


@pytest.mark.parametrize("seed", range(3))
def test_adaround_comes_near_the_best_of_all_roundings(seed):
    torch.manual_seed(seed)
    inputs = (torch.randn(200, 3) @ torch.randn(3, 8) + 0.3 * torch.randn(200, 8)).split(50)
    with crude_scales():
        given = rounding_input(Net(lambda net, x: net.a(x), a=nn.Linear(8, 4, bias=False)), inputs, "w3")
    (quantizer,) = quantizers_of(given.simulated)
    weight, x = given.graph.module.get_parameter("a.weight").detach().double(), torch.cat(inputs).double()
    scale = quantizer.scale.double().unsqueeze(1)

    def errors(weights):
        return (x @ (weights - weight).T).square().mean(0)

    best = torch.full((4,), torch.inf, dtype=torch.float64)
    for up in itertools.product((0.0, 1.0), repeat=8):
        best = best.minimum(errors(((weight / scale).floor() + torch.tensor(up)).clamp(-4, 3) * scale))
    learned = errors(adaround(given, iterations=400).module.get_parameter("a.weight").detach().double()).sum()
    nearest = errors(quantizer(weight.float()).detach().double()).sum()
    assert best.sum() <= learned < 0.6 * nearest
    assert learned - best.sum() < 0.5 * (nearest - best.sum())


@pytest.mark.parametrize("rounding", [pytest.param(adaround, marks=pytest.mark.slow), brecq])
@pytest.mark.parametrize(
    "scheme", ["w3a8", *(pytest.param(each, marks=pytest.mark.slow) for each in ("w2", "w4a4", "w3g3", "w3z"))]
)
def test_the_networks_outputs_come_nearer_to_the_float_networks(rounding, scheme):
    given = rounding_input(residual_net(), images(), scheme)
    assert distance(given, rounding(given, iterations=150)) < 0.95 * distance(given, given.simulated)


def test_steps_of_coarse_activations_are_learned_and_others_left():
    for scheme, changed in (("w4a4", True), ("w4a8", False)):
        given = rounding_input(residual_net(), images(), scheme)
        rounded = brecq(given, iterations=30)
        pairs = zip(quantizers_of(given.simulated), quantizers_of(rounded), strict=True)
        moved = [not torch.equal(a.scale, b.scale) for a, b in pairs if a.axis is None]
        assert any(moved) is changed
        assert all(not isinstance(one.scale, nn.Parameter) for one in quantizers_of(rounded))


def test_biases_are_whole_steps_again():
    rounded = brecq(rounding_input(residual_net(), images(), "w3a8"), iterations=30)
    by_name = {one.tensor: one for one in quantizers_of(rounded)}
    read = {layer.name: layer.inputs[0] for layer in rounded.layers}
    for name, tensor in read.items():
        step = by_name[name].scale * by_name[tensor].scale
        steps = rounded.module.get_parameter(name.replace("weight", "bias")).detach() / step
        assert (steps - steps.round()).abs().max() < 1e-3


def test_a_block_that_nearest_serves_better_keeps_it(monkeypatch):
    monkeypatch.setattr(_learned, "RATE", 100.0)  # learning that fails
    given = rounding_input(residual_net(), images(2), "w4a8")
    rounded = brecq(given, iterations=4)
    assert distance(given, rounded) == pytest.approx(distance(given, given.simulated))


def test_an_interrupted_run_goes_on_at_the_block(tmp_path, monkeypatch):
    given = rounding_input(residual_net(), images(2), "w3a4", folder=tmp_path / "parts")
    whole, learn, calls = brecq(given, iterations=20), blockwise.learn_block, []
    kept = sorted((tmp_path / "parts").iterdir())
    assert [path.name for path in kept] == ["block-0.safetensors", "block-1.safetensors", "block-2.safetensors"]
    kept[-1].unlink()
    monkeypatch.setattr(blockwise, "learn_block", lambda *args, **options: (calls.append(1), learn(*args, **options)))
    again = brecq(given, iterations=20)
    assert len(calls) == 1
    state = again.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.module.state_dict().items())
    brecq(given, iterations=21)
    assert len(calls) == 4, "other options, another question"


def test_activations_on_disk_give_the_same_rounding(caplog):
    given = rounding_input(residual_net(), images(2), "w3a8")
    with caplog.at_level(logging.WARNING, "mixbit"):
        on_disk = brecq(given, iterations=10, cache_gib=1e-6)
    assert "kept in" in caplog.text
    state = on_disk.module.state_dict()
    assert all(torch.equal(state[name], one) for name, one in brecq(given, iterations=10).module.state_dict().items())


def test_squared_gradients_are_those_of_each_samples_information():
    given = rounding_input(residual_net(), images(2), "w4a8")
    name = find_blocks(given.graph)[1].outputs[0]
    found = squared_gradients(given.case, (name,))
    net, generator, slow = residual_net(), torch.Generator().manual_seed(0), []
    for batch in images(2):
        x = net.stem(batch).relu()
        x = (x + net.b(net.a(x).relu())).relu().detach().requires_grad_()
        given.task.head.draw(net.head(x.mean((2, 3))), generator).backward()
        slow.append(x.grad.square())
    mean = torch.stack(slow).mean()
    for number, one in enumerate(slow):
        torch.testing.assert_close(found[number, name], one / mean)


def test_the_fisher_weighted_error_is_reduced():
    with crude_scales():
        given = rounding_input(residual_net(), images(), "w3a8")
    assert distance(given, brecq(given, iterations=120, fisher=True)) < 0.8 * distance(given, given.simulated)


def test_stretches_run_one_after_the_other_are_the_network():
    given = rounding_input(residual_net(), images(1), "w4a8")
    blocks = find_blocks(given.graph)
    for graph in (given.graph, given.simulated):
        (leaf,) = graph.leaves(given.batches[0])
        tensors, parts = {graph.module.graph.find_nodes(op="placeholder")[0].name: leaf}, stretches(graph, blocks)
        for part, later, block in zip(parts, needed_later(parts), blocks, strict=True):
            tensors |= part.run(tensors, (later & part.made) | set(block.outputs))
        torch.testing.assert_close(tensors[blocks[-1].outputs[0]], graph(leaf), rtol=0, atol=0)


def test_batches_of_different_lengths_are_learned_from():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.b(net.a(x).relu()).mean(1), a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    batches = [torch.randn(size, 4, 5) for size in (1, 7, 40)]
    given = rounding_input(net, batches, "w3")
    assert distance(given, brecq(given, iterations=150)) < distance(given, given.simulated)


def test_a_sparse_weight_keeps_its_zeros():
    given = rounding_input(residual_net(), images(2), "w3a8")
    for quantizer in quantizers_of(given.simulated):
        if quantizer.axis is not None:
            weight = given.simulated.module.get_parameter(quantizer.tensor)
            quantizer.mask = weight.detach().abs() > weight.detach().abs().median()
    rounded = brecq(given, iterations=60)
    for quantizer in quantizers_of(rounded):
        if quantizer.axis is not None:
            weight = rounded.module.get_parameter(quantizer.tensor).detach()
            assert not weight[~quantizer.mask].any()


def test_formats_of_floats_are_left_alone():
    assert Format(16, "tensor", symmetric=True, floating="float16").floating
    given = rounding_input(residual_net(), images(2), "float16")
    state = brecq(given, iterations=3).module.state_dict()
    assert all(torch.equal(state[name], one) for name, one in given.simulated.module.state_dict().items())


def test_batches_are_calibrated_and_learned_from():
    graph = mb.capture(residual_net(), images(1)[0])
    calibration = calibrate(graph, images(2))
    names = {layer.name: "w3a8" for layer in graph.layers}
    plan = mb.Plan(target="anything", fingerprint=model_fingerprint(graph.layers), layers=names)
    with pytest.raises(InvalidInput, match="rounding brecq: a calibration alone is not enough"):
        quantize(graph, plan, replace(calibration, batches=()), rounding="brecq")
    for batches in (images(2), calibration):
        quantize(graph, plan, batches, rounding="brecq:iterations=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "brecq: iterations=0: give a whole number, at least 1, as 500"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"drop": 2.0}, "drop=2.0: give at least 0 and at most 1"),
        ({"cache_gib": float("nan")}, "cache_gib=nan"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        brecq(rounding_input(residual_net(), images(1), "w3a8"), **options)


def test_biases_of_later_readers_of_a_shared_weight_stay_as_they_are():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.h(net.b(net.b(x).relu()).relu()), b=nn.Linear(6, 6), h=nn.Linear(6, 3))
    given = rounding_input(net, [torch.randn(16, 6) for _ in range(3)], "w2")
    rounded = brecq(given, iterations=20)
    (name,) = [name for name, _ in rounded.module.named_parameters() if name.startswith("b.bias_")]
    assert torch.equal(rounded.module.get_parameter(name), given.simulated.module.get_parameter(name))


def test_a_head_tied_to_an_embedding_keeps_its_nearest_rounding():
    torch.manual_seed(0)
    table = nn.Embedding(11, 8)
    net = Net(
        lambda net, x: nn.functional.linear(net.mix(net.e(x)), net.e.weight).mean(1), e=table, mix=nn.Linear(8, 8)
    )
    given = rounding_input(net, [torch.randint(11, (8, 4)) for _ in range(2)], "w3")
    rounded = brecq(given, iterations=20)
    assert torch.equal(rounded.module.get_parameter("e.weight"), given.simulated.module.get_parameter("e.weight"))
    assert not torch.equal(
        rounded.module.get_parameter("mix.weight"), given.simulated.module.get_parameter("mix.weight")
    )


def test_blocks_with_two_outputs_are_weighted_by_the_gradients_of_both():
    torch.manual_seed(0)
    parts = {"stem": nn.Linear(6, 6), "a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}
    net = Net(lambda net, x: (net.a(y := net.stem(x).relu()).tanh(), net.b(y)), **parts)
    given = rounding_input(net, [torch.randn(16, 6) for _ in range(3)], "w2")
    blocks = find_blocks(given.graph)
    found = squared_gradients(given.case, blocks[1].outputs)
    assert {name for _, name in found} == set(blocks[1].outputs)
    assert all(square.any() for square in found.values()), "every output counts"
    brecq(given, iterations=5, fisher=True)


def test_samples_are_drawn_along_their_own_dimension():
    torch.manual_seed(0)

    def run(net, x):  # time first inside
        return net.b(net.a(x.transpose(0, 1)).relu()).transpose(0, 1).mean(1)

    net = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    given = rounding_input(net, [torch.randn(size, 8, 5) for size in (8, 12)], "w3")
    blocks = find_blocks(given.graph)
    passes = Passes(given.case, 1.0, {})
    with closing(passes.cache):
        assert not any(map(passes.parts_by_rows, stretches(given.graph, blocks), (one.outputs for one in blocks)))
    brecq(given, iterations=20, batch_size=4)


def test_biases_are_whole_steps_where_steps_are_learned_without_them():
    given = rounding_input(residual_net(), images(2), "w4a4")
    rounded = brecq(replace(given, bias_correction=False), iterations=20)
    by_name = {one.tensor: one for one in quantizers_of(rounded)}
    for layer in rounded.layers:
        step = by_name[layer.name].scale * by_name[layer.inputs[0]].scale
        steps = rounded.module.get_parameter(layer.name.replace("weight", "bias")).detach() / step
        assert (steps - steps.round()).abs().max() < 1e-3


def test_other_masks_are_another_question(tmp_path):
    given = rounding_input(residual_net(), images(1), "w3a8", folder=tmp_path)
    digests = set()
    for share in (0.2, 0.8):
        for quantizer in quantizers_of(given.simulated):
            if quantizer.axis is not None:
                weight = given.simulated.module.get_parameter(quantizer.tensor).detach().abs()
                quantizer.mask = weight > weight.quantile(share)
        digests.add(given.question("brecq"))
    assert len(digests) == 2
