"""What only OpenVINO needs."""

import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mixbit as mb
from mixbit.core import UnsupportedModel
from mixbit.graph.capture import capture
from mixbit.quantization import uniform_plan
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from mixbit.targets.openvino import TARGET, _core
from mixbit.targets.verify import verify
from tests.networks import Net, plan_of, scheme_of_bytes

INTERRUPTED = """
import faulthandler, gc, pathlib, signal, sys
import torch
import mixbit as mb
from mixbit.graph.graph import model_fingerprint
from mixbit.core.target import find_target

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs in its background
faulthandler.enable()  # as pytest does: from here on the thread has a signal stack
folder, net = pathlib.Path(sys.argv[1]), torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
graph = mb.capture(net, torch.ones(2, 4))
layers = graph.layers
plan = mb.Plan(
    target="openvino", fingerprint=model_fingerprint(layers), layers={layer.name: "w4a8" for layer in layers}
)
mb.export(mb.quantize(graph, plan, [torch.randn(8, 4)]), folder)
load = find_target("openvino").load
runners = [load(folder), load(folder)]
while runners:  # the first one ends first
    del runners[0]
    gc.collect()
spare = [bytearray(12_000) for _ in range(1000)]
try:
    signal.raise_signal(signal.SIGINT)  # in this very thread: the process's signal may reach another
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_an_interrupt_after_files_were_run_is_an_exception_and_no_crash(tmp_path):
    pytest.importorskip("openvino")
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr[-2000:]


@pytest.mark.parametrize("scheme", ["w8", "w4g32", "w4a8"])
def test_a_plain_compilation_rounds_no_input_that_the_plan_leaves_in_float(scheme, tmp_path):
    """The plugin's own default is to round inputs of products with integers to 8 bits, in groups of 32."""
    ov = pytest.importorskip("openvino")
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    x = torch.randn(64, 64)
    graph = capture(net, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme, "openvino"), [x])
    export(simulated, tmp_path)
    # of the plugin's defaults only its float type is set: processors without bfloat16 have float32 anyway
    compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 0
    with torch.no_grad():
        wanted = simulated(x).numpy()
    assert (
        np.sqrt(np.mean((compiled([x.numpy()])[0] - wanted) ** 2)) <= (0.002 if "a8" in scheme else 1e-5) * wanted.std()
    )


def test_averages_of_quantized_tensors_are_not_rounded_for_layers_in_float(tmp_path):
    """The plugin would pool integers and round what it hands on, to whatever reads it."""
    ov = pytest.importorskip("openvino")
    net = Net(
        lambda net, x: [
            net.b(F.avg_pool2d(y := net.a(x).relu(), 2)),
            net.u(F.avg_pool2d(y, 3, 1, 1, False, False)),
            net.l(F.avg_pool2d(y - 1, 2).relu().flatten(1)),
            net.c(y),
        ],
        a=nn.Conv2d(4, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 3, groups=2),
        u=nn.ConvTranspose2d(8, 8, 2, 2),
        l=nn.Linear(128, 8),
        c=nn.Conv2d(8, 8, 1),
    ).eval()
    x = torch.randn(32, 4, 8, 8)
    graph = capture(net, x[:2])
    widest = scheme_of_bytes("openvino")
    schemes = {"a.weight": widest, "b.weight": "w8", "u.weight": "w4", "l.weight": "float", "c.weight": widest}
    simulated = quantize(graph, plan_of(graph.layers, schemes, "openvino"), [x])
    export(simulated, tmp_path)
    compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    for count in (1, 3, 32):
        with torch.no_grad():
            wanted, spreads = simulated(x[:count]), [output.std() for output in simulated(x)]
        for found, expected, spread in zip(compiled([x[:count].numpy()]).to_tuple(), wanted, spreads, strict=True):
            assert (torch.from_numpy(found) - expected).square().mean().sqrt() <= 0.002 * spread


def test_a_shortened_description_computes_the_same(tmp_path, monkeypatch):
    ov = pytest.importorskip("openvino")
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Unflatten(1, (2, 4))),
        *(nn.Flatten(1, 2), nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.LayerNorm(16), nn.Linear(16, 6), nn.Softmax(-1)),
    )
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    simulated = mb.quantize(graph := mb.capture(net, x), uniform_plan(graph, "w4a8", target="openvino"), [x])
    mb.export(simulated, tmp_path / "short")
    monkeypatch.setattr("mixbit.targets._openvino.shorten", lambda path: None)
    mb.export(simulated, tmp_path / "long")
    short, long = tmp_path / "short", tmp_path / "long"
    assert (short / "model.xml").stat().st_size < 0.5 * (long / "model.xml").stat().st_size
    assert TARGET.stored(short) == TARGET.stored(long)
    runners = [TARGET.load(folder) for folder in (short, long)]
    assert runners[0].executed() == runners[1].executed()
    for count in (1, 3, 16):
        outputs = [runner.run([x[:count].numpy()])[0] for runner in runners]
        assert np.array_equal(*outputs)
    models = [_core().read_model(folder / "model.xml") for folder in (short, long)]
    operators = [[one for one in model.get_ops() if one.get_type_name() != "Constant"] for model in models]
    tensors = [
        sorted(re.sub(r"names\[[^]]*\]", "", f"{one.get_type_name()} {one.outputs()}") for one in part)
        for part in operators
    ]
    assert tensors[0] == tensors[1]
    assert [port.get_names() for port in (*models[0].inputs, *models[0].outputs)] == [
        port.get_names() for port in (*models[1].inputs, *models[1].outputs)
    ]
    constants = [operator for operator in models[0].get_ops() if operator.get_type_name() == "Constant"]
    floats = [operator for operator in constants if operator.get_element_type() == ov.Type.f32]
    ranges = [(tuple(operator.data.flatten()), tuple(operator.get_output_shape(0))) for operator in floats]
    assert len(ranges) == len(set(ranges))


@pytest.mark.parametrize(
    "convolve",
    [nn.Conv1d(48, 48, 16, padding=8, groups=4), nn.Conv1d(4, 48, 32), nn.Conv2d(16, 48, (1, 12))],
    ids=["grouped", "one group", "of images"],
)
def test_kernels_that_amx_computes_wrongly_in_integers_run_in_float(convolve, tmp_path):
    net = Net(lambda net, x: net.b(x), b=convolve).eval()
    x = torch.randn(16, convolve.in_channels, *[20] * (convolve.weight.ndim - 3), 62)
    graph = capture(net, x)
    simulated = quantize(graph, plan_of(graph.layers, "w8a8", "openvino"), [x])
    export(simulated, tmp_path)
    runner = TARGET.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(runner.run([x.numpy()])[0]), simulated(x), rtol=1e-4, atol=1e-4)
    assert "int8" not in runner.executed()["b.weight"]


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(torch.special.bessel_j0(x))


def test_a_conversion_that_fails_leaves_the_root_logger_as_it_was(tmp_path):
    graph, root = capture(Unknown(), torch.ones(2, 4)), logging.getLogger()
    small = quantize(graph, uniform_plan(graph, "float", target="openvino"), [torch.ones(2, 4)])
    before = root.level, root.handlers[:], root.filters[:]
    with pytest.raises(UnsupportedModel, match=r"special_bessel_j0.*take another target"):
        export(small, tmp_path / "out")
    assert (root.level, root.handlers, root.filters) == before


def test_products_hold_zero_points_in_their_biases(tmp_path):
    """The plugin then scales and shifts a product's outputs in the product, and all tensors stay what they were."""
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.c((net.n(x) + net.b(F.gelu(net.a(net.n(x))))).transpose(1, 2).reshape(-1, 6, 16)),
        n=nn.LayerNorm(16),
        a=nn.Linear(16, 32),
        b=nn.Linear(32, 16),
        c=nn.Linear(16, 5),
    ).eval()
    x = torch.randn(24, 6, 16) + 0.3
    graph = capture(net, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, "w4a8", "openvino"), [x])
    export(simulated, tmp_path / "out")
    with torch.no_grad():
        wanted = simulated(x)
    found = torch.from_numpy(TARGET.load(tmp_path / "out").run([x.numpy()])[0])
    assert (found - wanted).square().mean().sqrt() < 1e-3 * wanted.std()
    assert (
        verify(tmp_path / "out", graph, simulated, [x], task=mb.Task.regression(), layers=True).first_difference is None
    )

    model = _core().read_model(tmp_path / "out" / "model.xml")
    quantizers = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(quantizers) == 3
    assert all(node.input_value(1).get_node().data < 0 == node.input_value(3).get_node().data for node in quantizers)
    request = _core().compile_model(model, "CPU", {"PERF_COUNT": "YES"}).create_infer_request()
    request.infer([x.numpy()])
    kinds = {row.node_type for row in request.get_profiling_info()}
    assert not kinds & {"Subtract", "Multiply", "MulAdd"}  # shifts and scales behind products


def test_quantizers_that_hold_arithmetic_return_what_they_did(tmp_path):
    """OpenVINO fuses an x + c and an x c into the range that a quantizer reads, not into the one that it returns."""
    torch.manual_seed(0)
    net = Net(
        lambda net, x: [net.a(x * 2), net.b(x - 0.5), net.c(F.gelu(net.d(x.tanh())) + 0.1), net.e(x - 0.25)],
        **{name: nn.Linear(16, 16) for name in "abcd"},
        e=nn.Conv1d(6, 5, 3),
    ).eval()
    x = torch.randn(24, 6, 16)
    graph = capture(net, x[:2])
    simulated = quantize(graph, plan_of(graph.layers, scheme_of_bytes("openvino"), "openvino"), [x])
    export(simulated, tmp_path / "out")
    model = _core().read_model(tmp_path / "out" / "model.xml")
    quantizers = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    ranges = [[node.input_value(place).get_node().data.item() for place in (1, 2, 3, 4)] for node in quantizers]
    assert len(ranges) == 5
    assert sum(low != least == 0 for low, _, least, _ in ranges) == 4  # not of the convolution
    with torch.no_grad():
        wanted = simulated(x)
    for found, expected in zip(TARGET.load(tmp_path / "out").run([x.numpy()]), wanted, strict=True):
        assert (torch.from_numpy(found) - expected).square().mean().sqrt() < 1e-3 * expected.std()
    compared = verify(tmp_path / "out", graph, simulated, [x], task=mb.Task.regression(), layers=True)
    assert compared.first_difference is None
