"""How far sums of the layers' latencies are off the time of random plans, in the runtime, all plans in turn.

python -m benchmarks.latency_sums --only resnet20 --target openvino --plans 20
"""

import argparse
from collections.abc import Sequence

import numpy as np

import mixbit as mb
from benchmarks.networks import load
from mixbit.core import Plan, split_batches
from mixbit.graph import Graph
from mixbit.metric_study.plans import draw_choices
from mixbit.metrics.measure import blank_table
from mixbit.quantization import calibrate
from mixbit.targets.latency import timed_beside

NETWORKS, RUNTIMES = ("resnet20", "efficientnet_lite0", "minilm"), ("openvino", "onnxruntime")
CHOICES = ("w4a8", "w8a8", "w8", "float")
#: Batches to calibrate on; latency does not depend on them.
NUM_BATCHES = 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between")
    parser.add_argument("--target", action="append", choices=RUNTIMES, help="may be given twice; both by default")
    parser.add_argument("--plans", type=int, default=20)
    given = parser.parse_args(arguments)
    print(f"{'network':20}{'runtime':13}median  largest  mean")
    for name in given.only.split(","):
        made = load(name)
        pairs = split_batches(made.model, list(made.calibration[:NUM_BATCHES]))
        graph = mb.capture(made.model, pairs[0][0])
        calibration = calibrate(graph, pairs)

        def simulate(plan: Plan, graph: Graph = graph, calibration: object = calibration) -> Graph:
            return mb.quantize(graph, plan, calibration)

        for target in given.target or RUNTIMES:
            table = blank_table(graph, target=target, choices=CHOICES)
            choices = [np.array(choice) for choice in draw_choices(table, given.plans, None, 0)["random"]]
            off = timed_beside(table, choices, graph, simulate)[1] - 1
            print(f"{name:20}{target:13}{np.median(abs(off)):6.1%}{abs(off).max():9.1%}{off.mean():+7.1%}", flush=True)


if __name__ == "__main__":
    main()
