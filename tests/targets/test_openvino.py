"""What only OpenVINO needs."""

import subprocess
import sys

import pytest

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
