"""Latency of w8a8, with and without --fast, beside float and the best int8 of the runtime's own vendor.

    python -m benchmarks.latency --nncf ENVIRONMENT/bin/python
    python -m benchmarks.latency --only resnet50,mobilenet_v3 --target onnxruntime --threads 1

The vendors quantize the file that OpenVINO or torch converts from the same network, on the same batches: NNCF 3.4 with
its defaults, by the interpreter of `--nncf`, where it is installed (`pip install 'nncf==3.4.*' 'openvino==2026.4.*'`);
onnxruntime's `quantize_static` in QDQ form, its weights per channel and per tensor, the faster of the two. One sample,
runs in turn. Every file is loaded LOADS times, as each load lies in other places of memory: a load's ratio is the
median over its rounds, and what is printed is the median over loads with its 95 % interval. The exit code is 1 if a
whole interval of --fast by float, or of w8a8 by the vendor's, is above 1.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mixbit as mb
from benchmarks.mobilenet_v2 import random_mobilenet_v2
from benchmarks.networks import load
from benchmarks.resnet50 import random_resnet50
from benchmarks.zoo import subject
from benchmarks.zoo.names import make
from mixbit.core import Inputs, Plan, find_target, split_batches
from mixbit.graph import Graph
from mixbit.metrics.measure import blank_table
from mixbit.quantization import calibrate, uniform_plan
from mixbit.targets.faster import faster
from mixbit.targets.latency import Ratio, Times, paired_times
from mixbit.targets.timed import timed_beside

#: Random weights, trained by others, or the zoo's.
IMAGE, SOUND = (3, 224, 224), (32, 128)
RANDOM: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet50": (random_resnet50, IMAGE),
    "mobilenet_v2": (random_mobilenet_v2, IMAGE),
    "wide_lstm": (lambda: WideLSTM().eval(), SOUND),
}
TRAINED = ("efficientnet_lite0", "minilm")
NETWORKS = (*RANDOM, *TRAINED, "mobilenet_v3", "detr", "gru", "lstm", "wav2vec2", "clip")
FILES = {"openvino": "model.xml", "onnxruntime": "model.onnx"}
#: Quantizes the OpenVINO file argv[1] on the arrays argv[3:] and writes argv[2].
NNCF = """
import sys
sys.modules["openvino_telemetry"] = None
import nncf, numpy, openvino
samples = [list(numpy.load(path).values()) for path in sys.argv[3:]]
model = nncf.quantize(openvino.Core().read_model(sys.argv[1]), nncf.Dataset(samples))
openvino.save_model(model, sys.argv[2], compress_to_fp16=False)
"""
SHARE_OF_TRAINING = 0.05  # latency does not depend on it
#: The least number whose smallest and largest value enclose the median in 95 % of all cases.
LOADS = 6
#: Batches to calibrate on, at most; latency does not depend on them either.
NUM_BATCHES = 4
PAIRS = (("w8a8", "float"), ("w8a8", "vendor"), ("fast", "float"))

Run = Callable[[list[Any]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between")
    parser.add_argument("--target", action="append", choices=list(FILES), help="may be given twice; both by default")
    parser.add_argument("--threads", type=int, action="append", help="may be given twice; 1 and 2 by default")
    parser.add_argument("--nncf", type=Path, help="interpreter with NNCF; without it OpenVINO's vendor is left out")
    parser.add_argument("--keep", type=Path, help="a folder in which the files stay, in NETWORK/RUNTIME")
    given = parser.parse_args()
    subject.EFFORT, failed = SHARE_OF_TRAINING, False
    heads = [f"{a} / {b}" for a, b in PAIRS]
    print(f"{'network':19}{'runtime':13}threads  {''.join(f'{head:22}' for head in heads)}float ms  vendor, in float")
    for name in given.only.split(","):
        model, batches = network(name)
        for target in given.target or FILES:
            with TemporaryDirectory() as scratch:
                folder = given.keep / name / target if given.keep else Path(scratch)
                folder.mkdir(parents=True, exist_ok=True)
                files, sample, left = written(model, batches, target, folder, given.nncf)
                for threads in given.threads or (1, 2):
                    loads = timed(files, sample, target, threads)
                    medians = {name: median(times.medians[name] for times in loads) for name in files}
                    vendors = (name for name in files if name.startswith("vendor"))
                    vendor = min(vendors, key=medians.__getitem__, default="")
                    ratios = {(a, b): over(loads, a, of) for a, b in PAIRS if (of := vendor if b == "vendor" else b)}
                    cells = "".join(f"{ratios.get(pair, '')!s:22}" for pair in PAIRS)
                    print(
                        f"{name:19}{target:13}{threads:7}  {cells}{medians['float']:8.2f}  {vendor}, {left}",
                        flush=True,
                    )
                    failed |= any(ratio.low > 1 for pair, ratio in ratios.items() if pair != PAIRS[0])
    sys.exit(int(failed))


class WideLSTM(nn.Module):
    """One LSTM over 32 steps, and a layer for the last state."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(SOUND[1], width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, steps, numbers] to logits."""
        return self.head(self.recurrent(x)[0][:, -1])


def network(name: str) -> tuple[nn.Module, list[Any]]:
    """A network and batches to calibrate on."""
    if name in RANDOM:
        make_network, shape = RANDOM[name]
        samples = torch.randn(4 * NUM_BATCHES, *shape, generator=torch.Generator().manual_seed(1))
        return make_network(), list(samples.split(4))
    made = load(name) if name in TRAINED else make(name)
    return made.model, list(made.calibration[:NUM_BATCHES])


def written(
    model: nn.Module, batches: list[Any], target: str, folder: Path, nncf: Path | None
) -> tuple[dict[str, Path], list[Any], str]:
    """Name -> file; one sample; and how many layers --fast leaves in float."""
    pairs = split_batches(model, batches)
    graph = mb.capture(model, pairs[0][0])
    calibration = calibrate(graph, pairs)

    def simulate(plan: Plan) -> Graph:
        return mb.quantize(graph, plan, calibration)

    table, _ = timed_beside(blank_table(graph, target=target, choices=("w8a8", "w8", "float")), (), graph, simulate)
    table = faster(table, graph, simulate)
    plans = {name: uniform_plan(graph, name, target=target) for name in ("float", "w8a8")}
    plans["fast"] = table.plan_like(0, "fast")
    for name, plan in plans.items():
        (folder / name).mkdir(exist_ok=True)
        find_target(target).write(simulate(plan), folder / name)
    samples = [[leaf.numpy() for leaf in graph.tensors(inputs.rows([0]))] for inputs, _ in pairs]
    files = {name: folder / name / FILES[target] for name in plans}
    converted = convert(model, pairs[0][0].rows([0]), target, folder)
    files |= by_nncf(converted, samples, nncf) if target == "openvino" else by_onnxruntime(converted, samples)
    left = sum(plans["fast"].scheme(name).input is None for name in plans["fast"].layers)
    return files, samples[0], f"{left} of {len(table.layers)}"


def convert(model: nn.Module, example: Inputs, target: str, folder: Path) -> Path:
    """The float network for one sample as the runtime's vendor gets it from torch."""
    path = folder / f"vendor {FILES[target]}"
    if target == "openvino":
        import openvino  # noqa: PLC0415 mixbit has switched its telemetry off

        given = dict(example.kwargs) or example.args
        openvino.save_model(openvino.convert_model(model, example_input=given), path, compress_to_fp16=False)
    else:
        given = {"kwargs": dict(example.kwargs), "external_data": False, "verbose": False}
        torch.onnx.export(model, example.args, path, dynamo=True, **given)
    return path


def by_nncf(file: Path, samples: list[list[Any]], nncf: Path | None) -> dict[str, Path]:
    if nncf is None:
        return {}
    paths = [file.parent / f"sample{number}.npz" for number in range(len(samples))]
    for path, sample in zip(paths, samples, strict=True):
        np.savez(path, *sample)
    out = file.with_name("nncf.xml")
    subprocess.run([str(nncf), "-c", NNCF, str(file), str(out), *map(str, paths)], check=True, capture_output=True)
    return {"vendor": out}


def by_onnxruntime(file: Path, samples: list[list[Any]]) -> dict[str, Path]:
    import onnxruntime  # noqa: PLC0415 mixbit has switched its telemetry off
    from onnxruntime import quantization  # noqa: PLC0415

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ports = [port.name for port in session.get_inputs()]
    prepared = file.with_name("prepared.onnx")
    quantization.quant_pre_process(file, prepared, skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.left, None)
            return None if sample is None else dict(zip(ports, sample, strict=True))

    outs = {f"vendor {kind}": file.with_name(f"static {kind}.onnx") for kind in ("per tensor", "per channel")}
    for name, out in outs.items():
        quantization.quantize_static(prepared, out, Reader(), per_channel=name.endswith("channel"))
    return outs


def timed(files: dict[str, Path], sample: list[Any], target: str, threads: int) -> list[Times]:
    """Times of each load of all files."""
    open_file = {"openvino": openvino_run, "onnxruntime": onnxruntime_run}[target]
    return [
        paired_times({name: open_file(file, sample, threads) for name, file in files.items()}, sample, "time")
        for _ in range(LOADS)
    ]


def over(loads: list[Times], name: str, of: str) -> Ratio:
    """The median ratio over loads, and the least and largest of them."""
    values = [times.ratio(name, of).value for times in loads]
    return Ratio(median(values), min(values), max(values))


def openvino_run(file: Path, sample: list[Any], threads: int) -> Run:
    import openvino  # noqa: PLC0415 mixbit has switched its telemetry off

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({port: list(array.shape) for port, array in zip(model.inputs, sample, strict=True)})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    compiled = core.compile_model(model, "CPU", settings | {"INFERENCE_NUM_THREADS": str(threads)})
    return compiled.create_infer_request().infer


def onnxruntime_run(file: Path, _: list[Any], threads: int) -> Run:
    import onnxruntime  # noqa: PLC0415 mixbit has switched its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ports = [port.name for port in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(ports, inputs, strict=True)))


if __name__ == "__main__":
    main()
