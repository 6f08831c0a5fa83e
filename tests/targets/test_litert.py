"""Target litert: files that LiteRT runs in integers as they are simulated, number by number."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from mixbit.core.errors import InvalidInput, TargetMismatch, UnsupportedModel
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.graph.ports import ports_of
from mixbit.quantization.quantizer import activation_quantizers
from mixbit.quantization.sums import whole_numbers
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from tests.networks import ONE_LAYER, Net, plan_of

pytest.importorskip("ai_edge_litert")
LITERT = find_target("litert")


def images(count=64, channels=8):
    return torch.randn(count, channels, 9, 9, generator=torch.Generator().manual_seed(1))


def written(network, x, scheme, folder, target="litert"):
    """The simulation, and what the runtime loads of its file."""
    torch.manual_seed(0)
    graph = capture(network().eval(), x[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme, target), [x])
    export(simulated, folder)
    return simulated, find_target(target).load(folder)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w2a8"])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_one_operator_returns_what_the_simulation_does_number_by_number(name, scheme, tmp_path):
    x = images()
    simulated, runner = written(ONE_LAYER[name], x, scheme, tmp_path)
    (layer,) = simulated.layers
    for count in (1, 3, x.shape[0]):
        with torch.no_grad():
            wanted = simulated(x[:count]).numpy()
        (found,) = runner.run([x[:count].numpy()])
        assert found.shape == wanted.shape
        step = float(list(activation_quantizers(simulated).values())[-1].scale)
        assert np.array_equal(np.rint(found / step), np.rint(wanted / step))
    assert "int8" in runner.executed()[layer.name]


#: Networks of several layers with operators between them that the kernels of all runtimes compute as simulated.
SEVERAL = {
    "added": lambda net, x: net.b(F.relu(net.a(x) + net.c(x))),
    "joined": lambda net, x: net.d(torch.cat([net.a(x), net.c(x)[:, :8], x], 1)),
    "averaged": lambda net, x: net.b(F.avg_pool2d(net.a(x), 2)).mean((2, 3)),
}


def several(name):
    kernels = {"a": (8, 16), "b": (16, 8), "c": (8, 16), "d": (32, 8)}
    return Net(SEVERAL[name], **{key: nn.Conv2d(*sizes, 3, padding=1) for key, sizes in kernels.items()})


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("name", [*ONE_LAYER, *SEVERAL])
@pytest.mark.parametrize("kernel", ["builtin", "micro"])
def test_other_kernels_return_what_their_simulation_does(kernel, name, scheme, tmp_path):
    if kernel == "micro":
        pytest.importorskip("tflite_micro")
    make = ONE_LAYER.get(name) or (lambda: several(name))
    x = images(16)
    simulated, runner = written(make, x, scheme, tmp_path, f"litert:kernel={kernel}")
    (found,) = runner.run([x.numpy()])
    with torch.no_grad():
        wanted = simulated(x).numpy()
    step = float(list(activation_quantizers(simulated).values())[-1].scale)
    assert np.abs(found - wanted).max() < step / 100
    own = {"builtin": "plain kernel", "micro": "TensorFlow Lite Micro"}[kernel]
    assert all(text.endswith(f"int8 ({own})") for text in runner.executed().values())


def slowly(total, factor, halves):
    """One sum, by Python's whole numbers: gemmlowp's two roundings; or numpy's float32."""
    if halves == "even":
        return round(float(np.float32(total) * np.float32(factor)))
    mantissa, exponent = math.frexp(factor)
    number = (total << max(exponent, 0)) * round(mantissa * 2**31)
    for bits in (31, max(-exponent, 0)):
        half = (1 << bits) // 2
        sign = -1 if halves == "away" and number < 0 else 1
        number = sign * ((sign * number + half) // (1 << bits))
    return number


@pytest.mark.parametrize("halves", ["even", "up", "away"])
def test_sums_are_rounded_as_whole_numbers_say(halves):
    generator = np.random.default_rng(0)
    sums = np.concatenate([generator.integers(-(2**20), 2**20, 500), np.arange(-40, 40) * 3])
    for factor in (0.0123, 0.5, 0.25, 1 / 3, 0.0009765625, 0.9999999999, 1.7):
        found = whole_numbers(torch.from_numpy(sums), torch.tensor(factor, dtype=torch.float64), halves)
        assert found.tolist() == [slowly(int(total), factor, halves) for total in sums]


def test_the_three_roundings_differ():
    sums, factor = torch.arange(-2000, 2000), torch.tensor(0.0625, dtype=torch.float64)
    even, up, away = (whole_numbers(sums, factor, halves) for halves in ("even", "up", "away"))
    assert (even != up).any()
    assert (up != away).any()
    assert (even - up).abs().max() == (up - away).abs().max() == 1


@pytest.mark.parametrize(
    ("scheme", "kind", "size"),
    [
        ("w2a8", "int2", 16 * 8 // 4),
        ("w3a8", "int4", 16 * 8 // 2),
        ("w4a8", "int4", 16 * 8 // 2),
        ("w5a8", "int8", 16 * 8),
        ("w8a8", "int8", 16 * 8),
        ("w4", "int4", 16 * 8 // 2),
    ],
)
def test_matrices_are_stored_in_the_next_of_three_widths(scheme, kind, size, tmp_path):
    x = torch.randn(32, 8)
    simulated, _ = written(lambda: nn.Linear(8, 16), x, scheme, tmp_path)
    (held,) = LITERT.stored(tmp_path).values()
    assert held.types.startswith(kind)
    assert held.weight_bytes == size + 16 * 12  # a scale of 4 bytes and a zero point of 8 for each channel
    (layer,) = simulated.layers
    assert held.weight_bytes == LITERT.weight_bytes(layer.shape, layer.axis, Scheme.parse(scheme).weight)


def test_kernels_take_four_bits_at_least(tmp_path):
    written(lambda: nn.Conv2d(8, 16, 3), images(), "w2a8", tmp_path)
    (held,) = LITERT.stored(tmp_path).values()
    assert held.types.startswith("int4")
    assert held.weight_bytes == 16 * 8 * 9 // 2 + 16 * 12


def test_moves_between_layers_stay_in_integers(tmp_path):
    """No operator in float stands between the two layers."""

    def run(net, x):
        y = F.max_pool2d(F.pad(net.a(x).relu(), (1, 1, 1, 1)), 3, 2)
        return net.b(y.flatten(1))

    network = Net(run, a=nn.Conv2d(8, 16, 3, padding=1), b=nn.Linear(16 * 25, 5))
    x = images()
    simulated, runner = written(lambda: network, x, "w8a8", tmp_path)
    with torch.no_grad():
        assert np.array_equal(runner.run([x.numpy()])[0], simulated(x).numpy())
    from mixbit.targets._tflite_file import read

    model = read(tmp_path / "model.tflite")
    kinds = [model.operator(operator) for operator in model.graph.operators]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    assert kinds[:2] == ["QUANTIZE", "TRANSPOSE"]


#: Networks whose operators between layers are all in int8, and what these are.
BETWEEN = {
    "added": (lambda net, x: net.b((y := net.a(x).relu()) + net.c(y)), {"ADD"}),
    "added and clipped": (lambda net, x: net.b(F.relu6(net.a(x) + net.a(x).mean((2, 3), True))), {"ADD", "MEAN"}),
    "mean": (lambda net, x: net.l(net.a(x).relu().mean((2, 3))), {"MEAN"}),
    "joined": (lambda net, x: net.d(torch.cat([y := net.a(x).relu(), net.c(y), F.max_pool2d(y, 3, 1, 1)], 1).relu()),
               {"CONCATENATION", "MUL", "MAX_POOL_2D"}),
    "windows": (lambda net, x: net.b(F.avg_pool2d(F.avg_pool2d(net.a(x).relu(), 3, 2, 1), 2, 1, divisor_override=3)),
                {"DEPTHWISE_CONV_2D", "PAD"}),
    "clipped later": (lambda net, x: net.b((y := net.a(x)) + F.relu6(net.c(y.relu()))), {"ADD", "MUL"}),
    "window": (lambda net, x: net.l(F.avg_pool2d(net.a(x).relu(), 9).flatten(1)), {"MEAN", "RESHAPE"}),
    "rows": (lambda net, x: net.l(F.avg_pool1d(net.m(x.flatten(2)).relu(), 2).mean(-1)),
             {"DEPTHWISE_CONV_2D", "MEAN", "RESHAPE"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_operators_between_layers_run_in_int8_and_return_what_the_simulation_does(name, tmp_path):
    """XNNPACK runs all; sums alone may go to the other side of a tie, for which their factors are too short."""
    from ai_edge_litert.interpreter import Interpreter

    from mixbit.targets._tflite_file import _delegated, read

    run, kinds = BETWEEN[name]
    parts = {"a": nn.Conv2d(8, 16, 3, padding=1), "b": nn.Conv2d(16, 8, 3), "c": nn.Conv2d(16, 16, 1)}
    parts |= {"d": nn.Conv2d(48, 8, 1), "l": nn.Linear(16, 5), "m": nn.Conv1d(8, 16, 3)}
    x = images()
    simulated, _ = written(lambda: Net(run, **parts), x, "w8a8", tmp_path)
    model = read(tmp_path / "model.tflite")
    interpreter = Interpreter(model_content=model.data)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()
    operators = [node["op_name"] for node in nodes if node["op_name"] != "DELEGATE"]
    assert len(_delegated(nodes)) == len(operators)
    assert operators.count("QUANTIZE") == operators.count("DEQUANTIZE") == 1
    layers = {"QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "RESHAPE", "CONV_2D", "FULLY_CONNECTED"}
    assert kinds - layers == set(operators) - layers

    quantizers = activation_quantizers(simulated)
    found = LITERT.load_tensors(tmp_path, [(f"quantized {tensor}", False) for tensor in quantizers])([x.numpy()])
    values = {}
    for node in simulated.module.graph.nodes:
        if node.op == "call_module" and "activations" in str(node.target):
            simulated.module.get_submodule(str(node.target)).register_forward_hook(
                lambda own, given, made: values.__setitem__(own.tensor, (given[0].numpy(), made.numpy()))
            )
    with torch.no_grad():
        simulated(x)
    assert found.keys() == {f"quantized {tensor}" for tensor in quantizers}
    for tensor, quantizer in quantizers.items():
        given, made = (array / float(quantizer.scale) for array in values[tensor])
        away = np.abs(np.rint(found[f"quantized {tensor}"] / float(quantizer.scale)) - np.rint(made))
        near_tie = np.abs(given - np.floor(given) - 0.5) < 2**-10
        assert (away <= (near_tie if "added" in name else 0)).all(), tensor


def test_inputs_and_outputs_keep_the_layout_and_names_of_the_user(tmp_path):
    network = Net(lambda net, x: {"a": net.conv(x), "b": x.mean((2, 3))}, conv=nn.Conv2d(8, 4, 3))
    simulated, runner = written(lambda: network, images(), "w8", tmp_path)
    assert runner.names == (["x"], ["a", "b"])
    x = images(5)
    with torch.no_grad():
        wanted = simulated(x)
    for name, found in zip(("a", "b"), runner.run([x.numpy()]), strict=True):
        assert np.allclose(found, wanted[name].numpy(), atol=1e-5)


class Image(nn.Module):
    """An image that is rounded, moved in float and returned, and a vector beside it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(4, 6)

    def forward(self, vector, image):
        x = self.conv(image).relu()
        return {"found": x * self.head(vector)[:, :, None, None], "mean": image.mean((2, 3)), "image": image}


@pytest.mark.parametrize("kernel", ["xnnpack", "builtin", "micro"])
def test_images_are_channels_last_by_option(kernel, tmp_path, monkeypatch):
    if kernel == "micro":
        pytest.importorskip("tflite_micro")
    target = find_target(f"litert:kernel={kernel},inputs=channels_last")
    vector, image = torch.randn(16, 4), torch.randn(16, 3, 7, 5)
    graph = capture(Image().eval(), (vector[:2], image[:2]))
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", target.name), [(vector, image)])
    export(simulated, tmp_path)
    runner = target.load(tmp_path)
    for count in (16, 1, 3):
        found = runner.run([vector[:count].numpy(), image[:count].numpy()])
        with torch.no_grad():
            wanted = simulated(vector[:count], image[:count])
        for own, other in zip(found, wanted.values(), strict=True):
            assert np.allclose(own, other.numpy(), atol=1e-5)

    ports = ports_of(simulated)
    sized = [port.of_size(sizes) for port, sizes in zip(ports.inputs, [(2, 4), (2, 3, 7, 5)], strict=True)]
    ports = target.in_file(dataclasses.replace(ports, inputs=tuple(sized)))
    assert [port.shape[-3:] for port in ports.inputs] == [(1, 4), (7, 5, 3)]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(target.usage(ports, runner.environment)["Python"], names)
    given = names["inputs"]
    assert given["image"].shape[1:] == (7, 5, 3)
    wanted = runner.run([given["vector"], given["image"].transpose(0, 3, 1, 2)])
    for own, other in zip(names["outputs"].values(), wanted, strict=True):
        np.testing.assert_array_equal(own, other)


def test_an_image_that_is_channels_last_is_not_transposed(tmp_path):
    from mixbit.targets._tflite_file import read

    x, kinds = images(), {}
    for target in ("litert", "litert:inputs=channels_last"):
        simulated, runner = written(ONE_LAYER["convolution"], x, "w8a8", tmp_path / target, target)
        with torch.no_grad():
            assert np.array_equal(runner.run([x.numpy()])[0], simulated(x).numpy())
        model = read(tmp_path / target / "model.tflite")
        kinds[target] = [model.operator(operator) for operator in model.graph.operators]
    assert kinds["litert"][:3] == ["QUANTIZE", "TRANSPOSE", "CONV_2D"]
    assert kinds["litert:inputs=channels_last"] == ["QUANTIZE", *kinds["litert"][2:]]


def test_images_of_several_sizes_are_channels_last_too(tmp_path):
    target = find_target("litert:inputs=channels_last")
    graph = capture(nn.Conv2d(8, 4, 3).eval(), images(2), dynamic={0: {2: "height"}})
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", target.name), [images(2)])
    export(simulated, tmp_path)
    read, quantizer = next(iter(activation_quantizers(simulated).items()))
    runner, inside = target.load(tmp_path), target.load_tensors(tmp_path, [(f"quantized {read}", False)])
    for height in (9, 6):
        x = images(5)[:, :, :height]
        with torch.no_grad():
            assert np.array_equal(runner.run([x.numpy()])[0], simulated(x).numpy())
            rounded = quantizer(x).numpy()
        assert np.allclose(inside([x.numpy()])[f"quantized {read}"], rounded, atol=float(quantizer.scale) / 100)


def test_a_network_without_images_has_none_that_are_channels_last(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"channels_last: no input \[N, C, H, W\]; they have 2 dimensions"):
        written(lambda: nn.Linear(8, 4), torch.randn(8, 8), "w8a8", tmp_path, "litert:inputs=channels_last")


@pytest.mark.parametrize("part", [4, 8, 100, 0.3, 0.5, 0.9, -40])
def test_a_file_that_was_cut_is_refused(part, tmp_path):
    written(lambda: nn.Conv2d(8, 16, 3), images(), "w4a8", tmp_path)
    file = tmp_path / "model.tflite"
    data = file.read_bytes()
    file.write_bytes(data[: part if isinstance(part, int) else int(part * len(data))])
    for use in (LITERT.load, LITERT.check_files, LITERT.stored):
        with pytest.raises(TargetMismatch, match="export again"):
            use(tmp_path)


def test_bytes_that_refer_to_nothing_are_refused(tmp_path):
    from mixbit.targets._tflite_file import read

    written(lambda: nn.Conv2d(8, 16, 3), images(), "w4a8", tmp_path)
    file = tmp_path / "model.tflite"
    model = read(file)
    import flatbuffers

    def damaged(change):
        content = type(model.content).InitFromPackedBuf(model.data)
        change(content)
        builder = flatbuffers.Builder(1024)
        builder.Finish(content.Pack(builder), b"TFL3")
        file.write_bytes(bytes(builder.Output()))
        with pytest.raises(TargetMismatch, match="damaged"):
            LITERT.load(tmp_path)

    def reads_nothing(content):
        content.subgraphs[0].operators[0].inputs = [999]

    def is_short(content):
        tensor = next(tensor for tensor in content.subgraphs[0].tensors if b"::" in tensor.name)
        content.buffers[tensor.buffer].data = content.buffers[tensor.buffer].data[:-1]

    def has_no_bytes(content):
        content.subgraphs[0].tensors[1].buffer = 77

    def returns_nothing(content):
        content.subgraphs[0].outputs = [-5]

    for change in (reads_nothing, is_short, has_no_bytes, returns_nothing):
        damaged(change)


def test_what_cannot_be_written_is_named(tmp_path):
    x = torch.rand(4, 8) + 1
    with pytest.raises(UnsupportedModel, match=r"erfinv.*litert.*another target"):
        written(lambda: Net(lambda net, x: torch.erfinv(net.l(x).tanh()), l=nn.Linear(8, 8)), x, "w8a8", tmp_path)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("w4a8@2:4", "no sparsity"),
        ("bfloat16", "float16, not bfloat16"),
        ("w8a8d", "no dynamic ranges"),
        ("w8a16", "inputs a8"),
        ("w4g32a8", "group not beside inputs of static range"),
        ("w4za8", "zero point not beside inputs of static range"),
    ],
)
def test_what_the_runtime_does_not_take_is_said(choice, reason):
    with pytest.raises(InvalidInput, match=reason):
        LITERT.schemes([choice])


def test_rows_more_and_fewer_are_run_in_any_order(tmp_path):
    """Of an attention, which an interpreter of LiteRT 2.3 whose sizes change twice gets wrong."""

    def run(net, x):
        q, k, v = (layer(x).reshape(x.shape[0], 6, 2, 8).transpose(1, 2) for layer in (net.q, net.k, net.v))
        return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 6, 16)).mean(1)

    network = Net(run, q=nn.Linear(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16), out=nn.Linear(16, 4))
    x = torch.randn(16, 6, 16)
    simulated, runner = written(lambda: network, x, "w8a8", tmp_path)
    for count in (1, 3, 16, 5, 16):
        with torch.no_grad():
            wanted = simulated(x[:count]).numpy()
        assert np.abs(runner.run([x[:count].numpy()])[0] - wanted).max() < 0.02 * wanted.std()


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.l(x).topk(3, -1),
        lambda net, x: net.l(x).sort(-1, descending=True),
        lambda net, x: net.l(x)[torch.arange(x.shape[0]), x.argmax(-1).clamp(max=4)],
        lambda net, x: net.l(x)[:, [0, 2, 1]],
        lambda net, x: net.l(x).diff(dim=1),
        lambda net, x: torch.arange(x.shape[0])[:, None] + net.l(x),
        lambda net, x: net.l(x).repeat(1, 2),
        lambda net, x: F.interpolate(net.l(x)[:, None, None].repeat(1, 1, 3, 1), size=(7, 9), mode="bicubic"),
        lambda net, x: F.interpolate(net.l(x)[:, None, None].repeat(1, 1, 3, 1), scale_factor=2, mode="bilinear"),
        lambda net, x: F.interpolate(net.l(x)[:, None, None].repeat(1, 1, 3, 1), scale_factor=2),
        lambda net, x: F.pixel_shuffle(net.l(x).repeat(1, 4).reshape(-1, 8, 3, 1)[:, :, :2], 2),
        lambda net, x: net.l(x).roll(2, 1).flip(1)[:, ::2],
        lambda net, x: F.softplus(net.l(x)) + F.mish(net.l(x)) + F.hardsigmoid(net.l(x)) + F.elu(net.l(x)),
        lambda net, x: net.l(x).reshape(-1, 2, 3).var((1, 2)) + net.l(x).norm(dim=1),
        lambda net, x: torch.where(net.l(x) > 0, x[:, :6], torch.zeros_like(net.l(x))).cumsum(1),
        lambda net, x: F.glu(net.l(x)) + F.group_norm(net.l(x), 2)[:, :3],
        lambda net, x: F.conv_transpose1d(net.l(x)[:, None], net.k, stride=2, padding=1, output_padding=1),
        lambda net, x: F.max_pool1d(net.l(x)[:, None], 3, 2, 1) + F.avg_pool1d(net.l(x)[:, None], 3, 2, 1),
    ],
)
def test_operators_return_what_torch_does(run, tmp_path):
    network = Net(run, l=nn.Linear(8, 6), k=nn.Parameter(torch.randn(1, 2, 3)))
    x = torch.randn(9, 8)
    simulated, runner = written(lambda: network, x, "w8", tmp_path)
    for count in (9, 1, 4):
        with torch.no_grad():
            wanted = [leaf for leaf in pytree.tree_leaves(simulated(x[:count])) if isinstance(leaf, torch.Tensor)]
        found = runner.run([x[:count].numpy()])
        assert len(found) == len(wanted)
        for own, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(own), other, atol=2e-5, rtol=1e-4)


def test_inputs_of_several_sizes_are_refused_for_a_microcontroller(tmp_path):
    graph = capture(nn.Conv2d(8, 4, 3).eval(), images(2), dynamic={0: {2: "height"}})
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", "litert:kernel=micro"), [images(2)])
    with pytest.raises(UnsupportedModel, match="inputs of several sizes: a microcontroller"):
        find_target("litert:kernel=micro").write(simulated, tmp_path)


@pytest.mark.parametrize("kernel", ["builtin", "micro"])
def test_the_program_of_other_kernels_returns_what_the_runner_does(kernel, tmp_path, monkeypatch):
    if kernel == "micro":
        pytest.importorskip("tflite_micro")
    target = find_target(f"litert:kernel={kernel}")
    simulated, runner = written(ONE_LAYER["convolution"], images(2), "w8a8", tmp_path, target.name)
    monkeypatch.chdir(tmp_path)
    names, ports = {}, ports_of(simulated)
    sized = dataclasses.replace(ports, inputs=tuple(port.of_size((2, 8, 9, 9)) for port in ports.inputs))
    exec(target.usage(sized, runner.environment)["Python"], names)
    (wanted,) = runner.run(list(names["inputs"].values()))
    np.testing.assert_array_equal(next(iter(names["outputs"].values())), wanted)
