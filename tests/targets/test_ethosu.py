"""Target ethosu: files that Vela compiles, as large as predicted from their integers, run by LiteRT as simulated."""

import functools
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.budget import Budget
from mixbit.core.errors import InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.metrics.measure import measure
from mixbit.quantization.calibrate import calibrate
from mixbit.quantization.quantizer import weight_quantizers
from mixbit.roundings.quantize import quantize
from mixbit.searches.search import search
from mixbit.targets import _npu85_coding as coding85, _npu_coding as coding
from mixbit.targets._npu_kernels import is_depthwise, kernels
from mixbit.targets.export import export
from mixbit.targets.verify import predicted_bytes, verify
from tests.networks import Net, plan_of

pytest.importorskip("ai_edge_litert")
pytest.importorskip("ethosu.vela")
ETHOSU = find_target("ethosu")


def images(count=16, channels=16, size=8):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def written(network, x, scheme, folder, target=ETHOSU):
    """The simulation, and what the target loads of its files; weights are normal, as trained ones nearly are."""
    torch.manual_seed(0)
    model = network().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    graph = capture(model, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme, target.name), [x])
    export(simulated, folder)
    return simulated, target.load(folder)


#: Networks of one layer, by how their weights are sent to the NPU.
LAYERS = {
    "kernels first": lambda: nn.Conv2d(16, 32, 3, padding=1),
    "channels first": lambda: nn.Conv2d(16, 64, 1),
    "few channels": lambda: nn.Conv2d(16, 20, 5),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, groups=16),
    "matrix": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 50)),
}


@pytest.mark.parametrize("bits", [7, 4, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_velas_own_figure_is_predicted_from_the_integers(name, bits, tmp_path):
    simulated, runner = written(LAYERS[name], images(), f"w{bits}a8", tmp_path)
    (layer,) = simulated.layers
    predicted = predicted_bytes(simulated, simulated.plan)[layer.name]
    held = int(runner.environment["flash_bytes"].replace(",", ""))
    assert held == ETHOSU.stored(tmp_path)[layer.name].weight_bytes
    assert predicted == pytest.approx(held, rel=0.02, abs=96)
    assert runner.executed()[layer.name].endswith("int8 (NPU)")


#: Layers of which Vela makes other kernels, or several.
REMADE = {
    "groups": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "depthwise, three outputs": lambda: nn.Conv2d(16, 48, 3, groups=16),
    "dilated by three": lambda: nn.Conv2d(16, 32, 3, dilation=3),
    "dilated by six and two": lambda: nn.Conv2d(16, 32, 3, dilation=(6, 2)),
    "depthwise, dilated by four": lambda: nn.Conv2d(16, 16, 3, groups=16, dilation=4),
    "along time": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(16, 24, 3, dilation=16)),
}


@pytest.mark.parametrize(
    "accelerator", ["ethos-u55-128", *(pytest.param(f"ethos-u85-{n}", marks=pytest.mark.slow) for n in (128, 512))]
)
@pytest.mark.parametrize("name", REMADE)
def test_bytes_of_kernels_that_vela_makes_are_predicted(name, accelerator, tmp_path):
    target = find_target(f"ethosu:accelerator={accelerator}")
    simulated, runner = written(REMADE[name], images(size=16), "w6a8", tmp_path, target)
    (layer,) = simulated.layers
    held = target.read_figures(tmp_path)["flash_bytes"]
    assert predicted_bytes(simulated, simulated.plan)[layer.name] == pytest.approx(held, rel=0.02, abs=32)
    assert runner.executed()[layer.name].endswith("int8 (NPU)")


def test_kernels_are_those_of_the_same_convolution():
    """Apart, and with zeros between their taps, they return what the layer does."""
    torch.manual_seed(0)
    for groups, outputs, dilation in ((1, 6, (1, 3)), (4, 8, (4, 2)), (8, 16, (6, 5))):
        network = nn.Conv2d(8, outputs, (2, 3), groups=groups, dilation=dilation, bias=False).eval()
        x = images(2, channels=8, size=20)
        (layer,) = capture(network, x).layers
        (operation,) = layer.operations
        made = kernels(layer, operation, network.weight.detach().numpy())
        # what the NPU leaves out itself
        left = [2 if max(dilation) > 2 and each % 2 == 0 else 1 for each in dilation]
        parts = [torch.from_numpy(kernel.copy()).permute(0, 3, 1, 2) for kernel in made]
        if is_depthwise(layer, operation):
            apart = [F.conv2d(x, part, dilation=left, groups=8) for part in parts]
            found = torch.stack(apart, 2).flatten(1, 2)
        else:
            read = x.chunk(len(parts), 1)
            found = torch.cat([F.conv2d(*pair, dilation=left) for pair in zip(read, parts, strict=True)], 1)
        torch.testing.assert_close(found, network(x))


OF_U85 = [
    ("kernels first", "w8a8", "ethos-u85-256"),
    ("channels first", "w4a8", "ethos-u85-512"),
    ("few channels", "w4a8@2:4", "ethos-u85-256"),
    ("depthwise", "w4a8", "ethos-u85-512"),
    ("matrix", "w2a8", "ethos-u85-256"),
]
MORE_OF_U85 = itertools.product(LAYERS, ["w8a8", "w4a8", "w2a8"], ["ethos-u85-128", "ethos-u85-256", "ethos-u85-512"])


@pytest.mark.parametrize(
    ("name", "scheme", "accelerator"),
    [*OF_U85, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_OF_U85 if each not in OF_U85)],
)
def test_bytes_for_an_ethos_u85_are_predicted(name, scheme, accelerator, tmp_path):
    target = find_target(f"ethosu:accelerator={accelerator}")
    simulated, runner = written(LAYERS[name], images(), scheme, tmp_path, target)
    (layer,) = simulated.layers
    held = target.read_figures(tmp_path)["flash_bytes"]
    assert predicted_bytes(simulated, simulated.plan)[layer.name] == pytest.approx(held, rel=0.02, abs=96)
    assert target.stored(tmp_path)[layer.name].weight_bytes == pytest.approx(held)
    assert runner.executed()[layer.name].endswith("int8 (NPU)")


@pytest.mark.parametrize("scheme", ["w8a8@50%", "w4a8@50%", "w8a8@2:4", "w6ta8"])
def test_zeros_and_one_scale_take_the_bytes_that_are_predicted(scheme, tmp_path):
    simulated, _ = written(lambda: nn.Conv2d(64, 64, 3), images(channels=64), scheme, tmp_path)
    (layer,) = simulated.layers
    (quantizer,) = weight_quantizers(simulated).values()
    held = ETHOSU.stored(tmp_path)[layer.name].weight_bytes
    assert predicted_bytes(simulated, simulated.plan)[layer.name] == pytest.approx(held, rel=0.02)
    quantizer.mask = None  # the same in the same steps, without zeros
    dense = quantizer.integers(simulated.parameter(layer.name).detach()).numpy()
    whole = ETHOSU.coded_bytes(layer, dense, Scheme.parse(scheme.partition("@")[0]))
    assert (held < 0.75 * whole) == ("@" in scheme)


#: Layers that are read twice, and means over more positions than Vela takes at once.
ODD = {
    "matrix twice": (lambda net, x: net.b(net.b(x.flatten(1)[:, :64])), 8),
    "kernel twice": (lambda net, x: net.c(net.a(net.a(x)).relu()), 8),
    "mean over 96": (lambda net, x: net.d(net.a(x).mean((2, 3))), 96),
    "mean over 128": (lambda net, x: net.d(net.a(x).mean((2, 3))), 128),
}


@pytest.mark.parametrize("name", ODD)
def test_bytes_of_layers_read_twice_and_beside_large_means_are_predicted(name, tmp_path):
    run, size = ODD[name]
    layers = {
        "a": nn.Conv2d(16, 16, 3, padding=1),
        "b": nn.Linear(64, 64),
        "c": nn.Conv2d(16, 8, 1),
        "d": nn.Linear(16, 8),
    }
    simulated, _ = written(lambda: Net(run, **layers), images(2, size=size), "w8a8", tmp_path)
    held = ETHOSU.stored(tmp_path)
    for layer, predicted in predicted_bytes(simulated, simulated.plan).items():
        assert predicted == pytest.approx(held[layer].weight_bytes, rel=0.05, abs=96)


@pytest.mark.parametrize("size", [4, 16])
def test_ones_of_means_are_of_no_layer_on_an_ethos_u85_too(size, tmp_path):
    """It sends kernels of more than 8 x 8 in parts, whose order is of rows and columns."""
    target = find_target("ethosu:accelerator=ethos-u85-256")
    layers = {"a": nn.Conv2d(16, 64, 1), "d": nn.Linear(64, 8)}
    network = functools.partial(Net, lambda net, x: net.d(net.a(x).mean((2, 3))), **layers)
    simulated, _ = written(network, images(size=size), "w8a8", tmp_path, target)
    held = sum(weight.weight_bytes for weight in target.stored(tmp_path).values())
    assert held == pytest.approx(sum(predicted_bytes(simulated, simulated.plan).values()), abs=48)


def test_zeros_are_refused_where_the_cpu_decodes_no_weight():
    assert "no sparsity beside inputs in float" in str(ETHOSU.refuses(Scheme.parse("w8@50%")))
    assert ETHOSU.refuses(Scheme.parse("w8a8@50%")) is None


def slowly_sent(kernel, order):
    """The integers of [out, height, width, in] one by one, zeros where a block is not full."""
    out, height, width, inner = kernel.shape
    flat = kernel.reshape(out, height * width, inner)

    def at(o, k, i):
        return int(flat[o, k, i]) if o < out and k < height * width and i < inner else 0

    outs, ins = range(0, out, 8), range(0, inner, 8)
    if order == "kernels first":
        taps = range(-(-height * width // 4) * 4)
        return [at(o + x, k, i + y) for i in ins for o in outs for k in taps for x in range(8) for y in range(8)]
    if order == "depthwise":
        taps = range(-(-height * width // 4) * 4)
        return [at(o + x, k, 0) for o in outs for k in taps for x in range(8)]
    sent = []
    for start in range(0, inner, 32):
        few, taps = range(start, start + 32, 8), range(height * width)
        sent += [at(o + x, k, i + y) for o in outs for k in taps for i in few for x in range(8) for y in range(8)]
    return sent


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((9, 3, 3, 3), "kernels first"),
        ((16, 3, 3, 16), "kernels first"),
        ((5, 3, 3, 64), "channels first"),
        ((12, 1, 1, 40), "channels first"),
        ((11, 3, 3, 1), "depthwise"),
    ],
)
def test_weights_are_sent_in_blocks(shape, order):
    kernel = np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8)
    found = coding.in_blocks(kernel, depthwise=order == "depthwise")
    assert found.tolist() == slowly_sent(kernel, order)


def slowly_sent_to_u85(kernel, streams, channels, order):
    """[streams] of the integers of [out, height, width, in] one by one, as an Ethos-U85 reads them."""
    (out, height, width, inner), (unit, together, brick, further) = kernel.shape, order
    sent = [[] for _ in range(streams)]
    for block in range(0, inner, unit):
        for left, top in itertools.product(range(0, width, 8), range(0, height, 8)):
            rows, columns = range(top, min(top + 8, height)), range(left, min(left + 8, width))
            taps = [(y, x) for y in rows for x in (columns if (y - top) % 2 == 0 else reversed(columns))]
            taps += [None] * (-len(taps) % together + further * -(-len(taps) // together))
            for first, tap, part in itertools.product(range(0, out, channels), taps, range(0, unit, brick)):
                for o, i in itertools.product(range(first, first + channels), range(brick)):
                    deep = block + part + i
                    value = int(kernel[o, *tap, deep]) if tap is not None and o < out and deep < inner else 0
                    sent[(o - first) // 4 % streams].append(value)
    return sent


@pytest.mark.parametrize("accelerator", ["ethos-u85-256", "ethos-u85-512"])
@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((9, 3, 3, 16), "kernels first"),
        ((8, 9, 10, 3), "kernels first"),
        ((5, 1, 1, 64), "channels first"),
        ((12, 1, 1, 40), "matrix"),
        ((11, 3, 4, 1), "depthwise"),
        ((8, 3, 3, 20), "two of four"),
    ],
)
def test_an_ethos_u85_reads_weights_in_an_order_of_its_own(shape, how, accelerator):
    kernel = np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8)
    if how == "two of four":
        kernel[..., 1::2] = 0
    npu = coding85.NPUS[accelerator]
    orders = {"kernels first": (16, 5, 8, 0), "two of four": (16, 10, 16, 0)}
    order = (orders | {"depthwise": (1, 10, 1, npu.depthwise_zeros)}).get(how, (64, 1, 8, 0))
    channels = npu.depthwise_channels if how == "depthwise" else npu.channels
    wanted = slowly_sent_to_u85(kernel, npu.streams, channels, order)
    found = coding85.in_streams(kernel, npu, depthwise=how == "depthwise", matrix=how == "matrix")
    assert found.tolist() == wanted


def slowly_coded(values, low, short=False):
    """Bits of numbered values by one code, number by number; None for `low` stands for numbers as they are."""
    signed = [2 * abs(value) + (value < 0) for value in values]
    table = sorted(set(signed), key=lambda value: (-signed.count(value), value))
    bits = 32 + len(table) * max(2, max(signed).bit_length())
    for number in map(table.index, signed):
        if low is None:
            bits += max(1, (len(table) - 1).bit_length())
            continue
        part = number // 2**low
        if part > (2 if short else 31):
            return math.inf
        bits += (min(part + 1, 2) if short else part + 1) + low
    return bits


@pytest.mark.parametrize("period", [8, 64])
@pytest.mark.parametrize("spread", [0.5, 1, 2, 4])
def test_like_numbers_take_the_bits_of_the_best_code_counted_number_by_number(spread, period):
    """Where all parts are alike; else the coder keeps a code until another would have spared the bits of a change."""
    values = np.tile(np.rint(np.random.default_rng(1).normal(0, spread, period)).astype(np.int64), 512 // period)
    codes = [(None, False), *itertools.product(range(6), (False, True))]
    best = min(slowly_coded(values.tolist(), *code) for code in codes)
    found = coding.coded_bits(values, zero_runs=False)
    assert found == best if period == 8 else best <= found < best + 40


def test_the_code_changes_where_another_serves_better():
    wide, zeros = np.tile(np.arange(-7, 9), 40), np.zeros(640, np.int64)
    both = coding.coded_bits(np.concatenate([wide, zeros]), zero_runs=False)
    apart = slowly_coded(wide.tolist(), None) + 640
    assert apart <= both <= apart + 2 * 40 + 4 * 64


def test_runs_of_zeros_take_few_bits():
    values = np.zeros(10_000, np.int64)
    values[::100] = 5
    runs, single = (coding.coded_bits(values, zero_runs=zero_runs) for zero_runs in (True, False))
    assert runs < single / 4


def test_a_plan_is_searched_by_coded_bytes_and_verified(tmp_path):
    """The table holds bytes of the real integers, the plan keeps its budget, and the file matches."""

    def run(net, x):
        return net.b(F.max_pool2d(net.a(x).relu(), 2).flatten(1))

    x = images(64)
    torch.manual_seed(0)
    network = Net(run, a=nn.Conv2d(16, 32, 3, padding=1), b=nn.Linear(32 * 16, 10)).eval()
    graph = capture(network, x[:2])
    calibration = calibrate(graph, [x[:32], x[32:]])
    table = measure(graph, calibration, target="ethosu")
    for row, layer in enumerate(table.layers):
        for column, choice in enumerate(table.choices):
            simulated = quantize(graph, plan_of(graph.layers, choice, "ethosu"), calibration)
            assert table.usage["weight_bytes"][row, column] == predicted_bytes(simulated, simulated.plan)[layer]
    by_channel = [not choice.endswith("ta8") for choice in table.choices]
    assert (np.diff(table.usage["weight_bytes"][:, by_channel]) > 0).all()
    plan = search(table, Budget(weight_bytes=8000))
    simulated = quantize(graph, plan, calibration)
    assert simulated.plan == plan  # its predictions are kept
    edited = plan.model_copy(update={"layers": dict.fromkeys(plan.layers, "w2a8")})
    assert quantize(graph, edited, calibration).plan.predicted == {}
    export(simulated, tmp_path / "out")
    comparison = verify(tmp_path / "out", graph, simulated, [(x, torch.zeros(64, dtype=torch.long))])
    assert comparison.problems == ()
    assert comparison.weight_bytes <= 8000 * 1.02


def test_a_residual_network_runs_on_the_npu_whole(tmp_path):
    """Its sums and means too, whose ones in flash are of no layer."""

    def run(net, x):
        y = net.b(net.a(x.relu())) + x
        return net.l(F.avg_pool2d(torch.cat([y.relu(), net.c(y)], 1), 2).mean((2, 3)))

    parts = {"a": nn.Conv2d(16, 16, 3, padding=1), "b": nn.Conv2d(16, 16, 3, padding=1), "c": nn.Conv2d(16, 16, 1)}
    simulated, runner = written(lambda: Net(run, l=nn.Linear(32, 10), **parts), images(), "w4a8", tmp_path)
    assert "CPU" not in runner.note
    held = sum(weight.weight_bytes for weight in ETHOSU.stored(tmp_path).values())
    assert held == pytest.approx(sum(predicted_bytes(simulated, simulated.plan).values()), rel=0.02)
    assert held + 128 < ETHOSU.read_figures(tmp_path)["flash_bytes"]


def test_what_the_cpu_runs_is_named(tmp_path):
    network = Net(lambda net, x: net.b(F.gelu(net.a(x))), a=nn.Conv2d(16, 8, 3), b=nn.Conv2d(8, 8, 3))
    _, runner = written(lambda: network, images(), {"a.weight": "w8a8", "b.weight": "w8"}, tmp_path)
    assert runner.executed() == {"a.weight": "CONV_2D int8 (NPU)", "b.weight": "CONV_2D float32 (CPU)"}
    assert "GELU" in runner.note
    held = ETHOSU.stored(tmp_path)
    assert held["b.weight"].weight_bytes == 8 * 8 * 9 + 8 * 12  # a byte each, on the CPU


def test_the_same_network_makes_the_same_files(tmp_path):
    for folder in ("one", "two"):
        written(LAYERS["kernels first"], images(), "w4a8", tmp_path / folder)
    for name in ETHOSU.files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_compiler_that_ends_without_a_file_is_an_error(tmp_path, monkeypatch):
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho 'cannot place tensor' >&2\nexit 3\n")
    false.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(false))
    with pytest.raises(
        UnsupportedModel, match=r"Vela cannot compile .*status 3.*cannot place tensor.*take target litert"
    ):
        written(LAYERS["kernels first"], images(), "w4a8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_several_sizes_are_refused(tmp_path):
    x = images()
    graph = capture(nn.Conv2d(16, 8, 3).eval(), x[:2], dynamic={0: (2, 3)})
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", "ethosu"), [x])
    with pytest.raises(UnsupportedModel, match=r"several sizes.*same sizes"):
        export(simulated, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.tflite", "model_vela.tflite"])
def test_a_file_that_vela_did_not_report_on_is_refused(name, tmp_path):
    written(LAYERS["kernels first"], images(), "w4a8", tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + b"\0")
    for use in (ETHOSU.load, ETHOSU.stored, ETHOSU.check_files):
        with pytest.raises(TargetMismatch, match=rf"{name}: not the file of vela.json; export again"):
            use(tmp_path)


@pytest.mark.parametrize(("choice", "reason"), [("w4@2:4", "no sparsity"), ("w8a8d", "no dynamic"), ("w8a16", "a8")])
def test_what_the_npu_does_not_take_is_said(choice, reason):
    with pytest.raises(InvalidInput, match=reason):
        ETHOSU.schemes([choice])


def test_a_guess_is_near_what_normal_numbers_take():
    layer = nn.init.normal_(nn.Conv2d(64, 64, 3).weight, std=0.1)
    network = nn.Conv2d(64, 64, 3)
    network.weight = nn.Parameter(layer.detach())
    x = images(8, channels=64)
    graph = capture(network.eval(), x[:2])
    calibration = calibrate(graph, [x])
    for bits in range(2, 9):
        simulated = quantize(graph, plan_of(graph.layers, f"w{bits}a8", "ethosu"), calibration)
        (size,) = predicted_bytes(simulated, simulated.plan).values()
        guess = ETHOSU.weight_bytes((64, 64, 3, 3), 0, Scheme.parse(f"w{bits}").weight)
        assert guess == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        "accelerator=ethos-u55-32,system=Ethos_U55_Deep_Embedded",
        "accelerator=ethos-u65-256,memory=Dedicated_Sram",
        "accelerator=ethos-u85-128,system=Ethos_U85_SYS_DRAM_Low,memory=Dedicated_Sram_256KB",
    ],
)
def test_other_devices_are_compiled_for(options, tmp_path):
    torch.manual_seed(0)
    graph = capture(LAYERS["channels first"]().eval(), images()[:2])
    ours = find_target(f"ethosu:{options}")
    simulated = quantize(graph, plan_of(graph.layers, "w4a8", ours.name), [images()])
    export(simulated, tmp_path)
    runner, (layer,) = ours.load(tmp_path), simulated.layers
    assert all(part.partition("=")[2] in runner.environment["compiler"] for part in options.split(","))
    assert ours.read_figures(tmp_path)["flash_bytes"] == pytest.approx(ours.stored(tmp_path)[layer.name].weight_bytes)
    assert not verify(tmp_path, graph, simulated, [images()], task="regression").problems


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("accelerator=ethos-u85-2048", "accelerator 'ethos-u85-2048' is unknown .*; known: ethos-u55-32"),
        ("system=Ethos_U65_Embedded", "system of ethos-u55-128 'Ethos_U65_Embedded' is unknown.*known: Ethos_U55_High"),
        ("memory=Dedicated_Sram", "memory of ethos-u55-128"),
        ("multipliers=128", "option 'multipliers=128' is not understood; its options are accelerator, system, memory"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(options, told):
    with pytest.raises(InvalidInput, match=told):
        find_target(f"ethosu:{options}")


@pytest.mark.parametrize("name", ["ethosu:", "ethosu:accelerator="])
def test_options_without_values_are_refused(name):
    with pytest.raises(InvalidInput, match="is not understood"):
        find_target(name)


def test_a_target_without_options_says_so():
    with pytest.raises(InvalidInput, match="target packed: option 'kernel=1' is not understood; it has none"):
        find_target("packed:kernel=1")
