"""How good a plan truly is: the network is quantized so, and evaluated, in simulation or in its runtime."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mixbit.batches import Batch, as_given
from mixbit.calibrate import Calibration
from mixbit.errors import InvalidInput, MixbitError
from mixbit.evaluation import Evaluation, artefact_runner, evaluate, graph_runner
from mixbit.exporting import copy_module
from mixbit.graph import Graph
from mixbit.interrupts import time_limit
from mixbit.journal import Journal
from mixbit.plan import Plan
from mixbit.quantization import quantize
from mixbit.target import target_module
from mixbit.task import Task

Score = Callable[[nn.Module, Sequence[Any]], float]
"""`score(model, batches) -> float`, the higher the better: the user's own evaluation function.

A batch is what the model takes, with labels last or under `labels` where there are any.
"""


class _Model(nn.Module):
    """A graph of its own for a function of the user's own, which may call and change it like any module."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph_module = graph.module  # so that it is found among the parameters
        self.graph = graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.graph(*args, **kwargs)


@dataclass(frozen=True)
class Scoring:
    """How plans are scored.

    Attributes:
        graph: The float graph.
        calibration: Of the graph.
        batches: To evaluate on.
        task: What the outputs mean.
        score: The user's own function; where None, the share of right answers, or without labels the divergence from
            the float network, negative.
        timeout_s: Longest time of one evaluation; None for any.
        journal: Keeps the scores, so that none is taken twice.
        simulate: Makes the simulation of a plan.
    """

    graph: Graph
    calibration: Calibration
    batches: Sequence[Batch]
    task: Task
    score: Score | None = None
    timeout_s: float | None = None
    journal: Journal = field(default_factory=Journal)
    simulate: Callable[[Graph, Plan, Calibration], Graph] = quantize

    @cached_property
    def reference(self) -> Evaluation:
        """The float graph's outputs on the batches."""
        return evaluate(graph_runner(self.graph, self.task), self.batches, self.task, "float")

    @property
    def in_accuracy(self) -> bool:
        """Whether scores are shares of right answers."""
        return self.score is None and self.reference.accuracy is not None

    @cached_property
    def float_score(self) -> float:
        """The score of the float network."""

        def score() -> float:
            if self.score is None:
                return self._of_outputs(self.reference)
            return self._of_graph(dataclasses.replace(self.graph, module=copy_module(self.graph.module)))

        return self._timed("float", score)

    def simulated(self, plan: Plan) -> float:
        """The score of the plan's simulation."""
        return self._known_or("simulated", plan, lambda: self._of_graph(self._simulation(plan)))

    def deployed(self, plan: Plan) -> float:
        """The score of the plan's artefact, run in its runtime; a function of the user's own sees the simulation."""
        if self.score is not None:
            return self.simulated(plan)
        return self._known_or("deployed", plan, lambda: self._of_artefact(plan))

    def _simulation(self, plan: Plan) -> Graph:
        return self.simulate(self.graph, plan, self.calibration)

    def _known_or(self, how: str, plan: Plan, score: Callable[[], float]) -> float:
        key = (how, plan.target, *plan.layers.values())
        return self.journal.score_of(key, lambda: self._timed(plan.made_by, score))

    def _of_graph(self, graph: Graph) -> float:
        """The graph is one of its own, which the user's function may change."""
        if self.score is None:
            return self._of_outputs(evaluate(graph_runner(graph, self.task), self.batches, self.task, "try a plan"))
        try:
            with torch.no_grad():
                return float(self.score(_Model(graph), [as_given(batch) for batch in self.batches]))
        except MixbitError:
            raise
        except (Exception, SystemExit) as error:
            raise InvalidInput(f"the evaluation function fails on a plan: {type(error).__name__}: {error}") from error

    def _of_artefact(self, plan: Plan) -> float:
        module, simulated = target_module(plan.target), self._simulation(plan)
        with TemporaryDirectory() as scratch:
            module.write(simulated, Path(scratch))
            runner = module.load(Path(scratch), self.graph)
            run = artefact_runner(runner, self.graph, self.task)
            return self._of_outputs(evaluate(run, self.batches, self.task, "run a plan"))

    def _of_outputs(self, outputs: Evaluation) -> float:
        if outputs.accuracy is not None:
            return outputs.accuracy
        return -outputs.divergence(self.reference, self.task)

    def _timed(self, what: str, run: Callable[[], float]) -> float:
        late = MixbitError(f"the evaluation of {what} took more than {self.timeout_s} s (--eval-timeout)")
        with time_limit(self.timeout_s, late):
            value = run()
        if not math.isfinite(value):
            raise MixbitError(
                f"the evaluation of {what} returns {value}; it must return a finite number, the higher the better"
            )
        return value
