"""Target executorch: the program that is lowered, the file, and the runtime, bit-exact with the simulation.

What needs ExecuTorch itself, and seconds for each file, is slow: `pip install 'mixbit[executorch]'`, then `make slow`.
"""

import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.target import find_target
from mixbit.graph.capture import capture, capture_all
from mixbit.quantization.sizes import weight_bytes_of
from mixbit.roundings.quantize import quantize
from mixbit.targets import _executorch_lowering as lowering
from mixbit.targets._executorch import MOST_SAMPLES, as_xnnpack_packs, digest, in_pairs, program_of
from mixbit.targets._executorch_file import ended, read
from tests.networks import ONE_LAYER, Net, plan_of

EXECUTORCH = find_target("executorch")


def images(count=16, channels=8):
    return torch.randn(count, channels, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def installed():
    try:
        EXECUTORCH.require()
    except InvalidInput as error:
        pytest.skip(str(error))


def residual():
    """Blocks of a ResNet: an addition, a shortcut, a mean."""

    def run(net, x):
        x = net.a(x).relu()
        y = (net.c(net.b(x).relu()) + x).relu()
        y = y + F.pad(y[:, :, ::2, ::2], (0, 4, 0, 4))
        z = (net.e(net.d(F.pad(y, (1, 0, 0, 1))).relu()) + net.s(F.max_pool2d(y, 2, 2, ceil_mode=True))).relu()
        return net.head(z.mean((2, 3)))

    return Net(
        run, a=nn.Conv2d(8, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 8, 3, padding=1),
        d=nn.Conv2d(8, 12, 3, stride=2, padding=1), e=nn.Conv2d(12, 12, 3, padding=1), s=nn.Conv2d(8, 12, 1),
        head=nn.Linear(12, 5),
    )  # fmt: skip


def inverted():
    """Blocks of a MobileNet: depthwise convolutions, clipping at 6, gates."""

    def run(net, x):
        y = F.relu6(net.deep(F.relu6(net.wide(x))))
        y = y * F.hardsigmoid(net.gate(y.mean((2, 3), keepdim=True)))
        y = net.narrow(y) + x
        return net.head(F.hardswish(net.last(y)).mean((2, 3)))

    return Net(
        run, wide=nn.Conv2d(8, 24, 1), deep=nn.Conv2d(24, 24, 3, padding=1, groups=24), gate=nn.Conv2d(24, 24, 1),
        narrow=nn.Conv2d(24, 8, 1), last=nn.Conv2d(8, 16, 1), head=nn.Linear(16, 5),
    )  # fmt: skip


#: Networks of one layer.
LAYERS = ONE_LAYER | {
    "columns": lambda: Net(lambda net, x: x.mean((2, 3)) @ net.matrix, matrix=nn.Parameter(torch.randn(8, 16))),
}


def branches():
    return Net(lambda net, x: [part(x) for part in net.parts], parts=nn.ModuleList(make() for make in LAYERS.values()))


NETWORKS = {"residual": residual, "inverted": inverted, "branches": branches}


def simulated_of(name, scheme):
    torch.manual_seed(0)
    graph = capture(NETWORKS[name]().eval(), images()[:2])
    return quantize(graph, plan_of(graph.layers, scheme, "executorch"), [images()])


@torch.no_grad()
def outputs_of(simulated, x):
    return [leaf.numpy() for leaf in pytree.tree_leaves(simulated(x))]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_computes_what_the_simulation_does(name):
    """In float, where sums are a little off: a few numbers are one step of 255 away, and what comes of them."""
    simulated = simulated_of(name, "w4a8")
    program, keys = program_of(simulated)
    for x in (images()[:1], images()):
        found = [leaf.numpy() for leaf in program.module()(x)]
        for wanted, made in zip(outputs_of(simulated, x), found, strict=True):
            assert made.shape == wanted.shape
            assert np.mean(made != wanted) < 0.05
            assert np.abs(made - wanted).max() <= 0.05 * np.abs(wanted).max()
    assert keys.keys() == {layer.name for layer in simulated.layers}


def test_every_layer_of_the_program_has_quantizers_around_it():
    program, _ = program_of(simulated_of("residual", "w8a8"))
    quantize_it = torch.ops.quantized_decomposed.quantize_per_tensor.default
    unquantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    layers = [node for node in program.graph.nodes if "conv" in str(node.target) or "linear" in str(node.target)]
    layers = [node for node in layers if node.op == "call_function"]
    assert len(layers) == 7
    for node in layers:
        assert node.args[0].target == unquantize
        assert len(node.args[0].users) == 1
        (user,) = node.users
        assert quantize_it in (user.target, *(each.target for each in user.users))


def test_weights_are_packed_as_executorch_packs_them():
    integers = torch.randint(-8, 8, (3, 6), dtype=torch.int8)
    rows = zip(integers[:, ::2].tolist(), integers[:, 1::2].tolist(), strict=True)
    slowly = [[low + 8 + 16 * (high + 8) for low, high in zip(*row, strict=True)] for row in rows]
    assert in_pairs(integers).tolist() == slowly
    kernel = torch.randint(-128, 128, (4, 3, 2, 5), dtype=torch.int8)
    flat = [
        kernel[out, channel, row, column]
        for out in range(4) for row in range(2) for column in range(5) for channel in range(3)
    ]  # fmt: skip
    assert digest(as_xnnpack_packs(kernel)) == digest(torch.stack(flat))
    deep = kernel[:, :1]
    flat = [deep[out, 0, row, column] for row in range(2) for column in range(5) for out in range(4)]
    assert digest(as_xnnpack_packs(deep)) == digest(torch.stack(flat))


def test_bytes_count_each_place_that_holds_a_weight():
    """A table that is a layer too is held as bytes by the table, and as half bytes by XNNPACK."""

    def run(net, ids):
        return net.head(net.between(net.table(ids)).relu())

    net = Net(run, table=nn.Embedding(10, 8), between=nn.Linear(8, 8), head=nn.Linear(8, 10, bias=False))
    net.head.weight = net.table.weight
    ids = torch.randint(0, 10, (8, 3))
    graph = capture(net.eval(), ids)
    for scheme, wanted in (
        ("w4a8", [(10 * 8 + 4 * 10) + (10 * 4 + 4 * 10), 8 * 4 + 4 * 8]),
        ("w8a8", [2 * (10 * 8 + 4 * 10), 8 * 8 + 4 * 8]),
        ("w4", [10 * 8 + 4 * 10, 8 * 8 + 4 * 8]),
        ("float", [2 * 4 * 80, 4 * 64]),
        ("float16", [2 * 80, 2 * 64]),
    ):
        simulated = quantize(graph, plan_of(graph.layers, scheme, "executorch"), [ids])
        sizes = weight_bytes_of(simulated, simulated.plan, EXECUTORCH)
        assert sorted(sizes.values()) == sorted(wanted), scheme


def test_sizes_that_differ_are_refused():
    net = Net(lambda net, x: net.a(x).relu().mean(1), a=nn.Linear(5, 3))
    batches = [torch.randn(6, 8, 5), torch.randn(6, 12, 5)]
    graph = capture_all(net, [Inputs.of(batch) for batch in batches])
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", "executorch"), [Inputs.of(batch) for batch in batches])
    with pytest.raises(UnsupportedModel, match="inputs of several sizes"):
        program_of(simulated)


@pytest.mark.parametrize("scheme", ["w8@50%", "w8a8d", "w8a8dr", "w8a16", "w4g32a8", "w8za8"])
def test_schemes_that_do_not_run_are_refused_in_words(scheme):
    with pytest.raises(InvalidInput, match="target executorch does not run it"):
        EXECUTORCH.schemes([scheme])


def test_a_file_that_was_cut_or_changed_is_refused_before_it_is_opened(tmp_path):
    data = struct.pack("<4s4s4sIQQ", b"\0\0\0\0", b"ET12", b"eh00", 24, 40, 40) + bytes(60)
    whole, file = ended(data, {"a.weight": {"0123": "int8"}}), tmp_path / "model.pte"
    file.write_bytes(whole)
    assert read(file).layers == {"a.weight": {"0123": "int8"}}
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(TargetMismatch, match=r"model.pte: (not a file of ExecuTorch|cut off, damaged, or not)"):
            read(file)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TargetMismatch):
            read(file)
    file.write_bytes(data)
    with pytest.raises(TargetMismatch, match="not written by target executorch; export again"):
        read(file)


def test_a_converter_that_fails_or_ends_says_so(tmp_path):
    """Whether it is installed or not: there is no such program."""
    request = {"program": str(tmp_path / "none.pt2"), "into": str(tmp_path / "model.pte")}
    converter = lowering.Converter()
    converter.process.kill()
    assert converter.ask(request) == "its process ended with status -9"
    text = lowering.PROGRAM.replace(
        "def lower(", "def lower(request):\n    raise ValueError('no such form')\n\ndef other("
    )
    failing = lowering.Converter(text)
    assert failing.ask(request) == "ValueError: no such form"
    assert failing.ask(request) == "ValueError: no such form"
    failing.end()
    assert failing.process.returncode == 0


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("scheme", ["w4a8", "w4a8drz"])
@pytest.mark.parametrize("columns", [7, 8, 33])
def test_rows_that_end_within_a_byte_are_right_on_every_processor(columns, scheme, tmp_path):
    """With AVX512-VNNI, XNNPACK's products with 4 bits are not: such matrices take a byte a weight."""
    torch.manual_seed(0)
    network, x = nn.Linear(columns, 16).eval(), torch.randn(6, columns)
    graph = capture(network, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme, "executorch"), [x])
    EXECUTORCH.write(simulated, tmp_path)
    (found,) = EXECUTORCH.load(tmp_path).run([x.numpy()])
    assert np.allclose(found, outputs_of(simulated, x)[0], atol=1e-5)
    held = EXECUTORCH.stored(tmp_path)["weight"].weight_bytes
    assert held == 16 * (columns if columns % 2 else columns // 2) + 16 * 4
    assert weight_bytes_of(simulated, simulated.plan, EXECUTORCH) == {"weight": held}


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_returns_what_the_simulation_does_number_by_number(name, scheme, tmp_path):
    simulated = simulated_of(name, scheme)
    EXECUTORCH.write(simulated, tmp_path)
    runner = EXECUTORCH.load(tmp_path)
    for x in (images()[:1], images()[:3], images(MOST_SAMPLES + 3)):
        for wanted, found in zip(outputs_of(simulated, x), runner.run([x.numpy()]), strict=True):
            assert np.array_equal(found, wanted)
    executed, stored = runner.executed(), EXECUTORCH.stored(tmp_path)
    assert all("int8 (XNNPACK)" in text for text in executed.values()), executed
    assert {layer: each.weight_bytes for layer, each in stored.items()} == weight_bytes_of(
        simulated, simulated.plan, EXECUTORCH
    )
    matrices = [layer for layer in simulated.layers if len(layer.shape) == 2 and scheme == "w4a8"]
    narrow = {layer.name for layer in matrices if layer.shape[1 - layer.axis] % 2 == 0}
    assert narrow == {layer for layer, each in stored.items() if "int4" in each.types}
