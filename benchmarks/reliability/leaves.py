"""What a run of each target leaves of itself: files, threads, environment, settings of Python and torch, packets.

`python -m benchmarks.reliability.leaves`, on a machine where nothing else uses the network.
"""

import argparse
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rich.style  # noqa: F401 it draws a random number when it is imported
import torch

import mixbit as mb
from benchmarks.reliability.network import data, model

TARGETS = ("packed", "onnxruntime", "openvino")


def packets() -> list[int]:
    """Datagrams sent (a name that is looked up is one) and connections opened, by all processes of the machine."""
    lines = Path("/proc/net/snmp").read_text(encoding="ascii").splitlines()
    return [_counter(lines, "Udp:", "OutDatagrams"), _counter(lines, "Tcp:", "ActiveOpens")]


def _counter(lines: list[str], protocol: str, name: str) -> int:
    names, values = (line.split() for line in lines if line.startswith(protocol))
    return int(values[names.index(name)])


def state() -> dict[str, Any]:
    """What a run could change of the process that it runs in and of the folders that it sees."""
    gc.collect()
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "working folder": sorted(path.name for path in Path.cwd().iterdir() if path.name != "out"),
        "TMPDIR": sorted(str(path) for path in Path(tempfile.gettempdir()).rglob("*")),
        "home": sorted(str(path) for path in Path.home().rglob("*")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii"),
        "open files": [str(link) for number in Path("/proc/self/fd").iterdir() if (link := _opened(number))],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "random": random.getstate(),
        "numpy.random": np.random.get_state()[1].tolist(),  # noqa: NPY002 the one that all share
        "torch.random": torch.random.get_rng_state().tolist(),
        "torch": [torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()],
        "numpy": np.geterr(),
        "logging": [root.level, list(root.handlers), logging.root.manager.disable],
        "streams": [sys.stdout, sys.stderr, sys.excepthook],
        "path": list(sys.path),
    }


def _opened(number: Path) -> Path | None:
    """The file behind it, None where it is closed by now, as that of the listing is."""
    return number.readlink() if number.is_symlink() else None


def left_by(target: str) -> list[str]:
    """What a run in this process changed."""
    network, batches = model(), data()
    before, sent, filters = state(), packets(), list(warnings.filters)
    mb.auto_quantize(network, batches, target=target, budget=mb.Budget(mean_bits=4), out=Path("out"))
    after = state()
    changes = [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    if packets() != sent:
        changes.append(f"packets: {sent} -> {packets()}")
    if warnings.filters[-len(filters) :] != filters:  # modules that are imported put theirs before these
        changes.append(f"warnings: {filters} -> {warnings.filters}")
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-this-process", choices=TARGETS, help="run once, and print what is left")
    if (target := parser.parse_args().in_this_process) is not None:
        print(*left_by(target), sep="\n", end="")
        return
    found = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as scratch:
            places = {name: Path(scratch) / name for name in ("cwd", "HOME", "TMPDIR")}
            for place in places.values():
                place.mkdir()
            told = subprocess.run(
                [sys.executable, "-m", "benchmarks.reliability.leaves", "--in-this-process", target],
                cwd=places.pop("cwd"),
                env=os.environ | places | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                text=True,
                check=True,
            )
        found += [f"{target}: {line[:500]}" for line in told.stdout.splitlines()]
    print(f"left by runs with {', '.join(TARGETS)}: {'; '.join(found) or 'nothing'}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
