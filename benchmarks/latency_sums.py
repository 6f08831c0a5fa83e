"""How far predicted latencies are off the measured ones of random plans, in the runtime, all plans in turn.

python -m benchmarks.latency_sums --only resnet20 --target openvino --plans 20 --threads 1

Predicted: the sum over layers and conversions that a search counts, see `mixbit.targets.timed`. Nothing is fitted to
the plans that are compared. The last column is the largest error among the plans of one choice for all layers.
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
from mixbit.quantization import Calibration, calibrate
from mixbit.targets import openvino as openvino_target
from mixbit.targets.timed import timed_beside

NETWORKS, RUNTIMES = ("resnet20", "efficientnet_lite0", "minilm"), ("openvino", "onnxruntime")
CHOICES = ("w4a8", "w8a8", "w8", "float")
#: Batches to calibrate on; latency does not depend on them.
NUM_BATCHES = 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(NETWORKS), help="networks, with commas between")
    parser.add_argument("--target", action="append", choices=RUNTIMES, help="may be given twice; both by default")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of the runtimes; by default as many as they take themselves")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        limit_threads(given.threads)
    print(f"{'network':20}{'runtime':13}median  largest  mean  one choice")
    for name in given.only.split(","):
        made = load(name)
        pairs = split_batches(made.model, list(made.calibration[:NUM_BATCHES]))
        graph = mb.capture(made.model, pairs[0][0])
        calibration = calibrate(graph, pairs)

        def simulate(plan: Plan, graph: Graph = graph, calibration: Calibration = calibration) -> Graph:
            return mb.quantize(graph, plan, calibration)

        for target in given.target or RUNTIMES:
            table = blank_table(graph, target=target, choices=CHOICES)
            choices = [np.array(choice) for choice in draw_choices(table, given.plans, None, 1)["random"]]
            uniform = [np.full(len(table.layers), column) for column in range(len(CHOICES))]
            off = timed_beside(table, [*choices, *uniform], graph, simulate)[1] - 1
            mixed, of_one = off[: given.plans], off[given.plans :]
            print(
                f"{name:20}{target:13}{np.median(abs(mixed)):6.1%}{abs(mixed).max():9.1%}{mixed.mean():+7.1%}"
                f"{of_one[abs(of_one).argmax()]:+9.1%}",
                flush=True,
            )


def limit_threads(number: int) -> None:
    """Give the runtimes so many threads, which their settings in the package leave to them."""
    import onnxruntime  # noqa: PLC0415 mixbit has switched its telemetry off

    made = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        new = made()
        new.intra_op_num_threads = number
        return new

    onnxruntime.SessionOptions = options
    openvino_target.SETTINGS["INFERENCE_NUM_THREADS"] = str(number)


if __name__ == "__main__":
    main()
