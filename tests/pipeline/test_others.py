"""Plans tried ahead, in any order, by any number of processes: the answers of a search that tries one by one."""

import math
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mixbit.core import InfeasibleBudget, Journal, MaxDrop, MixbitError
from mixbit.pipeline.others import Others, key_of, plans_ahead
from mixbit.pipeline.trials import Points, cheapest_plan
from tests.searches.test_front import random_table

TABLE = random_table(6, 4)
POINTS = Points(TABLE)


def scores_of(seed: int, failing: float = 0.0) -> dict:
    """Key -> score of every plan of the front, which rises unevenly; some raise an error instead."""
    rng, plans = np.random.default_rng(seed), [POINTS.plan(index) for index in range(len(POINTS.front))]
    plans += POINTS.uniform(plans[-1].predicted["weight_bytes"])
    scores = {}
    for plan in plans:
        score = 1 - plan.predicted["loss"] / plans[0].predicted["loss"] + rng.normal(0, 0.05)
        broken = rng.uniform() < failing
        scores[key_of(("deployed", plan))] = MixbitError(f"broken {plan.predicted['loss']}") if broken else score
    return scores


@dataclass
class Plain:
    """As Scoring, with scores that are known; counts how often each was asked for."""

    scores: dict
    others: Others | None = None
    asked: Counter = field(default_factory=Counter)
    in_accuracy = False
    score = None
    float_score = 1.0
    in_words = staticmethod("{:.6f}".format)

    def deployed(self, plan):
        key = key_of(("deployed", plan))
        self.asked[key] += 1
        if self.others is not None:
            return self.others.score_of(("deployed", plan))
        if isinstance(self.scores[key], MixbitError):
            raise self.scores[key]
        return self.scores[key]


class Crew:
    """So many workers, of which any may be the next to answer."""

    def __init__(self, scores, count, seed):
        self.scores, self.count, self.rng, self.tried = scores, count, np.random.default_rng(seed), []

    def answers(self, trials):
        open_ = []
        while True:
            while len(open_) < self.count and (trial := next(trials)) is not None:
                open_.append(trial)
                self.tried.append(key_of(trial))
            if not open_:
                return
            trial = open_.pop(int(self.rng.integers(len(open_))))
            yield trial, self.scores[key_of(trial)]


def outcome(work):
    try:
        plan, reason = work()
    except MixbitError as error:
        return type(error), str(error)
    return plan, reason


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.0, 0.1]), st.sampled_from([0.05, 0.3, 0.6, 1.5]))
def test_any_number_of_processes_finds_what_one_finds(seed, count, failing, drop):
    scores = scores_of(seed, failing)
    plain, crew = Plain(scores), Crew(scores, count, seed)
    wanted = outcome(lambda: cheapest_plan(TABLE, plain, MaxDrop(drop)))
    with closing(Others(crew.answers, Journal(), count)) as others:
        assert outcome(lambda: cheapest_plan(TABLE, Plain(scores, others), MaxDrop(drop))) == wanted
    assert len(crew.tried) == len(set(crew.tried)), "no plan is tried twice"
    if count == 1:
        assert crew.tried == list(plain.asked), "one process tries nothing ahead"


def test_several_processes_need_fewer_rounds():
    """In rounds of answers, as long as a plan takes: 9 workers take less than half of the rounds of one."""
    scores = scores_of(1)
    plain = Plain(scores)
    cheapest_plan(TABLE, plain, MaxDrop(0.3))
    rounds = 0

    def answers(trials):
        nonlocal rounds
        while tried := [trial for trial in (next(trials) for _ in range(9)) if trial is not None]:
            rounds += 1
            yield from ((trial, scores[key_of(trial)]) for trial in tried)

    with closing(Others(answers, Journal(), 9)) as others:
        cheapest_plan(TABLE, Plain(scores, others), MaxDrop(0.3))
    assert rounds < len(plain.asked) / 2


def test_the_order_of_speculation():
    """First the point that the search waits for, then those at both halves, first where it is not enough."""

    def halving():
        scores = yield (plans[7],)
        low, high = (0, 7) if scores[0] > 0 else (7, 15)
        while high - low > 1:
            middle = (low + high) // 2
            scores = yield (plans[middle],)
            low, high = (low, middle) if scores[0] > 0 else (middle, high)

    plans = [POINTS.plan(index) for index in range(16)]
    number = {key_of(("deployed", plan)): index for index, plan in enumerate(plans)}

    def ahead(known, most):
        keys = {key_of(("deployed", plans[index])): score for index, score in known.items()}
        return [number[key_of(("deployed", plan))] for plan in plans_ahead(halving, "deployed", keys, most)]

    assert ahead({}, 1) == [7]
    assert ahead({}, 3) == [7, 11, 3]
    assert ahead({}, 7) == [7, 11, 3, 13, 9, 5, 1]
    assert ahead({7: 1.0}, 3) == [3, 5, 1]
    assert ahead({7: -1.0, 13: 1.0}, 2) == [11, 12], "of 13 it is known"
    assert ahead({7: None}, 3) == [], "the search ends with the error of that plan"


def test_all_plans_of_one_question_are_tried_at_once():
    def search():
        yield tuple(plans)

    plans = [POINTS.plan(index) for index in range(5)]
    assert list(plans_ahead(search, "deployed", {}, 4)) == plans[:4]
    known = {key_of(("deployed", plan)): 1.0 for plan in plans[:2]}
    assert list(plans_ahead(search, "deployed", known, 4)) == plans[2:]


def test_scores_are_kept_as_they_come_and_none_is_taken_twice(tmp_path):
    scores, path = scores_of(2), tmp_path / "trials.jsonl"
    with closing(Others(Crew(scores, 4, 0).answers, Journal(path), 4)) as others:
        found = cheapest_plan(TABLE, Plain(scores, others), MaxDrop(0.3))
    kept = Journal(path).scores
    assert {scores[key] for key in kept} == {*kept.values()}
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))  # as if it were interrupted
    taken_up, crew = len(Journal(path).scores), Crew(scores, 2, 1)
    with closing(Others(crew.answers, Journal(path), 2)) as others:
        assert cheapest_plan(TABLE, Plain(scores, others), MaxDrop(0.3)) == found
    assert taken_up > 3
    assert not {*list(kept)[:taken_up]} & {*crew.tried}


def test_a_drop_that_no_plan_keeps_is_told_by_the_dearest_alone():
    scores = {key: -math.inf if not isinstance(value, MixbitError) else value for key, value in scores_of(3).items()}
    crew = Crew(scores, 4, 0)
    with closing(Others(crew.answers, Journal(), 4)) as others, pytest.raises(InfeasibleBudget, match="the dearest"):
        cheapest_plan(TABLE, Plain(scores, others), MaxDrop(0.1))
    assert crew.tried[0] == key_of(("deployed", POINTS.plan(len(POINTS.front) - 1)))
