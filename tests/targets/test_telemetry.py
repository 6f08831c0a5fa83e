"""Runtimes send nothing and leave nothing behind, whoever imported them first."""

import os
import subprocess
import sys

import pytest

#: Ends the process where it tries to reach another machine; argv: a folder, what to import first, and targets.
BEFORE = """
import os
import socket
import sys
import threading


def reached(*args, **_):
    sys.stderr.write(f"reached {args}")
    os._exit(9)


socket.getaddrinfo = socket.socket.connect = reached
folder, first, *targets = sys.argv[1:]
if first:
    import openvino_telemetry

    __import__(first)
    openvino_telemetry.Telemetry.send_event = openvino_telemetry.Telemetry.start_session = reached
"""
#: What holds after it.
AFTER = """
assert dict(os.environ) == before, {*os.environ.items()} ^ {*before.items()}
assert ("openvino_telemetry" in sys.modules) == modules
numbers = os.listdir("/proc/self/fd")
places = [os.readlink(f"/proc/self/fd/{number}") for number in numbers if os.path.islink(f"/proc/self/fd/{number}")]
assert not any("socket" in place or "Microsoft" in place for place in places), places
assert {thread.name for thread in threading.enumerate()} == {"MainThread"}, threading.enumerate()
"""
IMPORTS = """
from mixbit.core import find_target

before, modules = dict(os.environ), "openvino_telemetry" in sys.modules
for target in targets:
    find_target(target).require()
"""
EXPORTS = """
import torch
from torch import nn

import mixbit as mb
from mixbit.quantization import uniform_plan

x = torch.randn(8, 4)
graph = mb.capture(nn.Linear(4, 3).eval(), x)
before, modules = dict(os.environ), "openvino_telemetry" in sys.modules
for target in targets:
    small = mb.quantize(graph, uniform_plan(graph, "w8a8", target=target), [x])
    mb.export(small, f"{folder}/{target}")
    assert mb.verify(f"{folder}/{target}", graph, small, [x]).problems == ()
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@linux
@pytest.mark.parametrize(
    ("program", "first"),
    [(IMPORTS, ""), *[pytest.param(EXPORTS, first, marks=pytest.mark.slow) for first in ("", "openvino")]],
)
def test_nothing_is_sent_and_nothing_is_left(program, first, tmp_path):
    targets = ("onnxruntime", "openvino")
    for target in targets:
        pytest.importorskip(target)
    home = tmp_path / "home"
    home.mkdir()
    quiet = {"CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet} | {"HOME": str(home)}
    if first:  # what the user imported is switched on; only its import is kept from sending
        (home / "intel").mkdir()
        (home / "intel" / "openvino_telemetry").write_text("0")
    words = [sys.executable, "-c", BEFORE + program + AFTER, str(tmp_path / "out"), first, *targets]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=home, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    assert left == (["intel/openvino_telemetry"] if first else [])
