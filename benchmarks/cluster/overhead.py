"""What sharing out costs: seconds until workers have begun, seconds and bytes of a job, for each engine.

python -m benchmarks.cluster.overhead
"""

import pickle
import time
from collections.abc import Callable

import mixbit as mb
from benchmarks.cluster import digits
from mixbit.core import run_jobs
from mixbit.metric_study.subject import Subject
from mixbit.quantization.calibrate import calibrate

ENGINES = {"2 processes": mb.Engine(processes=2), "2 Ray workers": mb.Engine("ray", 2)}
#: Jobs whose answers take no time.
JOBS = 500


def start() -> Callable[[bytes], bytes]:
    """In a worker, what answers a job with itself."""
    return bytes


def main() -> None:
    plan = digits.plans(3, 0)[0]
    subject = Subject.of(digits.setup())
    job, answer = len(pickle.dumps(plan)), len(pickle.dumps(subject.truth(plan)))
    graph, batches, _ = digits.setup()
    histograms = len(pickle.dumps(calibrate(graph, batches, target="packed")))  # type: ignore[arg-type] a graph
    print(f"a plan of {len(plan.layers)} layers: job {job:,} bytes, answer {answer:,} bytes")
    print(f"its calibration with the batches, once for each worker: {histograms:,} bytes; made again: network and data")
    for name, engine in ENGINES.items():
        began = time.monotonic()
        answers = run_jobs(engine, start, [bytes(job)] * JOBS)
        next(answers)
        begun = time.monotonic()
        count = sum(1 for _ in answers)
        seconds = time.monotonic() - begun
        print(f"{name}: first answer after {begun - began:.1f} s, then {seconds / count * 1e3:.2f} ms a job")


if __name__ == "__main__":
    main()
