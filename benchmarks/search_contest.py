"""Searches against one another on ResNet-20: the same tables, budget and evaluation function for all.

    python -m benchmarks.search_contest               # at weight_ratio=0.125; autoq with five seeds of 100 episodes
    python -m benchmarks.search_contest --sequence    # mean bits 2.5 to 8, without autoq

512 training images calibrate and fill the tables. Plans are tried, by searches that do so, on 1,000 other training
images; accuracy is that of the simulation on the 10,000 test images. All scales are chosen alike, inputs have 8 bits.
Seconds are those of the search, its evaluations included, the table's apart.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import Batch, split_batch
from mixbit.core.task import Task
from mixbit.graph import Graph
from mixbit.graph.evaluate import evaluate
from mixbit.pipeline.trials import Scoring, layer_features
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.searches._problem import Trials

TASK = Task.classification()
TARGET = "packed"
#: (metric, search).
CONTESTANTS = (
    ("fisher", "ilp"),
    ("fisher", "greedy"),
    ("fisher", "hawq"),
    ("hawq", "hawq"),
    ("hawq", "ilp"),
    ("weight_error", "mixquant"),
    ("weight_error_relative", "mixquant:criterion=absolute"),
    ("weight_error", "mixquant:criterion=budgeted"),
    ("fisher", "uniform"),
)
IN_SEQUENCE = (("fisher", "ilp"), ("hawq", "hawq"), ("weight_error", "mixquant"), ("fisher", "uniform"))
MEAN_BITS = (2.5, 3, 3.5, 4, 5, 6, 8)
NUM_CALIBRATION, NUM_TRIED = 512, 1000


@dataclass(frozen=True)
class Contest:
    """The network, its data, and the tables of the metrics."""

    graph: Graph
    calibration: Calibration
    batches: list[Batch]
    tried: list[Batch]
    test: list[Batch]
    tables: dict[str, mb.Sensitivity]

    @classmethod
    def load(cls, metrics: Sequence[str]) -> "Contest":
        """From the paths of `benchmarks.paths`."""
        source = paths.require("MIXBIT_CIFAR10")
        images, labels = cifar.load_images(source, "train", limit=NUM_CALIBRATION + NUM_TRIED, seed=0)
        pairs = [split_batch(one) for one in cifar.batches(images[:NUM_CALIBRATION], labels[:NUM_CALIBRATION], 64)]
        tried = [split_batch(one) for one in cifar.batches(images[NUM_CALIBRATION:], labels[NUM_CALIBRATION:], 250)]
        test = [split_batch(one) for one in cifar.batches(*cifar.load_images(source, "test"), 500)]
        graph = mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), pairs[0][0].args)
        calibration = calibrate(graph, pairs)
        tables = {metric: mb.measure(graph, calibration, target=TARGET, metric=metric) for metric in metrics}
        return cls(graph, calibration, pairs, tried, test, tables)

    @cached_property
    def scoring(self) -> Scoring:
        """The evaluation function of searches that try plans: accuracy on images that nothing else sees."""
        return Scoring(self.graph, self.tried, TASK, lambda plan: mb.quantize(self.graph, plan, self.calibration))

    def accuracy(self, plan: mb.Plan) -> float:
        """Share of right answers of the simulation on the test images."""
        simulated = mb.quantize(self.graph, plan, self.calibration)
        found = evaluate(simulated, self.test, TASK, f"test {plan.made_by}").accuracy
        return found or 0.0


@dataclass(frozen=True)
class Entry:
    """What a search found."""

    plan: mb.Plan
    evaluations: int
    seconds: float
    accuracy: float


def enter(contest: Contest, metric: str, search: str, budget: mb.Budget) -> Entry | str:
    """Run the search; the message where it finds no plan."""
    table, evaluations = contest.tables[metric], []

    def score(choice: Sequence[int]) -> float:
        evaluations.append(1)
        return contest.scoring.simulated(table.plan(choice, "a plan", budget))

    def features() -> object:
        return layer_features(contest.graph)

    trials = Trials(score, lambda: contest.scoring.float_score, features)  # type: ignore[arg-type]
    began = time.perf_counter()
    try:
        plan = mb.search(table, budget, method=search, trials=trials)
    except mb.MixbitError as error:
        return str(error)
    return Entry(plan, len(evaluations), time.perf_counter() - began, contest.accuracy(plan))


def contest_at(budget: mb.Budget, seeds: int, episodes: int) -> Table:
    """One row for each contestant."""
    contest = Contest.load(sorted({metric for metric, _ in CONTESTANTS}))
    columns = ("metric", "search", "accuracy", "mean bits", "weight bytes", "fisher's loss", "evaluations", "seconds")
    table = Table(*columns, title=f"ResNet-20 at {budget}")
    for metric, search in CONTESTANTS:
        found = enter(contest, metric, search, budget)
        if isinstance(found, str):
            table.add_row(metric, search, found)
        else:
            table.add_row(metric, search, f"{found.accuracy:.2%}", *_cells(contest, found))
    for start in ("false", "true") if seeds else ():
        entries = []
        for seed in range(seeds):
            found = enter(contest, "fisher", f"autoq:episodes={episodes},warm_start={start},seed={seed}", budget)
            entries.append(found)
            name = f"autoq, {'warm' if start == 'true' else 'cold'}, seed {seed}"
            table.add_row("fisher", name, f"{found.accuracy:.2%}", *_cells(contest, found))
        scores = [entry.accuracy for entry in entries]
        spread = f"{statistics.mean(scores):.2%} ± {statistics.stdev(scores):.2%}" if seeds > 1 else ""
        table.add_row("fisher", f"autoq, {'warm' if start == 'true' else 'cold'}, mean", spread)
    return table


def _cells(contest: Contest, found: Entry) -> tuple[str, ...]:
    layers = found.plan.layers
    fisher = contest.tables["fisher"]
    choice = [fisher.choices.index(layers[layer]) for layer in fisher.layers]
    loss = fisher.loss[range(len(choice)), choice].sum()
    predicted = found.plan.predicted
    return (
        f"{predicted['mean_bits']:.3f}",
        f"{predicted['weight_bytes']:,.0f}",
        f"{loss:.4f}",
        str(found.evaluations),
        f"{found.seconds:.2f}",
    )


def sequence() -> Table:
    """Accuracy by mean bits, one column for each contestant."""
    contest = Contest.load(sorted({metric for metric, _ in IN_SEQUENCE}))
    table = Table("mean bits", *(f"{metric} + {search}" for metric, search in IN_SEQUENCE), title="ResNet-20, accuracy")
    for mean_bits in MEAN_BITS:
        found = [enter(contest, metric, search, mb.Budget(mean_bits=mean_bits)) for metric, search in IN_SEQUENCE]
        cells = [
            "-" if isinstance(one, str) else f"{one.accuracy:.2%} ({one.plan.predicted['mean_bits']:.2f})"
            for one in found
        ]
        table.add_row(f"{mean_bits:g}", *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence", action="store_true", help="accuracy by mean bits")
    parser.add_argument("--budget", nargs="+", default=["weight_ratio=0.125"])
    parser.add_argument("--seeds", type=int, default=5, help="of autoq; 0 leaves it out")
    parser.add_argument("--episodes", type=int, default=100)
    given = parser.parse_args(arguments)
    table = sequence() if given.sequence else contest_at(mb.Budget.parse(given.budget), given.seeds, given.episodes)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
