"""The cheapest artefact of ResNet-20 that loses no more than a point of accuracy, and what a step cheaper would lose.

    python -m benchmarks.max_drop                       # OpenVINO and packed, 1%
    python -m benchmarks.max_drop --targets onnxruntime --drop 0.5%

Calibrated on 512 training images; the drop is that of the artefact on the 10,000 test images, run in its runtime.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import paths, resnet20, resnet20_table
from mixbit.core import MaxDrop


def row(data: resnet20_table.Data, network: object, target: str, drop: MaxDrop) -> tuple[str, ...]:
    """Find the plan, and print what the one a step cheaper on the front scores."""
    began = time.perf_counter()
    with TemporaryDirectory() as scratch:
        done = mb.auto_quantize(
            network,  # type: ignore[arg-type]
            data.calibration_batches,
            target=target,
            budget=mb.Budget(max_drop=drop),
            out=Path(scratch) / "out",
            eval_batches=data.test,
        )
    seconds = time.perf_counter() - began
    result = done.result
    print(f"{target}: {result.chosen}")
    return (
        target,
        f"{result.float_['accuracy']:.2%}",
        f"{done.comparison.accuracy:.2%}",
        f"{done.comparison.weight_bytes:,}",
        f"{done.plan.predicted['mean_bits']:.3f}",
        f"{seconds:.0f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["openvino", "packed"])
    parser.add_argument("--drop", default="1%")
    given = parser.parse_args(arguments)
    data, drop = resnet20_table.Data.load(), MaxDrop.parse(given.drop)
    network = resnet20.load(paths.require("MIXBIT_RESNET20"))
    columns = (
        "target",
        "float",
        "artefact",
        "weight bytes",
        "mean bits",
        "a step cheaper",
        "its bytes",
        "seconds",
        "tried",
    )
    table = Table(*columns, title=f"ResNet-20, allowed drop {drop}")
    for target in given.targets:
        table.add_row(*row(data, network, target, drop))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
