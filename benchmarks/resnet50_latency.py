"""Latency of ResNet-50 in OpenVINO: mixbit's uniform w8a8 against NNCF's int8 of the same network.

    pip install 'mixbit[openvino]' 'nncf==3.4.*'
    PYTHONPATH=. python benchmarks/resnet50_latency.py

NNCF is needed here and nowhere else. Random weights, 224x224 images, batch 1, f32 inference precision and no
quantization on the fly for all. Both start from the same torch module and the same few random images; NNCF quantizes,
with its default preset, the model that OpenVINO converts. The three networks run in turn, so that a busy machine slows
them alike. The exit code is 1 where mixbit's median exceeds NNCF's by more than LIMIT.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.resnet50 import random_resnet50
from mixbit.graph.capture import capture
from mixbit.quantization.offers import uniform_plan
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export
from mixbit.targets.latency import paired_times
from mixbit.targets.openvino import SETTINGS, load

#: Largest ratio of the medians, mixbit / NNCF.
LIMIT = 1.06
NUM_IMAGES = 16

#: One call of a compiled network on its inputs.
Run = Callable[[list[Any]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scheme", default="w8a8", help="of every layer in mixbit's network (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="independent timings (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a new folder in which mixbit's files stay")
    options = parser.parse_args()
    model = random_resnet50()
    images = torch.randn(NUM_IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with TemporaryDirectory() as scratch:
        runs = {
            "mixbit": mixbit_run(model, images, options.scheme, options.keep or Path(scratch) / "mixbit"),
            "nncf": nncf_run(model, images),
            "float": float_run(model),
        }
        ratios = [timed_ratio(runs, images) for _ in range(options.repeats)]
    print(f"mixbit {options.scheme} / nncf: {median(ratios):.3f}, median of {len(ratios)} (at most {LIMIT})")
    sys.exit(int(median(ratios) > LIMIT))


def timed_ratio(runs: dict[str, Run], images: Tensor) -> float:
    medians = paired_times(runs, [images[:1].numpy()], "time").medians
    times = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in medians.items())
    ratio = medians["mixbit"] / medians["nncf"]
    print(f"{times}; mixbit / nncf {ratio:.3f}", flush=True)
    return ratio


def mixbit_run(model: nn.Module, images: Tensor, scheme: str, folder: Path) -> Run:
    graph = capture(model, images[:2])
    plan = uniform_plan(graph, scheme, target="openvino")
    simulated = quantize(graph, plan, [images[index : index + 4] for index in range(0, len(images), 4)])
    export(simulated, folder)
    return load(folder, batch_size=1).run


def nncf_run(model: nn.Module, images: Tensor) -> Run:
    import nncf  # noqa: PLC0415 not a dependency

    quantized = nncf.quantize(_converted(model), nncf.Dataset(list(images.split(1)), lambda image: image.numpy()))
    return _compiled(quantized)


def float_run(model: nn.Module) -> Run:
    return _compiled(_converted(model))


def _converted(model: nn.Module) -> Any:
    import openvino  # noqa: PLC0415

    return openvino.convert_model(model, example_input=torch.zeros(1, 3, 224, 224), input=[1, 3, 224, 224])


def _compiled(model: Any) -> Run:
    import openvino  # noqa: PLC0415

    return openvino.Core().compile_model(model, "CPU", SETTINGS).create_infer_request().infer


if __name__ == "__main__":
    main()
