"""Whether `fisher` can rank plans from few samples, and whether its verdict foretells what they lose by others.

    python -m benchmarks.stability resnet20
    python -m benchmarks.stability efficientnet_lite0 --sizes 64 128

Plans of tables from the first samples, from the next ones and so on: what they are foretold to lose over the best ones,
by samples drawn again (the verdict) and by every entry's standard error alone, and what they lose by the table of all
samples. That table holds the few samples too, so that the last figure is a little small. Five weight widths beside
8-bit inputs. The exit code is 1 where all samples do not make plans stable.
"""

import argparse
import dataclasses
import sys
from statistics import mean

import torch

import mixbit as mb
from benchmarks import networks
from mixbit.core.batches import Batch, split_all
from mixbit.core.scheme import Scheme
from mixbit.core.table import Sensitivity
from mixbit.graph.evaluate import fitted
from mixbit.metrics import METRICS, Estimate, MetricInput
from mixbit.metrics.measure import TOLERANCE, blank_table, resampled_excess
from mixbit.quantization import calibrate

CHOICES = tuple(f"w{bits}a8" for bits in (2, 3, 4, 6, 8))
TARGET, MOST_SUBSETS = "openvino", 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=networks.NAMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = networks.load(given.network)
    pairs = split_all(network.calibration, None if isinstance(network.calibration[0], dict) else 1)
    graph = mb.capture(network.model, pairs[0][0])
    task, frame = fitted(network.task, graph, pairs), blank_table(graph, target=TARGET, choices=CHOICES)
    asked = MetricInput(graph, tuple(map(Scheme.parse, CHOICES)), calibrate(graph, pairs), pairs, task, 0)

    def estimated(batches: list[Batch]) -> tuple[Sensitivity, Estimate]:
        found: Estimate = METRICS["fisher"](dataclasses.replace(asked, batches=batches))
        return dataclasses.replace(frame, loss=found.loss, standard_error=found.standard_error), found

    everything, of_all = estimated(list(pairs))
    count, per_batch = sum(pairs.sizes), pairs.sizes[0]
    for size in given.sizes:
        length = max(1, size // per_batch)
        starts = range(0, len(pairs) - length + 1, length)[:MOST_SUBSETS]
        some = [estimated([pairs[place] for place in range(start, start + length)]) for start in starts]
        again = mean(resampled_excess(table, found.resampled) for table, found in some)
        alone = mean(resampled_excess(table) for table, _ in some)
        true = mean(resampled_excess(everything, table.loss[None]) for table, _ in some)
        what = f"{length * per_batch} samples, mean of {len(some)}"
        print(f"{what}: foretold {again:.1%}, by errors alone {alone:.1%}, by all {count} {true:.1%}", flush=True)
    excess = resampled_excess(everything, of_all.resampled)
    print(f"{count} samples: foretold {excess:.1%} (stable: at most {TOLERANCE:.0%})")
    sys.exit(excess > TOLERANCE)


if __name__ == "__main__":
    main()
