"""Latency of w8a8, with and without --fast, beside float and the best int8 of the runtime's own vendor.

    python -m benchmarks.latency --nncf ENVIRONMENT/bin/python
    python -m benchmarks.latency --only resnet50,mobilenet_v3 --target onnxruntime --threads 1

The vendors quantize the float file that mixbit writes, on the same batches: NNCF 3.4 with its defaults, by the
interpreter of `--nncf`, where it is installed (`pip install 'nncf==3.4.*' 'openvino==2026.4.*'`); onnxruntime's
`quantize_static` in QDQ form, its weights per channel and per tensor, the faster of the two. One sample, runs in turn;
ratios are medians with their 95 % intervals. The exit code is 1 if a file of --fast is slower than float for sure, or
one of w8a8 slower than the vendor's.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import mixbit as mb
from benchmarks.resnet50 import random_resnet50
from benchmarks.zoo import subject
from benchmarks.zoo.names import make
from mixbit.core import Plan, find_target, split_batches
from mixbit.graph import Graph
from mixbit.metrics.measure import blank_table
from mixbit.quantization import calibrate, uniform_plan
from mixbit.targets.latency import Ratio, faster, paired_times

NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet", "mobilenet_v3", "detr", "gru", "wav2vec2", "clip")
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

Run = Callable[[list[Any]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between")
    parser.add_argument("--target", action="append", choices=list(FILES), help="may be given twice; both by default")
    parser.add_argument("--threads", type=int, action="append", help="may be given twice; 1 and 2 by default")
    parser.add_argument("--nncf", type=Path, help="interpreter with NNCF; without it OpenVINO's vendor is left out")
    given = parser.parse_args()
    subject.EFFORT, failed = SHARE_OF_TRAINING, False
    print(f"{'network':14}{'runtime':13}threads  {'w8a8 / float':22}{'w8a8 / vendor':22}{'--fast / float':22}in float")
    for name in given.only.split(","):
        model, batches = network(name)
        for target in given.target or FILES:
            with TemporaryDirectory() as scratch:
                files, left = written(model, batches, target, Path(scratch), given.nncf)
                for threads, ratios in timed(files, target, given.threads or (1, 2)):
                    cells = [str(ratios.get(pair, "")) for pair in PAIRS]
                    print(
                        f"{name:14}{target:13}{threads:7}  {''.join(f'{cell:22}' for cell in cells)}{left}", flush=True
                    )
                    failed |= any(ratio.low > 1 for pair, ratio in ratios.items() if pair != PAIRS[0])
    sys.exit(int(failed))


def network(name: str) -> tuple[nn.Module, list[Any]]:
    """A network and batches to calibrate on."""
    if name == "resnet50":
        images = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        return random_resnet50(), list(images.split(4))
    made = make(name)
    return made.model, made.calibration


def written(
    model: nn.Module, batches: list[Any], target: str, folder: Path, nncf: Path | None
) -> tuple[dict[str, tuple[Path, list[Any]]], str]:
    """Name -> file and one sample; and how many layers --fast leaves in float."""
    pairs = split_batches(model, batches)
    graph = mb.capture(model, pairs[0][0])
    calibration = calibrate(graph, pairs)

    def simulate(plan: Plan) -> Graph:
        return mb.quantize(graph, plan, calibration)

    table = faster(blank_table(graph, target=target, choices=("w8a8", "w8", "float")), graph, simulate)
    plans = {name: uniform_plan(graph, name, target=target) for name in ("float", "w8a8")}
    plans["fast"] = table.plan_like(0, "fast")
    for name, plan in plans.items():
        (folder / name).mkdir()
        find_target(target).write(simulate(plan), folder / name)
    samples = [[leaf.numpy() for leaf in graph.tensors(inputs.rows([0]))] for inputs, _ in pairs]
    files = {name: folder / name / FILES[target] for name in plans}
    files |= by_nncf(files["float"], samples, nncf) if target == "openvino" else by_onnxruntime(files["float"], samples)
    left = sum(plans["fast"].scheme(name).input is None for name in plans["fast"].layers)
    return {name: (file, samples[0]) for name, file in files.items()}, f"{left} of {len(table.layers)}"


def by_nncf(file: Path, samples: list[list[Any]], nncf: Path | None) -> dict[str, Path]:
    if nncf is None:
        return {}
    paths = [file.parent / f"sample{number}.npz" for number in range(len(samples))]
    for path, sample in zip(paths, samples, strict=True):
        np.savez(path, *sample)
    out = file.parent / "nncf.xml"
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

    outs = {f"vendor {kind}": file.with_name(f"vendor {kind}.onnx") for kind in ("per tensor", "per channel")}
    for name, out in outs.items():
        quantization.quantize_static(prepared, out, Reader(), per_channel=name.endswith("channel"))
    return outs


PAIRS = (("w8a8", "float"), ("w8a8", "vendor"), ("fast", "float"))


def timed(
    files: dict[str, tuple[Path, list[Any]]], target: str, threads: list[int]
) -> Iterator[tuple[int, dict[tuple[str, str], Ratio]]]:
    """Ratios of paired times with each number of threads."""
    load, sample = {"openvino": openvino_run, "onnxruntime": onnxruntime_run}[target], files["float"][1]
    for count in threads:
        times = paired_times({name: load(file, sample, count) for name, (file, _) in files.items()}, sample, "time")
        vendors = sorted((name for name in files if name.startswith("vendor")), key=times.medians.__getitem__)
        named = {"vendor": vendors[0]} if vendors else {}
        yield count, {(a, b): times.ratio(a, of=named.get(b, b)) for a, b in PAIRS if named.get(b, b) in times.ms}


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
