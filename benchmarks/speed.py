"""What steps cost against one plain forward and backward pass over the same batches, now and at an earlier commit.

    python -m benchmarks.speed resnet20 [--before COMMIT] [--parts measure,fisher] [--nncf ENVIRONMENT/bin/python]

CPU seconds of the calibration batches of a network of `benchmarks.networks`, one thread. Each round runs every part of
each commit in a process of its own, in turn with its own plain pass; ratios are medians over the rounds, and beside
them stands the range. The earlier commit's source is unpacked from git, and reads the same networks.

Parts: `measure` (calibration, scales, the metric and its verdict; five weight widths), `fisher` alone on all samples
with scales at hand, `simulated` (evaluating w8a8 against evaluating float), and `auto` (the whole `auto_quantize` at
mean 3 bits, with `--nncf` against NNCF's int8 of the float file on the same batches). The exit code is 1 where a figure
of now is over its limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from openvino import convert_model, save_model

import mixbit as mb
from benchmarks import networks
from mixbit.core.batches import Inputs, split_all
from mixbit.core.scheme import Scheme
from mixbit.graph.evaluate import evaluate, fitted
from mixbit.metrics import METRICS, MetricInput
from mixbit.pipeline import Settings
from mixbit.quantization import calibrate, uniform_plan

CHOICES = tuple(f"w{bits}a8" for bits in (2, 3, 4, 6, 8))
#: The most that a part may cost: in plain passes; `auto` in runs of NNCF, `simulated` in evaluations of float.
LIMITS = {"measure": 1.8, "fisher": 1.3, "simulated": 1.5, "auto": 2.0}
LIMITS_OF = {"minilm": LIMITS | {"measure": 1.6}}
#: Quantizes the OpenVINO file argv[1] on the arrays argv[3:], writes argv[2], and prints its CPU seconds.
NNCF = """
import sys, time
sys.modules["openvino_telemetry"] = None
import nncf, numpy, openvino
samples = [list(numpy.load(path).values()) for path in sys.argv[3:]]
began = time.process_time()
model = nncf.quantize(openvino.Core().read_model(sys.argv[1]), nncf.Dataset(samples))
openvino.save_model(model, sys.argv[2])
print(time.process_time() - began)
"""
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=networks.NAMES)
    parser.add_argument("--before", help="a commit to compare with")
    parser.add_argument("--parts", default="measure,fisher,simulated", help="with commas between")
    parser.add_argument("--target", default="openvino", choices=("openvino", "onnxruntime"), help="of `auto`")
    parser.add_argument("--nncf", help="interpreter with NNCF 3.4, for `auto`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(_seconds(given.network, given.parts.split(","), given.target, given.nncf)))
        return
    with tempfile.TemporaryDirectory() as folder:
        trees = {"now": ROOT}
        if given.before:
            packed = subprocess.run(["git", "archive", given.before, "src"], cwd=ROOT, check=True, capture_output=True)
            with tarfile.open(fileobj=BytesIO(packed.stdout)) as source:
                source.extractall(folder, filter="data")
            trees["before"] = Path(folder)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(given.rounds):
            for name, tree in trees.items():
                rounds[name].append(_run(tree, [*sys.argv[1:], "--work"]))
    over = False
    for name, found in rounds.items():
        for part in (part for part in given.parts.split(",") if part in found[0]):
            ratios = sorted(one[part] for one in found)
            most = LIMITS_OF.get(given.network, LIMITS)[part]
            limit = f", at most {most}" if name == "now" else ""
            print(f"{given.network}, {part}, {name}: {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}){limit}")
            over |= name == "now" and median(ratios) > most
    sys.exit(over)


def _run(tree: Path, arguments: list[str]) -> dict[str, float]:
    """The ratios that a process with the source of that tree prints."""
    paths = os.pathsep.join([str(tree / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(name: str, parts: list[str], target: str, nncf: str | None) -> dict[str, float]:
    """Part -> its ratio."""
    torch.set_num_threads(1)
    network = networks.load(name)
    pairs = split_all(network.calibration, None if isinstance(network.calibration[0], dict) else 1)
    graph = mb.capture(network.model, pairs[0][0])
    task = fitted(network.task, graph, pairs)

    def plain() -> None:
        for inputs, _ in pairs:
            network.model.zero_grad()
            outputs = inputs.call(network.model)
            task.information(outputs, None, torch.Generator().manual_seed(0)).backward()

    ratios = {}
    if "measure" in parts:
        measure = lambda: mb.measure(graph, pairs, target="openvino", choices=CHOICES, task=task)  # noqa: E731
        ratios["measure"] = _clock(measure) / _clock(plain)
    if "fisher" in parts:
        schemes = tuple(map(Scheme.parse, CHOICES))
        asked = MetricInput(graph, schemes, calibrate(graph, pairs), pairs, task, 0)
        for layer in graph.layers:
            asked.weight_errors(layer)  # so that scales are known
        _ = asked.quantizers
        ratios["fisher"] = _clock(lambda: METRICS["fisher"](asked)) / _clock(plain)
    if "simulated" in parts:
        quantized = mb.quantize(graph, uniform_plan(graph, "w8a8", target="openvino"), pairs)
        floats = _clock(lambda: evaluate(graph, pairs, task, "float"))
        ratios["simulated"] = _clock(lambda: evaluate(quantized, pairs, task, "simulated")) / floats
    if "auto" in parts:
        ratio = _auto(network, pairs, target, nncf)
        ratios |= {} if ratio is None else {"auto": ratio}
    return ratios


def _auto(network: networks.Network, pairs: Any, target: str, nncf: str | None) -> float | None:
    """Seconds of `auto_quantize` over those of converting, quantizing and saving by NNCF, where that is to be had."""
    with tempfile.TemporaryDirectory() as folder:
        place, budget = Path(folder), mb.Budget(mean_bits=3)
        settings = Settings(task=network.task)
        ours = _clock(
            lambda: mb.auto_quantize(
                network.model, network.calibration, target=target, budget=budget, out=place / "ours", settings=settings
            )
        )
        if nncf is None:
            print(f"auto_quantize: {ours:.1f} s", file=sys.stderr)
            return None
        files = [place / "float.xml", place / "int8.xml"]
        theirs = _clock(lambda: save_model(_converted(network.model, pairs[0][0]), files[0]))
        for number, (inputs, _) in enumerate(pairs):
            files.append(place / f"{number}.npz")
            np.savez(files[-1], *[leaf.numpy() for leaf in inputs.tensors])
        done = subprocess.run([nncf, "-c", NNCF, *map(str, files)], check=True, stdout=subprocess.PIPE, text=True)
        theirs += float(done.stdout.splitlines()[-1])
        print(f"auto_quantize: {ours:.1f} s, NNCF {theirs:.1f} s", file=sys.stderr)
        return ours / theirs


def _converted(model: torch.nn.Module, inputs: Inputs) -> Any:
    if inputs.kwargs:
        return convert_model(model, example_input=dict(inputs.kwargs))
    return convert_model(model, example_input=inputs.args if len(inputs.args) > 1 else inputs.args[0])


def _clock(run: Callable[[], object]) -> float:
    """CPU seconds, with those of processes that it starts."""
    began = sum(os.times()[:4])
    run()
    return sum(os.times()[:4]) - began


if __name__ == "__main__":
    main()
