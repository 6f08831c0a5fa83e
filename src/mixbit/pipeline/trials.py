"""Trying plans: each is simulated, or written and run, and scored; searches and the largest drop choose by scores."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from mixbit.core import (
    Batch,
    Batches,
    Budget,
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
    one_thread,
    runtimes_in_one_thread,
    time_limit,
    users_code,
)
from mixbit.graph import Case, Evaluation, Graph, Reference, evaluate
from mixbit.pipeline.features import layer_features
from mixbit.pipeline.others import Others, Questions, Trial, key_of
from mixbit.quantization import Calibration
from mixbit.roundings import Rounding
from mixbit.roundings.quantize import quantize
from mixbit.searches import Trials
from mixbit.searches.front import Front, front
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
        others: Who tries the plans where that is shared out, each in one thread; None for this process.
    """

    graph: Graph
    batches: Sequence[Batch]
    task: Task
    simulate: Callable[[Plan], Graph]
    score: Score | None = None
    timeout_s: float | None = None
    journal: Journal = field(default_factory=Journal)
    others: Others | None = None

    @cached_property
    def in_float(self) -> Reference:
        """What the float graph returns on the batches."""
        return Reference.recorded(self.graph, self.task)

    @cached_property
    def reference(self) -> Evaluation:
        """What the float graph does on the batches."""
        with self._threads():
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
        with self._threads():
            return self.timed("float", lambda: self._of_graph(self.graph.copy()))

    def _threads(self) -> AbstractContextManager[None]:
        """In the block, as many threads as plans are tried with."""
        return nullcontext() if self.others is None else one_thread()

    def in_words(self, score: float) -> str:
        """A score as people read it."""
        if self.in_accuracy:
            return f"accuracy {score:.2%}"
        return f"score {score:.6g}" if self.score is not None else f"{abs(score):.6g} nats"

    def simulated(self, plan: Plan) -> float:
        """The score of the plan's simulation."""
        return self._stored("simulated", plan, lambda: self._of_graph(self.simulate(plan)))

    def all_simulated(self, plans: Sequence[Plan]) -> list[float]:
        """The scores of the simulations of several plans, at once where that is shared out."""
        if self.others is not None:
            self.others.begin([("simulated", plan) for plan in plans])
        return [self.simulated(plan) for plan in plans]

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
        if self.others is not None:
            return self.others.score_of((how, plan))
        return self.journal.score_of(key_of((how, plan)), lambda: self.timed(plan.made_by, score))

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


def batches_to_try(case: Case, share: float | None) -> Sequence[Batch]:
    """A share of the calibration batches, from all over the data; where None, the data to report on."""
    if share is None:
        return case.evaluation
    batches = Batches.of(case.batches)
    count = math.ceil(share * len(batches))
    return batches.at(index * len(batches) // count for index in range(count))


@dataclass(frozen=True)
class Trying:
    """How other processes try plans; each function goes by its name.

    Attributes:
        share: Plans are scored on this share of the calibration batches; where None, on the data to report on.
    """

    share: float | None
    rounding: str | Rounding
    bias_correction: str
    score: Score | None
    timeout_s: float | None

    def __call__(self, case: Case, calibration: Calibration) -> Callable[[Trial], float | MixbitError]:
        """What tries a plan and returns its score, or the error that this raised."""

        def simulate(plan: Plan) -> Graph:
            return quantize(
                case.graph,
                plan,
                calibration,
                rounding=self.rounding,
                bias_correction=self.bias_correction,
                task=case.task,
                seed=case.seed,
            )

        batches = batches_to_try(case, self.share)
        scoring = Scoring(case.graph, batches, case.task, simulate, self.score, self.timeout_s)

        def score(trial: Trial) -> float | MixbitError:
            how, plan = trial
            try:
                with runtimes_in_one_thread():
                    return scoring.simulated(plan) if how == "simulated" else scoring.deployed(plan)
            except MixbitError as error:  # raised where the search asks for this plan, which it may not do
                return error

        return score


def searched_plan(table: Sensitivity, new_scoring: Callable[[], Scoring], budget: Budget, method: str | Method) -> Plan:
    """The plan of a search, with its prices; the scoring is made only where the search tries plans."""
    scoring = cache(new_scoring)
    trials = Trials(
        evaluate=lambda choice: scoring().simulated(table.plan(choice, "a plan", budget)),
        evaluate_float=lambda: scoring().float_score,
        features=lambda: layer_features(scoring().graph),
        seed=table.seed,
        evaluate_all=lambda choices: scoring().all_simulated(
            [table.plan(choice, "a plan", budget) for choice in choices]
        ),
    )
    return priced(table, budget, search(table, budget, method=method, trials=trials))


def cheapest_plan(table: Sensitivity, scoring: Scoring, drop: MaxDrop) -> tuple[Plan, str]:
    """The plan with the fewest bytes whose artefact drops no more, and the reason for it in a sentence.

    It is on the front of bytes, or uniform where that is cheaper still. Raises InvalidInput for a drop in percent where
    scores are not shares of right answers, and InfeasibleBudget where the dearest plan drops more.
    """
    check_drop(drop, in_accuracy=scoring.in_accuracy, has_score=scoring.score is not None)
    questions = partial(_cheapest, Points(table), scoring.float_score - drop.value)
    if scoring.others is not None:
        scoring.others.go_ahead("deployed", questions)
    search, scores, tried = questions(), None, set[tuple[str, ...]]()
    while True:
        try:
            plans = next(search) if scores is None else search.send(scores)
        except StopIteration as end:
            best, cheaper = end.value
            break
        scores = [scoring.deployed(plan) for plan in plans]
        tried |= {key_of(("deployed", plan)) for plan in plans}
    reason = (
        f"the smallest plan that loses {drop} at most: {scoring.in_words(scoring.deployed(best))}; in float "
        f"{scoring.in_words(scoring.float_score)}; {len(tried)} plans were tried ({best.made_by})"
    )
    if cheaper is not None:
        size, score = cheaper.predicted["weight_bytes"], scoring.deployed(cheaper)
        reason += f"; the next smaller one, {size:,.0f} bytes of weights, has {scoring.in_words(score)}"
    return best.model_copy(update={"budget": {"max_drop": drop.value}}), reason


class Points:
    """The plans of a table's front of bytes, and the uniform ones within the bytes of each; made once."""

    def __init__(self, table: Sensitivity) -> None:
        self.front: Front = front(table, "weight_bytes")
        self.plan = cache(self.front.plan)
        self.uniform = cache(lambda size: uniform_plans(table, Budget(weight_bytes=size)))


def _cheapest(points: Points, least: float) -> Questions:
    """Ask for scores; return the plan of the fewest bytes that scores at least `least`, and the next on the front."""
    halving = points.front.halving(least)
    index = next(halving)
    while True:
        (score,) = yield (points.plan(index),)
        try:
            index = halving.send(score)
        except StopIteration as end:
            index = end.value
            break
    on_front = points.plan(index)
    uniform = points.uniform(on_front.predicted["weight_bytes"])
    scores = yield uniform
    enough = [plan for plan, score in zip(uniform, scores, strict=True) if score >= least]
    best = min([on_front, *enough], key=lambda plan: plan.predicted["weight_bytes"])
    return best, points.plan(index - 1) if best is on_front and index else None


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
