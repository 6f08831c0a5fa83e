"""From the user's model and data to the captured network: in this process, and again in those that share its work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import nn

from mixbit.core import Batch, Task, hold_out, split_batches
from mixbit.graph import Graph, check_graph, fitted
from mixbit.graph.capture import Dynamic, capture_all, check_module
from mixbit.pipeline.settings import Run, Settings
from mixbit.quantization import equalized, reestimated
from mixbit.quantization.shared import Shared
from mixbit.targets.export import check_exportable


@dataclass(frozen=True)
class Network:
    """The float graph, and batches to calibrate, measure and train on, to compare plans on, and to report on.

    `dense` is the graph with all its channels, where some were removed; `pairs` are the batches of the first two kinds,
    in their order, and `task` is fitted to the graph.
    """

    graph: Graph
    dense: Graph | None
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    evaluation: Sequence[Batch]
    pairs: Sequence[Batch]
    task: Task


@dataclass(frozen=True)
class Preparation:
    """What makes the network of the user's model: settings of these names, which travel to other processes."""

    samples: int | None
    reestimate_batch_norms: bool
    equalize: bool
    dynamic: Dynamic

    @classmethod
    def of(cls, settings: Settings) -> "Preparation":
        """Those of a run."""
        return cls(settings.samples, settings.reestimate_batch_norms, settings.equalize, settings.dynamic)

    def network(
        self, model: nn.Module, batches: Iterable[Any], eval_batches: Iterable[Any] | None, task: Task, out: Path
    ) -> Network:
        """The captured network with its data, which may be written beside the folder of results.

        Raises InvalidInput for data that does not fit, and UnsupportedModel for a model that cannot be captured.
        """
        check_module(model)
        place = next(folder for folder in out.absolute().parents if folder.is_dir())
        pairs = task.aligned(split_batches(model, batches, samples=self.samples, folder=place))
        held_out, calibration = hold_out(pairs)
        if self.reestimate_batch_norms:
            model = reestimated(model, calibration)
        graph = capture_all(model, pairs.map(itemgetter(0)), self.dynamic)
        check_graph(graph)
        check_exportable(graph)
        graph = equalized(graph, calibration) if self.equalize else graph
        evaluation = held_out
        if eval_batches is not None:
            evaluation = task.aligned(split_batches(model, eval_batches, folder=place))
        for what, part in (("", pairs), (" to evaluate on", evaluation)):
            for number, (inputs, _) in enumerate(part):
                graph.check(inputs, f"batch {number}{what}")
        return Network(graph, None, calibration, held_out, evaluation, pairs, fitted(task, graph, calibration))


@contextmanager
def in_others(run: Run) -> Iterator[None]:
    """In the block, the processes that share the run's work are there; each makes the network and its data too."""
    if run.shared is None:
        yield
        return
    again = partial(_again, run.shared.setup, Preparation.of(run.settings), run.out.absolute())
    with Shared(again, run.shared.engine).begun() as run.others:
        yield


def _again(setup: Callable[[], tuple[Any, ...]], preparation: Preparation, out: Path) -> tuple[Any, ...]:
    model, batches, eval_batches, *rest = setup()
    task = Task.of(rest[0] if rest else None)
    network = preparation.network(model, batches, eval_batches, task, out)
    return network.graph, network.batches, network.evaluation, task
