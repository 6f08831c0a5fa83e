"""Folders that want to be run: what they name is not, what never ends is not read, and nothing tampered with verifies.

Run: python -m benchmarks.reliability.folders [--count N], some minutes; `mixbit verify` and `bench` in processes of
their own, each with 60 seconds and little more address space than an untouched folder takes.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import mixbit as mb
from mixbit.pipeline import Settings

#: Of one process; torch and onnxruntime reserve some 10 GB of addresses.
SECONDS, BYTES = 60, 16 * 2**30
NETWORK = """
from torch import nn
def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
"""
#: Writes the file `sprung` beside it, wherever it is imported or called.
TRAP = "open(__file__ + '.sprung', 'w')\ndef model(): raise SystemExit(0)\n"


def edited(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """An edit of result.json."""

    def edit(folder: Path) -> None:
        result = json.loads((folder / "result.json").read_text())
        change(result)
        (folder / "result.json").write_text(json.dumps(result))

    return edit


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Another thing in the place of a file."""

    def replace(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return replace


def sparse(path: Path) -> None:
    """A file of 100 GB that takes no room."""
    with path.open("wb") as file:
        file.truncate(100 * 10**9)


def many_values(path: Path) -> None:
    """JSON of few bytes that would take gigabytes."""
    path.write_text('{"files": {"a": [' + "[]," * 20_000_000 + "1]}}")


def outside(folder: Path) -> None:
    """Weights of an ONNX file in another one, under the digest of the new file."""
    import onnx  # noqa: PLC0415 installed where this is asked for

    path = folder / "model.onnx"
    proto = onnx.load(path)
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../dev/zero")
    path.write_bytes(proto.SerializeToString())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edited(lambda result: result["files"].update({path.name: digest}))(folder)


def attacks(trap: Path) -> dict[str, Callable[[Path], object]]:
    """What is done to a folder, by name."""
    whole = {
        "the target is a module": edited(lambda result: result.update(target=str(trap.with_suffix("")))),
        "files names a trap": edited(lambda result: result["files"].update({f"../{trap.name}": "0" * 64})),
        "no file has a digest": edited(lambda result: result.update(files={})),
        "the plan has none": edited(lambda result: result["files"].pop("plan.json")),
        "fewer bytes": edited(lambda result: result["deployed"].update(file_bytes=1)),
        "a layer's bytes": edited(lambda result: next(iter(result["layers"].values())).update(weight_bytes=1)),
        "better accuracy": edited(lambda result: result["deployed"].update(accuracy=0.0)),
        "more samples": edited(lambda result: result["deployed"].update(num_samples=10**9)),
        "weights in another file": outside,
        "result.json of many values": replaced("result.json", many_values),
    }
    for name in ("result.json", "plan.json", "check.safetensors", "model.onnx"):
        whole |= {
            f"{name} is a pipe": replaced(name, os.mkfifo),
            f"{name} is a link to /dev/zero": replaced(name, lambda path: path.symlink_to("/dev/zero")),
            f"{name} has 100 GB": replaced(name, sparse),
        }
    return whole


def mixbit(*words: str, size: int = 0) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `size` is the memory that it may take."""

    def limit() -> None:
        if size:
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

    command = [sys.executable, "-m", "mixbit.app.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, preexec_fn=limit)


def run(place: Path, target: str) -> Path:
    """A folder of results."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    batches = [(images := torch.randn(8, 1, 6, 6), net(images).argmax(1)) for _ in range(4)]
    settings = Settings(metric="weight_error")
    return mb.auto_quantize(
        net, batches, target=target, budget=mb.Budget(mean_bits=5), out=place / target, settings=settings
    ).folder


def main(count: int) -> int:
    """Try each attack; return how many did not end with exit code 2 or 4 and a sentence."""
    started, bad, ends = time.perf_counter(), 0, {2: 0, 4: 0}
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        (trap := place / "trap.py").write_text(TRAP)
        whole = run(place, "onnxruntime")
        edited(lambda result: result.update(model=f"{trap}:model"))(whole)
        bad += mixbit("verify", str(whole), size=BYTES).returncode != 0  # otherwise untouched
        tried = [*attacks(trap).items()][:count]
        for name, attack in tried:
            folder = shutil.copytree(whole, place / "copy")
            attack(folder)
            try:
                done = mixbit("verify", str(folder), size=BYTES)
                status, text = done.returncode, done.stderr
            except subprocess.TimeoutExpired:
                status, text = "hang", ""
            right = status in ends and text.startswith("mixbit: ") and "Traceback" not in text
            ends |= {status: ends[status] + 1} if right else {}
            bad += not right
            print(f"{name:45} {status} {text.strip().splitlines()[-1][-150:] if text.strip() else ''}")
            shutil.rmtree(folder)
        packed = run(place, "packed")
        edited(lambda result: result.update(model=f"{trap}:model"))(packed)
        refused = [mixbit(command, str(packed)).returncode == 2 for command in ("verify", "bench")]
        (network := place / "net.py").write_text(NETWORK)
        given = mixbit("verify", str(packed), "--model", f"{network}:model").returncode
        bad += refused.count(False) + (given not in (0, 4))  # other weights: the user's network runs, the trap does not
        sprung = (place / "trap.py.sprung").exists()
    print(
        f"{len(tried)} folders in {time.perf_counter() - started:.0f} s: {ends[2]} exit 2, {ends[4]} exit 4, "
        f"{bad} otherwise; code run that a folder names: {'yes' if sprung else 'none'}"
    )
    return bad + sprung


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    sys.exit(main(parser.parse_args().count) > 0)
