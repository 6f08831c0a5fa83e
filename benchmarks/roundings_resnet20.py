"""ResNet-20 on CIFAR-10: accuracy by plan and rounding, and MixQuant's widths against uniform ones.

Calibrated on 512 training images, evaluated on the 10,000 test images, simulated; or the demo's network on 512 and 797:

    python -m benchmarks.roundings_resnet20
    python -m benchmarks.roundings_resnet20 --rows "mean 3 bits/brecq" "uniform w4a4/brecq:fisher=true"
    python -m benchmarks.roundings_resnet20 --network demo --rows "uniform w2a8/brecq" "uniform w2a8/brecq:inputs=float"

Plans of a mean width choose among w2a8, w3a8, w4a8, w6a8 and w8a8 by `fisher` and `ilp`; `mixquant` by its own search,
in the bytes of uniform w3a8.
"""

import argparse
import time
from collections.abc import Sequence
from functools import cache

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks.resnet20_table import TASK, Data, plan_for
from mixbit.core.batches import split_batch
from mixbit.demo.data import calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import calibrate

TARGET = "packed"
ROWS = (
    "mean 4 bits/nearest", "mean 4 bits/brecq",
    "mean 3 bits/nearest", "mean 3 bits/gptq", "mean 3 bits/adaround", "mean 3 bits/brecq",
    "mean 2.5 bits/nearest", "mean 2.5 bits/brecq",
    "uniform w4a4/nearest", "uniform w4a4/brecq",
    "uniform w3a8/nearest", "uniform w3a8/brecq", "mixquant/nearest", "mixquant/brecq",
)  # fmt: skip


def load(network: str) -> Data:
    """The network of that name, `resnet20` or `demo`, and its data."""
    if network == "resnet20":
        return Data.load()
    pairs, test = ([split_batch(batch) for batch in batches] for batches in (calibration_batches(), test_batches()))
    graph = mb.capture(trained(), pairs[0][0].args)
    return Data(graph, pairs, test, calibrate(graph, pairs))


def plan_of(data: Data, name: str) -> mb.Plan:
    """The plan of that name: `mean N bits`, `uniform SCHEME` or `mixquant`."""
    kind, _, rest = name.partition(" ")
    if kind == "mean":
        return plan_for(data, TARGET, float(rest.split()[0]))
    if kind == "uniform":
        return uniform_plan(data.graph, rest, target=TARGET)
    table = mb.measure(data.graph, data.calibration, target=TARGET, metric="weight_error_relative")
    in_bytes = float(table.usage["weight_bytes"][:, table.choices.index("w3a8")].sum())
    return mb.search(table, mb.Budget(weight_bytes=in_bytes), method="mixquant")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each plan and rounding as it is done, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="PLAN/ROUNDING")
    parser.add_argument("--network", choices=("resnet20", "demo"), default="resnet20")
    given = parser.parse_args(arguments)
    data, console = load(given.network), Console(width=120)
    columns = "plan", "rounding", "accuracy", "divergence", "mean bits", "seconds"
    table, reference = Table(*columns, title=f"{given.network}, simulated"), Reference.recorded(data.graph, TASK)
    plans = cache(lambda name: plan_of(data, name))
    for row in given.rows:
        name, _, rounding = row.partition("/")
        plan, began = plans(name), time.perf_counter()
        rounded = mb.quantize(data.graph, plan, data.calibration_batches, rounding=rounding)
        seconds = time.perf_counter() - began
        found = evaluate(rounded, data.test, TASK, row, diverging_from=reference)
        layers = data.graph.layers
        bits = sum(one.numel * plan.scheme(one.name).weight_bits for one in layers) / sum(one.numel for one in layers)
        cells = name, rounding, f"{found.accuracy:.2%}", f"{found.divergence:.4f}", f"{bits:.2f}", f"{seconds:.0f}"
        console.print(" ".join(cells))
        table.add_row(*cells)
    console.print(table)


if __name__ == "__main__":
    main()
