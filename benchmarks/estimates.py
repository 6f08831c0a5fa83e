"""What `quantize` says that a run will take, before the work, beside what it took.

    python -m benchmarks.estimates

The shipped network, and ResNet-20 on 512 CIFAR-10 images with another 2,000 to evaluate on, each in a process of its
own, on onnxruntime, by each of three metrics: seconds and GiB of the process at its peak.
"""

import logging
import multiprocessing
import re
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.demo.data import calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.pipeline import Settings, auto

METRICS = ("fisher", "fit", "measured")


def subject(name: str) -> tuple[Any, list[Any], list[Any]]:
    """Network, batches to calibrate on, batches to evaluate on."""
    if name == "digits":
        return trained(), calibration_batches(), test_batches()
    archive = paths.require("MIXBIT_CIFAR10")
    parts = [cifar.load_images(archive, *which, seed=0) for which in (("train", 512), ("test", 2000))]
    return resnet20.load(paths.require("MIXBIT_RESNET20")), *(cifar.batches(*part, 64) for part in parts)


def run(name: str, metric: str, to: Connection) -> None:
    """Send what is said of one run, its seconds and the peak of memory in GiB."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mixbit").addHandler(handler)
    logging.getLogger("mixbit").setLevel(logging.INFO)
    auto.LONG_S = 0.0
    model, batches, evaluation = subject(name)
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        mb.auto_quantize(
            model,
            batches,
            target="onnxruntime",
            budget=mb.Budget(mean_bits=4),
            out=Path(folder) / "out",
            eval_batches=evaluation,
            settings=Settings(metric=metric),
        )
    text = next(message for message in said if message.startswith("this will take"))
    to.send((text, time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def main() -> None:
    """Print a row for each run."""
    print("| network | metric | expected | took | memory |\n|---|---|---|---|---|")
    for name in ("digits", "ResNet-20"):
        for metric in METRICS:
            receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(target=run, args=(name, metric, sender))
            process.start()
            text, seconds, gib = receiver.recv()
            process.join()
            print(f"| {name} | {metric} | {re.sub('this will take ', '', text)} | {seconds:.0f} s | {gib:.1f} GiB |")


if __name__ == "__main__":
    main()
