"""Which metric ranks plans best on a trained network: random plans, and what they truly cost on other samples.

    python -m benchmarks.study resnet20                             # weights and inputs of 3, 4, 6 and 8 bits
    python -m benchmarks.study resnet20 --labels --plans 150 --count 10000 --inputs 8
    python -m benchmarks.study minilm --metrics fisher measured --out folder        # goes on where it stopped

The truth is the KL divergence from the float network (of a regression half the squared distance of outputs: of
embeddings 1 - cosine), with --labels accuracy or the loss. Without --metrics, all are asked that take fewer than ten
passes over the data. The exit code is 1 where `fisher` correlates with the divergence by less than 0.95, or another of
them by more than it.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mixbit as mb
from benchmarks import networks
from mixbit.app.commands.steps import print_study
from mixbit.core.batches import Batch, split_all
from mixbit.metrics import METRICS

WIDTHS, MUST = (3, 4, 6, 8), 0.95
#: A pass for each entry of the table or for each random vector.
SLOW = ("hawq", "measured", "measured_loss")


def setup(name: str, count: int, labels: bool) -> tuple[Any, ...]:
    """The network, its calibration data, `count` others at most, with labels where asked for, and the task."""
    network = networks.load(name)
    num_inputs = None if isinstance(network.calibration[0], dict) else 1
    calibration, others = (split_all(data, num_inputs) for data in (network.calibration, network.evaluation))
    evaluation = [(inputs, given if labels else None) for inputs, given in first(others, count)]
    return mb.capture(network.model, calibration[0][0]), calibration, evaluation, network.task


def first(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """So many samples, all where there are fewer."""
    for inputs, labels in batches:
        cut = itemgetter(slice(count))
        if count > 0:
            yield inputs.map(cut), None if labels is None else cut(labels)
        count -= inputs.batch_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and how well each metric ranks by the KL divergence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=networks.NAMES)
    parser.add_argument("--out", type=Path, help="folder that keeps what is finished")
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--count", type=int, default=1000, help="samples that judge, at most")
    parser.add_argument("--labels", action="store_true", help="judge by accuracy or the loss")
    parser.add_argument("--weights", type=int, nargs="+", default=WIDTHS, help="bits")
    parser.add_argument("--inputs", type=int, nargs="+", default=WIDTHS, help="bits")
    parser.add_argument("--metrics", nargs="+", default=[name for name in METRICS if name not in SLOW])
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as scratch:
        found = mb.study(
            partial(setup, given.network, given.count, given.labels),
            target="packed",
            out=given.out or scratch,
            choices=[f"w{weight}a{input_}" for weight in given.weights for input_ in given.inputs],
            metrics=given.metrics,
            num_plans=given.plans,
            engine=mb.Engine(processes=given.processes),
        )
    print_study(found)
    ranked = {name: row["kl_spearman"] for name, row in found.metrics.items() if row.get("kl_spearman") is not None}
    text = ", ".join(f"{name} {value:.3f}" for name, value in sorted(ranked.items(), key=lambda pair: -pair[1]))
    print(f"{given.network}, {given.plans} plans, by the KL divergence: {text}")
    fast = [value for name, value in ranked.items() if name.partition(":")[0] not in SLOW]
    fisher = ranked.get("fisher", -1)
    sys.exit(fisher < max(MUST, *fast))


if __name__ == "__main__":
    main()
