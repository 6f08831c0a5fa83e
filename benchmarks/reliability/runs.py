"""Runs of `mixbit quantize` in processes of their own, and what their folders hold."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import mixbit as mb
from benchmarks.reliability.network import data, model
from mixbit.app.main import main
from mixbit.quantization import uniform_plan
from mixbit.targets._onnx import converted

#: The phases that a run may be ended in -> target and options that make most of its time.
PHASES = {
    "nearest": ("onnxruntime",),
    "brecq": ("packed", "--rounding", "brecq:iterations=40"),
    "qat": ("packed", "--flavour", "qat", "--epochs", "6"),
    "autoq": ("packed", "--search", "autoq:episodes=12"),
    "channels": ("onnxruntime", "--prune-channels", "0.3"),
}
_NETWORK = "benchmarks.reliability.network"


def words(phase: str, out: Path, *more: str, target: str | None = None) -> list[str]:
    """The command line of a run, for the phase's target or another."""
    usual, *options = PHASES[phase]
    given = ["quantize", f"{_NETWORK}:model", "--data", f"{_NETWORK}:data", "--target", target or usual]
    return [*given, "--budget", "mean_bits=4", "--out", str(out), *options, *more]


def warm_up() -> None:
    """Let torch load here, once, all that forked processes would load each; no threads, which would not be forked."""
    torch.set_num_threads(1)
    batches = [images for images, _ in data()]
    graph = mb.capture(model(), batches[0])
    plan = uniform_plan(graph, "w4a8", target="onnxruntime")
    converted(mb.quantize(graph, plan, batches))


def started(given: list[str], log: Path, prepare: Callable[[], object] = lambda: None) -> BaseProcess:
    """The command line in a process that is forked from this one, in a session of its own, after `prepare`."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(given, log, prepare))
    process.start()
    return process


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of the process."""
    process.join()
    return -1 if process.exitcode is None else process.exitcode


def timed(given: list[str], log: Path) -> float:
    """Seconds of a run that must succeed."""
    began = time.perf_counter()
    if status := exit_code(started(given, log)):
        raise RuntimeError(f"exit code {status}: {log.read_text(encoding='utf-8')}")
    return time.perf_counter() - began


def contents(folder: Path) -> dict[str, bytes | str]:
    """Name -> bytes of each file of a result but the page; of result.json all that is no time, nor a file's name.

    The page, and its digest, hold times.
    """
    files: dict[str, bytes | str] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    result = json.loads(files["result.json"])
    del result["seconds"], result["latency_ratio"], result["command"]
    del result["files"]["report.html"], files["report.html"]
    for part in (result["float"], result["deployed"]):
        part.pop("latency_ms", None)
    files["result.json"] = json.dumps(result)
    return files


def is_half(folder: Path) -> bool:
    """Whether the folder holds some files of a result, and not all of them."""
    left = {path.name for path in folder.iterdir() if "mixbit-" not in path.name} if folder.is_dir() else set()
    if "result.json" not in left:
        return folder.is_dir() and bool(left)
    return not json.loads((folder / "result.json").read_text(encoding="utf-8"))["files"].keys() <= left


def left_overs(folder: Path) -> list[str]:
    """Names of files that are only there while a run writes."""
    return sorted(path.name for path in folder.rglob("*") if "mixbit-" in path.name)


def _run(given: list[str], log: Path, prepare: Callable[[], object]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs in its background
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare()
    sys.argv = ["mixbit", *given]
    main()
