"""What a study of ResNet-50 for ImageNet consists of: seconds and bytes of a job, and what the caller does alone.

Random weights and images of ImageNet's shape, since only times and bytes matter; one thread, as every job has:

    python -m benchmarks.cluster.resnet50

From these, what a study of so many plans takes on so many workers is computed: the caller's part, the workers' start
(their import of torch is that of `benchmarks.cluster.overhead`), and jobs.
"""

import argparse
import dataclasses
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import mixbit as mb
from benchmarks.resnet50 import ResNet50
from mixbit.metric_study.plans import draw_choices
from mixbit.metric_study.subject import Subject
from mixbit.metrics.measure import blank_table

SIDE, CLASSES = 224, 1000
#: Seconds of `benchmarks.cluster.overhead`: until a Ray worker has begun, and of a job that does nothing.
BEGIN, DISPATCH = 22.4, 0.005
#: A study: plans, and images of ImageNet's validation set that each is evaluated on.
PLANS, IMAGES = 150, 50_000
WORKERS = (1, 8, 32, 64, 128, 256)


def images(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 8 random images with labels."""
    generator = torch.Generator().manual_seed(seed)
    size = min(count, 8)
    return [
        (
            torch.randn(size, 3, SIDE, SIDE, generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )
        for _ in range(count // size)
    ]


def timed(what: str, step: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()  # one thread: others on the machine count less than with a clock
    done = step()
    seconds = time.process_time() - began
    print(f"{what:44} {seconds:8.2f} s", flush=True)
    return done, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=64, help="images to calibrate on; a study takes 512")
    parser.add_argument("--evaluation", type=int, default=32)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calibration, evaluation = images(given.calibration, 0), images(given.evaluation, 1)
    graph, capture = timed("capture", lambda: mb.capture(ResNet50().eval(), calibration[0][0]))
    subject, calibrate = timed(
        f"calibrate on {given.calibration} images", lambda: Subject.of((graph, calibration, evaluation))
    )
    _, in_float = timed(f"float network on {given.evaluation} images", lambda: subject.reference)
    frame = blank_table(graph, target="packed", choices=["w2", "w3", "w4", "w8"])
    plans = [frame.plan(choice, "drawn") for choice in draw_choices(frame, 3, None, 0)["random"]]
    first, _ = timed("first plan: scales of its weights, evaluation", lambda: subject.truth(plans[0]))
    _, again = timed("the same plan again: evaluation", lambda: subject.truth(plans[0]))
    sent = dataclasses.replace(subject.calibration, batches=()), subject.found()
    job, answer, known, outputs = (len(pickle.dumps(each)) for each in (plans[0], first, *sent))
    print(
        f"a job {job:,} bytes, its answer {answer:,}; once for each worker the calibration: {known:,}, and what the "
        f"float network returns: {outputs / given.evaluation * IMAGES:,.0f}"
    )

    a_job = again / given.evaluation * IMAGES
    start = BEGIN + capture
    alone = capture + calibrate / given.calibration * 512 + in_float / given.evaluation * IMAGES
    print(f"{PLANS} plans of {IMAGES:,} images each, {a_job:,.0f} s a job in one thread:")
    for workers in WORKERS:
        rounds = -(-PLANS // workers)
        whole = alone + start + rounds * a_job + PLANS * DISPATCH
        one = alone + PLANS * a_job
        print(
            f"{workers:5} workers: {whole / 3600:8.2f} h, {one / whole:6.1f} times one process, "
            f"{one / whole / workers:5.2f} of what so many could do"
        )


if __name__ == "__main__":
    main()
