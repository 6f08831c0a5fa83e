"""ResNet-20 within one budget on every target: bytes, what runs in integers, accuracy, latency or cycles.

Calibrated on 512 training images, plans of `fisher` and `ilp`, nearest rounding. Accuracies are those of
evenly spaced test images, in the simulation and in the runtime; latency is that of one image by float's in the same
runtime:

    python -m benchmarks.targets --images 2000
    python -m benchmarks.targets --only litert,executorch
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import mixbit as mb
from benchmarks.resnet20_table import Data, deploy
from mixbit.core import TARGETS, InfeasibleBudget, find_target
from mixbit.quantization import uniform_plan
from mixbit.targets.latency import paired_times

#: Of the weights in float32.
BUDGET = mb.Budget(weight_ratio=0.17)
#: Of targets that have no plan within it, marked in the table.
BYTES = mb.Budget(weight_ratio=0.26)
#: It writes language models of Hugging Face's alone.
ELSEWHERE = ("compressed_tensors",)
COLUMNS = ("target", "weights, of float32", "files, bytes", "in integers", "simulated", "deployed", "latency or cycles")


def row_for(data: Data, target: str) -> tuple[str, ...]:
    """The target's line of the table."""
    runtime = find_target(target)
    table = mb.measure(data.graph, data.calibration, target=target)
    try:
        plan, mark = mb.search(table, BUDGET), ""
    except InfeasibleBudget:  # its kernels of convolutions take a byte a weight
        plan, mark = mb.search(table, BYTES), " *"
    with TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("mixed", "float")}
        simulated, comparison, _ = deploy(data, plan, folders["mixed"])
        mb.export(mb.quantize(data.graph, uniform_plan(data.graph, "float", target=target), None), folders["float"])
        runners = {name: runtime.load(folder, data.graph, batch_size=1) for name, folder in folders.items()}
        image = [data.test[0][0].tensors[0][:1].numpy()]
        times = paired_times({name: runner.run for name, runner in runners.items()}, image, f"time {target}")
        executed, environment = runners["mixed"].executed(), runners["mixed"].environment
    cycles = environment.get("cycles")
    weights = comparison.weight_bytes / sum(4 * layer.numel for layer in data.graph.layers)
    return (
        target + mark,
        f"{weights:.3f}",
        f"{comparison.file_bytes:,}",
        f"{sum('int8' in text for text in executed.values())} of {len(executed)}",
        f"{simulated.accuracy:.2%}",
        f"{comparison.accuracy:.2%}",
        f"{cycles} cycles" if cycles else str(times.ratio("mixed", of="float")),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(name for name in TARGETS if name not in ELSEWHERE))
    parser.add_argument("--images", type=int, default=10_000)
    given = parser.parse_args(arguments)
    data = Data.load()
    step = max(1, sum(inputs.batch_size for inputs, _ in data.test) // given.images)  # images are in order of classes
    test = [(inputs.rows(rows := [*range(0, inputs.batch_size, step)]), labels[rows]) for inputs, labels in data.test]
    data = replace(data, test=test)
    for row in (COLUMNS, ("---",) * len(COLUMNS)):
        print_row(row)
    for target in given.only.split(","):
        print_row(row_for(data, target))


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
