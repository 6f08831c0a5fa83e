"""What tells one subject, loss or metric from another, so that a study takes up only results that still hold."""

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mixbit
from mixbit.core import Budget, InfeasibleBudget, InvalidInput, Plan, Scheme, Sensitivity, track
from mixbit.core.io.digest import digest
from mixbit.metric_study.folder import StudyFolder
from mixbit.metric_study.plans import Choice, RandomPlans
from mixbit.metric_study.processes import in_processes
from mixbit.metric_study.truth import Predicted, Prepared, Subject, Truth, predict
from mixbit.metrics import METRICS, Metric
from mixbit.metrics.measure import blank_table, choose_scales
from mixbit.searches.search import search


def digests(subject: Subject) -> dict[str, str]:
    """What tells this subject from another: hashes of the graph's code and tensors, of the user's loss, of the data."""
    module, loss = subject.graph.module, subject.task.own_loss
    return {
        "code": digest(module.code),
        "loss": "the task's" if loss is None else digest(loss),
        "weights": digest(module.state_dict()),
        "calibration": digest(subject.pairs("calibration")),
        "evaluation": digest(subject.pairs("evaluation")),
    }


def same_subject(setup: Callable[[], Subject], expected: Mapping[str, str]) -> Subject:
    """What the setup returns; raises InvalidInput where that is not what it returned before."""
    subject = setup()
    for name, found in digests(subject).items():
        if found != expected[name]:
            raise InvalidInput(
                f"setup: returns other {name} each time it is called; seed what it draws, and load weights from a file "
                "instead of training them, which gives others with another number of threads; or pass processes=1 "
                "(--processes 1), which calls it once"
            )
    return subject


def metric_digest(metric: str | Metric) -> str:
    """Of one of mixbit's by name, a hash of mixbit's source; of the user's own, of its own."""
    return _own_source() if isinstance(metric, str) else digest(metric)


@cache
def _own_source() -> str:
    package = Path(mixbit.__file__).parent
    return digest("".join(path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))))


#: Where the budgets lie, by whose plans regret is told, between the least and the largest mean bits of the choices.
BUDGETS_AT = (0.25, 0.5, 0.75)
#: Share of a budget that rounding may add to a sum.
TOLERANCE = 1e-9


class StudyRun:
    """The network, ready, and what every step needs to know."""

    def __init__(
        self, setup: Callable[[], Subject], target: str, choices: Sequence[str] | None, seed: int, processes: int
    ) -> None:
        self.setup, self.target, self.seed, self.processes = setup, target, seed, processes
        subject = setup()
        self.prepared, self.digests = Prepared.of(subject), digests(subject)
        self.prepared.check_evaluation()
        self.blank = blank_table(self.prepared.graph, target=target, choices=choices)
        schemes = [Scheme.parse(choice) for choice in self.blank.choices]
        choose_scales(self.prepared.graph, self.prepared.calibration, schemes)  # once for all
        # A process that makes the subject again has its batches.
        self.calibration = pickle.dumps(dataclasses.replace(self.prepared.calibration, batches=()))

    def settings(self, plans: RandomPlans) -> dict[str, Any]:
        """What must be the same for a study to go on."""
        return {
            "model": self.blank.fingerprint,
            **self.digests,
            "num_calibration": sum(inputs.batch_size for inputs, _ in self.prepared.batches),
            "num_evaluation": sum(inputs.batch_size for inputs, _ in self.prepared.evaluation),
            "task": self.prepared.task.name,
            "target": self.target,
            "choices": list(self.blank.choices),
            "seed": self.seed,
            "near_budget": None if plans.near is None else str(plans.near),
        }

    def predict_all(self, folder: StudyFolder, named: Mapping[str, str | Metric]) -> dict[str, Predicted]:
        """What every metric predicts, from the folder where it is there; and mixbit's others that are there."""
        found = {}
        for name, metric in track(list(named.items()), "run metrics"):
            code = metric_digest(metric)
            known = folder.predicted(name, code, self.blank)
            if known is None:
                known = self._predict(metric)
                folder.save_predicted(name, code, known)
            found[name] = known
        for name in folder.metrics():
            if name not in found and name.partition(":")[0] in METRICS:
                known = folder.predicted(name, metric_digest(name), self.blank)
                found |= {} if known is None else {name: known}
        return found

    def _predict(self, metric: str | Metric) -> Predicted:
        ask = partial(predict, target=self.target, choices=self.blank.choices, seed=self.seed)
        if self.processes == 1:
            return dataclasses.replace(ask(self.prepared, metric), peak_mb=None)
        start = partial(_ready, self.setup, self.calibration, self.digests, os.cpu_count() or 1, ask)
        ((_, answer),) = in_processes(start, [metric], 1)
        return answer

    def random_plans(self, drawn: Mapping[str, Sequence[Choice]]) -> dict[str, Plan]:
        """Name in the folder -> plan, of the choices [L] of every set."""
        return {f"{name}-{i}": self._plan(choice) for name, some in drawn.items() for i, choice in enumerate(some)}

    def budgets(self, near: Budget | None) -> dict[str, Budget]:
        """Those at which regret is told, by their text."""
        widths = [Scheme.parse(choice).weight_bits for choice in self.blank.choices]
        found = [Budget(mean_bits=min(widths) + share * (max(widths) - min(widths))) for share in BUDGETS_AT]
        return {str(budget): budget for budget in (*found, near) if budget is not None}

    def truths(self, folder: StudyFolder, plans: Mapping[str, Plan]) -> dict[str, Truth]:
        """What the plans truly cost, by their names in the folder; from there where they are finished."""
        found = {name: known for name, plan in plans.items() if (known := folder.truth(name, plan)) is not None}
        alike: dict[str, list[str]] = {}
        for name, plan in plans.items():
            if name not in found:
                alike.setdefault(short_name(plan), []).append(name)
        missing = [(names[0], plans[names[0]]) for names in alike.values()]
        if self.processes == 1:
            answers = ((job, _truth(self.prepared, job)) for job in missing)
        else:
            threads = max(1, (os.cpu_count() or 1) // self.processes)
            start = partial(_ready, self.setup, self.calibration, self.digests, threads, _truth)
            answers = in_processes(start, missing, self.processes)
        with closing(answers):
            for (_, plan), truth in track(answers, "evaluate plans", total=len(missing)):
                for name in alike[short_name(plan)]:
                    folder.save_truth(name, plan, truth)
                    found[name] = truth
        return found

    def keeps(self, plan: Plan, budget: Budget) -> bool:
        """Whether the plan is within the budget."""
        columns = [self.blank.choices.index(plan.layers[name]) for name in self.blank.layers]
        return all(
            limit.usage[np.arange(len(columns)), columns].sum() <= limit.bound * (1 + TOLERANCE)
            for limit in budget.over(self.blank)
        )

    def _plan(self, choice: Choice) -> Plan:
        layers = {name: self.blank.choices[column] for name, column in zip(self.blank.layers, choice, strict=True)}
        return Plan(target=self.target, fingerprint=self.blank.fingerprint, layers=layers, made_by="drawn")


def short_name(plan: Plan) -> str:
    """Of the plan's schemes: the first 12 hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(plan.layers).encode()).hexdigest()[:12]


def _ready(
    setup: Callable[[], Subject],
    calibration: bytes,
    expected: dict[str, str],
    threads: int,
    answer: Callable[[Prepared, Any], Any],
) -> Callable[[Any], Any]:
    """In a process of its own: make the subject again, and return what answers its jobs."""
    torch.set_num_threads(threads)
    return partial(answer, Prepared.of(same_subject(setup, expected), pickle.loads(calibration)))


def _truth(prepared: Prepared, job: tuple[str, Plan]) -> Truth:
    return prepared.truth(job[1])


def searched(table: Sensitivity, budget: Budget) -> Plan | None:
    """The plan that this table leads to."""
    try:
        return search(table, budget)
    except InfeasibleBudget:  # of a metric that does not offer every choice
        return None
