"""What only OpenVINO needs."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import mixbit as mb
from mixbit.quantization import uniform_plan
from mixbit.targets.openvino import TARGET, _core

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


def test_an_interrupt_after_files_were_run_is_an_exception_and_no_crash(tmp_path):
    pytest.importorskip("openvino")
    words = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr[-2000:]


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
    ranges = [tuple(operator.data.flatten()) for operator in constants if operator.get_element_type() == ov.Type.f32]
    assert len(ranges) == len(set(ranges))
