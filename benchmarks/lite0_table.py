"""EfficientNet-Lite0, depthwise and with ReLU6: agreement with float and divergence from it, by plan and rounding.

Calibrated on 128 pictures, judged on 149 others, simulated:

    python -m benchmarks.lite0_table
    python -m benchmarks.lite0_table --rows w8a8/nearest "mean 4/brecq:iterations=100,batch_size=8" --count 48

Plans of a mean width choose among what OpenVINO stores, by `fisher` and `ilp`; the verdict on its table comes last.
Exit code 1 where a row of the default ones agrees with float on less than `LEAST`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import cache

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks.networks import efficientnet_lite0
from mixbit.core.batches import split_batch
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.quantization import calibrate, uniform_plan

TARGET = "openvino"
#: Row -> least share of equal top answers.
LEAST = {
    "w8a8/nearest": 0.985, "w8a8/gptq": 0.985,
    "mean 6/nearest": 0.97, "mean 6/gptq": 0.97,
    "mean 4/nearest": 0.93, "mean 4/gptq": 0.93, "mean 4/brecq": 0.96,
    "w4a8/nearest": 0.0,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each plan and rounding as it is done, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(LEAST), metavar="PLAN/ROUNDING")
    parser.add_argument("--count", type=int, default=None, help="pictures to judge on; all where left out")
    given = parser.parse_args(arguments)
    network, console = efficientnet_lite0.load(), Console(width=120)
    graph = mb.capture(network.model, network.calibration[0])
    calibration = calibrate(graph, network.calibration)
    table = cache(lambda: mb.measure(graph, calibration, target=TARGET))
    size = len(network.evaluation[0])
    judges = [split_batch(batch) for batch in network.evaluation[: given.count and -(-given.count // size)]]
    reference = Reference.recorded(graph, network.task)
    answer = Table("plan", "rounding", "agreement", "divergence, nats", "CPU seconds", title="EfficientNet-Lite0")
    bad = []
    for row in given.rows:
        name, _, rounding = row.partition("/")
        kind, _, bits = name.partition(" ")
        plan = (
            mb.search(table(), mb.Budget(mean_bits=float(bits)))
            if kind == "mean"
            else uniform_plan(graph, name, target=TARGET)
        )
        began = time.process_time()
        rounded = mb.quantize(graph, plan, calibration, rounding=rounding)
        seconds = time.process_time() - began
        judged = evaluate(rounded, judges, network.task, row, diverging_from=reference, differing_from=reference)
        (difference,) = judged.differences.values()
        error = float(judged.divergences.std()) / len(judged.divergences) ** 0.5
        divergence = f"{judged.divergence:.4f} +- {error:.4f}"
        cells = name, rounding, f"{difference.agreement:.1%}", divergence, f"{seconds:.0f}"
        console.print(" ".join(cells))
        answer.add_row(*cells)
        if difference.agreement < LEAST.get(row, 0.0):
            bad.append(f"{row}: agrees on {difference.agreement:.1%}, must on {LEAST[row]:.1%}")
    console.print(answer)
    console.print(f"fisher: {table().verdict}")
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
