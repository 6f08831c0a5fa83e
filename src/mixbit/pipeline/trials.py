"""Trying plans: each is simulated, or written and run, and scored; searches and the largest drop choose by scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixbit.core import (
    Batch,
    Batches,
    Budget,
    FloatArray,
    Inputs,
    InvalidInput,
    Journal,
    MaxDrop,
    MixbitError,
    Plan,
    Runner,
    Score,
    Sensitivity,
    Task,
    as_given,
    find_target,
    time_limit,
    users_code,
)
from mixbit.graph import Evaluation, Graph, Reference, argument, evaluate
from mixbit.searches import FEATURES, Trials
from mixbit.searches.front import front
from mixbit.searches.search import Method, priced, search, uniform_plans
from mixbit.targets.verify import Artefact, artefact_runner


@dataclass(frozen=True)
class Scoring:
    """How plans are scored on some batches.

    Attributes:
        simulate: Makes the simulation of a plan, a new graph.
        score: The user's own; where None the share of right answers, or without labels minus the divergence from float.
        timeout_s: Longest time of one evaluation; None for any.
        journal: Stores the scores, so that none is taken twice.
    """

    graph: Graph
    batches: Sequence[Batch]
    task: Task
    simulate: Callable[[Plan], Graph]
    score: Score | None = None
    timeout_s: float | None = None
    journal: Journal = field(default_factory=Journal)

    @cached_property
    def in_float(self) -> Reference:
        """What the float graph returns on the batches."""
        return Reference.recorded(self.graph, self.task)

    @cached_property
    def reference(self) -> Evaluation:
        """What the float graph does on the batches."""
        return evaluate(self.in_float, self.batches, self.task, "float", diverging_from=self.in_float)

    @property
    def in_accuracy(self) -> bool:
        """Whether scores are shares of right answers."""
        return self.score is None and self.reference.accuracy is not None

    @cached_property
    def float_score(self) -> float:
        """The score of the float network."""
        if self.score is None:
            return self.timed("float", lambda: _score_of(self.reference))
        return self.timed("float", lambda: self._of_graph(self.graph.copy()))

    def in_words(self, score: float) -> str:
        """A score as people read it."""
        if self.in_accuracy:
            return f"accuracy {score:.2%}"
        return f"score {score:.6g}" if self.score is not None else f"{abs(score):.6g} nats"

    def simulated(self, plan: Plan) -> float:
        """The score of the plan's simulation."""
        return self._stored("simulated", plan, lambda: self._of_graph(self.simulate(plan)))

    def deployed(self, plan: Plan) -> float:
        """The score of the plan's artefact, run in its runtime."""

        def run() -> float:
            with find_target(plan.target).written(self.simulate(plan), self.graph) as runner:
                return self.of_artefact(runner)

        return self._stored("deployed", plan, run)

    def of_artefact(self, runner: Runner) -> float:
        """The score of an artefact that is loaded."""
        artefact = artefact_runner(runner, self.graph)
        if self.score is not None:
            return self._by_user(Artefact(artefact))
        return self._evaluated(artefact, "run a plan")

    def _stored(self, how: str, plan: Plan, score: Callable[[], float]) -> float:
        key = (how, plan.target, *plan.layers.values())
        return self.journal.score_of(key, lambda: self.timed(plan.made_by, score))

    def _of_graph(self, graph: Graph) -> float:
        if self.score is None:
            return self._evaluated(graph, "try a plan")
        return self._by_user(graph.module)

    def _by_user(self, network: nn.Module) -> float:
        score: Any = self.score
        with users_code("the evaluation function fails on a plan"), torch.no_grad():
            value = score(network, Batches.of(self.batches).map(as_given))
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # of None, of a text, of a tensor of several numbers
            what = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InvalidInput(f"the evaluation function returns {what}; return a number, higher is better") from None

    def _evaluated(self, network: Graph | Callable[[Inputs], Any], label: str) -> float:
        beside = None if self.in_accuracy else self.in_float
        return _score_of(evaluate(network, self.batches, self.task, label, diverging_from=beside))

    def timed(self, what: str, score: Callable[[], float]) -> float:
        """What the function returns; raises MixbitError where it takes too long, or that is no finite number."""
        late = MixbitError(f"the evaluation of {what} took more than {self.timeout_s} s (--eval-timeout)")
        with time_limit(self.timeout_s, late):
            value = score()
        if not math.isfinite(value):
            raise MixbitError(f"the evaluation of {what} returns {value}; return a finite number, higher is better")
        return value


def _score_of(evaluation: Evaluation) -> float:
    return -evaluation.divergence if evaluation.accuracy is None else evaluation.accuracy


def searched_plan(table: Sensitivity, new_scoring: Callable[[], Scoring], budget: Budget, method: str | Method) -> Plan:
    """The plan of a search, with its prices; the scoring is made only where the search tries plans."""
    scoring = cache(new_scoring)
    trials = Trials(
        evaluate=lambda choice: scoring().simulated(table.plan(choice, "a plan", budget)),
        evaluate_float=lambda: scoring().float_score,
        features=lambda: layer_features(scoring().graph),
        seed=table.seed,
    )
    return priced(table, budget, search(table, budget, method=method, trials=trials))


def cheapest_plan(table: Sensitivity, scoring: Scoring, drop: MaxDrop) -> tuple[Plan, str]:
    """The plan with the fewest bytes whose artefact drops no more, and the reason for it in a sentence.

    It is on the front of bytes, or uniform where that is cheaper still. Raises InvalidInput for a drop in percent where
    scores are not shares of right answers, and InfeasibleBudget where the dearest plan drops more.
    """
    check_drop(drop, in_accuracy=scoring.in_accuracy, has_score=scoring.score is not None)
    points, least = front(table, "weight_bytes"), scoring.float_score - drop.value
    index = points.cheapest_enough(scoring.deployed, least)
    on_front = points.plan(index)
    limits = Budget(weight_bytes=on_front.predicted["weight_bytes"])
    uniform = [plan for plan in uniform_plans(table, limits) if scoring.deployed(plan) >= least]
    best = min([on_front, *uniform], key=lambda plan: plan.predicted["weight_bytes"])
    reason = (
        f"the smallest plan that loses {drop} at most: {scoring.in_words(scoring.deployed(best))}; in float "
        f"{scoring.in_words(scoring.float_score)}; {len(scoring.journal.scores)} plans were tried ({best.made_by})"
    )
    if best is on_front and index:
        cheaper = points.plan(index - 1)
        size, score = cheaper.predicted["weight_bytes"], scoring.deployed(cheaper)
        reason += f"; the next smaller one, {size:,.0f} bytes of weights, has {scoring.in_words(score)}"
    return best.model_copy(update={"budget": {"max_drop": drop.value}}), reason


def check_drop(drop: MaxDrop, *, in_accuracy: bool, has_score: bool) -> None:
    """Raise InvalidInput for a drop in percent where scores are not shares of right answers, or of all answers."""
    if drop.percent and not in_accuracy:
        unit = "units of your function" if has_score else "nats, since the data has no labels"
        raise InvalidInput(f"max drop {drop}: a percentage is of right answers; give a number, in {unit}")
    if drop.value >= 1 and in_accuracy:
        raise InvalidInput(f"max drop {drop}: of right answers, give less than 1; five points are 5% or 0.05")


def try_score(scoring: Scoring) -> None:
    """Raise MixbitError unless the float network gets a score on the first batch, or, if need be, on all of them."""
    try:
        _ = replace(scoring, batches=scoring.batches[:1]).float_score
    except MixbitError:
        _ = scoring.float_score


def layer_features(graph: Graph) -> FloatArray:
    """[L, F] in the order of FEATURES, of each layer's first operator.

    Strides and kernels are those of the first spatial dimension, 0 and 1 where there is none; the size of the input is
    its spatial extent, or else its last dimension, and 1 for indices.
    """
    rows = []
    for layer in graph.layers:
        operation = layer.operations[0]
        spatial, groups = not operation.channels_last, operation.groups
        outputs = layer.shape[layer.axis] * (groups if operation.kind.name.startswith("conv_transpose") else 1)
        inputs = math.prod(layer.shape) * groups // math.prod((outputs, *(layer.shape[2:] if spatial else ())))
        source = () if operation.input is None else graph.shapes[operation.input]
        stride = argument(graph.node(operation.node), 3, 1) if spatial else 0  # the fourth argument of a convolution
        features = {
            "depthwise": spatial and groups > 1 and groups == inputs,
            "input_channels": inputs,
            "output_channels": outputs,
            "stride": stride[0] if isinstance(stride, list | tuple) else stride,
            "kernel": layer.shape[2] if spatial else 1,
            "num_weights": layer.numel,
            "input_size": math.prod(source[2:] if spatial else source[-1:]),
        }
        rows.append([float(features[name]) for name in FEATURES])
    return np.array(rows)
