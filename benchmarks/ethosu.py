"""Flash for an Ethos-U as Vela compiles it: uniform widths, and mixed plans that diverge no more than is allowed.

The mixed plan is the smallest that a search in predicted bytes comes to whose divergence from the float network,
measured on test data, is at most so many times that of uniform 8 bits; the uniform width is the narrowest of these:

    python -m benchmarks.ethosu resnet20 ds_cnn
    python -m benchmarks.ethosu resnet20 --accelerator ethos-u85-256
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks.networks import load
from benchmarks.zoo.audio import ds_cnn
from mixbit.core.batches import Batch, split_batch
from mixbit.core.errors import InfeasibleBudget
from mixbit.core.target import Target, find_target
from mixbit.core.task import Task
from mixbit.graph import Graph
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import Calibration, calibrate

#: Times the divergence of uniform 8 bits that plans may have, budgets that are tried, and test batches that are used.
ALLOWED, TRIES, BATCHES = 2.0, 6, 3
#: Budgets that are tried below the smallest that was found, and how far: divergence does not fall with every byte.
FURTHER, LEAST_SHARE = 6, 0.9
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
TASK = Task.classification()


@dataclass
class Network:
    """A network with its data, and how it is quantized."""

    graph: Graph
    calibration: Calibration
    test: list[Batch]
    reference: Reference
    rounding: str

    @classmethod
    def load(cls, name: str, rounding: str) -> "Network":
        """The zoo's DS-CNN, or a network of `benchmarks.networks`."""
        given = ds_cnn() if name == "ds_cnn" else load(name)
        test = given.test if name == "ds_cnn" else given.evaluation  # type: ignore[union-attr]
        pairs = [split_batch(batch) for batch in given.calibration]
        graph = mb.capture(given.model, pairs[0][0].args)
        test = [split_batch(batch) for batch in test[:: max(1, len(test) // BATCHES)]]
        return cls(graph, calibrate(graph, pairs, target="ethosu"), test, Reference.recorded(graph, TASK), rounding)

    def tried(self, plan: mb.Plan) -> tuple[Graph, float, float | None]:
        """The simulation, its divergence in nats, and its accuracy, where there are labels."""
        simulated = mb.quantize(self.graph, plan, self.calibration, rounding=self.rounding)
        found = evaluate(simulated, self.test, TASK, f"simulate {plan.made_by}", diverging_from=self.reference)
        return simulated, found.divergence, found.accuracy


def smallest(network: Network, table: mb.Sensitivity, allowed: float) -> tuple[Graph, float, float | None] | None:
    """The mixed plan of the smallest budget between the cheapest and the dearest one that diverges so little."""
    sizes, best = table.usage["weight_bytes"], None

    def tried(budget: float) -> tuple[Graph, float, float | None] | None:
        with suppress(InfeasibleBudget):
            found = network.tried(mb.search(table, mb.Budget(weight_bytes=budget)))
            return found if found[1] <= allowed else None
        return None

    low, high = float(sizes.min(1).sum()), float(sizes.max(1).sum())
    for _ in range(TRIES):
        middle = (low * high) ** 0.5
        if (found := tried(middle)) is None:
            low = middle
        else:
            best, high = found, middle
    further = (tried(high * LEAST_SHARE ** (1 - number / FURTHER)) for number in range(FURTHER))
    return best if best is None else next((found for found in further if found is not None), best)


def rows_for(name: str, rounding: str, target: Target) -> list[tuple[str, ...]]:
    """Uniform 8 bits, the narrowest uniform width that is allowed, and the mixed plan, compiled."""
    network = Network.load(name, rounding)
    tried, allowed, narrow = {}, float("inf"), ""
    for bits in WIDTHS:
        scheme = f"w{bits}a8"
        tried[scheme] = network.tried(uniform_plan(network.graph, scheme, target=target.name))
        allowed = min(allowed, ALLOWED * tried["w8a8"][1])
        if tried[scheme][1] > allowed:
            break
        narrow = scheme
    table = mb.measure(network.graph, network.calibration, target=target)
    plans = {"uniform w8a8": tried["w8a8"], f"uniform {narrow}": tried[narrow]}
    if (mixed := smallest(network, table, allowed)) is not None:
        plans["mixed"] = mixed
    rows, whole = [], 0
    for plan, (simulated, divergence, accuracy) in plans.items():
        with TemporaryDirectory() as scratch:
            mb.export(simulated, Path(scratch) / "out")
            runner = target.load(Path(scratch) / "out")
        flash, sram, cycles = (
            int(runner.environment[key].replace(",", "")) for key in ("flash_bytes", "sram_bytes", "cycles")
        )
        whole = whole or flash
        assert simulated.plan is not None  # noqa: S101 it was quantized
        bits = sum(layer.numel * simulated.plan.scheme(layer.name).weight_bits for layer in simulated.layers)
        mean = bits / sum(layer.numel for layer in simulated.layers)
        rows.append((name, plan, f"{mean:.2f}", f"{divergence:.5f}",
                     "-" if accuracy is None else f"{accuracy:.2%}", f"{flash:,}",
                     f"{flash / whole:.3f}", f"{cycles:,}", f"{sram:,}"))  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet20", "ds_cnn"])
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--accelerator", default="ethos-u55-128")
    given = parser.parse_args(arguments)
    target = find_target(f"ethosu:accelerator={given.accelerator}")
    columns = (
        "network",
        "plan",
        "mean bits",
        "divergence",
        "accuracy",
        "flash bytes",
        "of w8a8",
        "cycles",
        "SRAM bytes",
    )
    table = Table(*columns, title=f"{given.accelerator}, rounding {given.rounding}")
    for name in given.networks:
        for row in rows_for(name, given.rounding, target):
            table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
