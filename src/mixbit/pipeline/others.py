"""Plans tried by other processes, several at once, and ahead of the search that asks for their scores."""

from collections import ChainMap, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from mixbit.core import InfeasibleBudget, Journal, MixbitError, Plan, track

#: How a plan is tried, `simulated` or `deployed`, and the plan.
Trial = tuple[str, Plan]
#: What identifies a trial: how, the target, and the scheme of each layer.
Key = tuple[str, ...]
#: A search: it asks for the scores of some plans, all of which it needs, until it returns its answer.
Questions = Generator[Sequence[Plan], Sequence[float], Any]
#: So many outcomes are looked through for each plan that may be tried ahead.
OUTCOMES = 8


def key_of(trial: Trial) -> Key:
    """What identifies a trial."""
    how, plan = trial
    return (how, plan.target, *plan.layers.values())


class Others:
    """Other processes, or this one in one thread, that try plans; their scores go to the journal as they come.

    Args:
        answers: From trials, with None where there is none for now, to each with its score, or the error it raised, in
            any order, see `mixbit.core.run_jobs`.
        journal: Where scores are kept.
        most: How many plans are tried at once.
    """

    def __init__(
        self,
        answers: Callable[[Iterable[Trial | None]], Generator[tuple[Trial, float | MixbitError], None, None]],
        journal: Journal,
        most: int,
    ) -> None:
        self.journal, self.most = journal, most
        self._questions: tuple[str, Callable[[], Questions]] | None = None
        self._waiting = deque[Trial]()
        self._begun = set[Key]()
        self._failed: dict[Key, MixbitError] = {}
        self._work = answers(self._trials())
        self._answers = track(self._work, "try plans")

    def score_of(self, trial: Trial) -> float:
        """Its score, from the journal, or when it was tried; raises what trying it raised."""
        return self.journal.score_of(key_of(trial), partial(self._awaited, trial))

    def begin(self, trials: Iterable[Trial]) -> None:
        """Let these be tried next, those that were not tried yet."""
        for trial in trials:
            if (key := key_of(trial)) not in self.journal.scores and key not in self._begun:
                self._begun.add(key)
                self._waiting.append(trial)

    def go_ahead(self, how: str, questions: Callable[[], Questions]) -> None:
        """Where fewer are asked for than are tried at once, try what the search of these questions may ask for."""
        self._questions = how, questions

    def close(self) -> None:
        """End the work."""
        self._answers.close()
        self._work.close()

    def _awaited(self, trial: Trial) -> float:
        wanted = key_of(trial)
        self.begin([trial])
        while wanted not in self._failed:
            tried, answer = next(self._answers)
            key = key_of(tried)
            if isinstance(answer, MixbitError):
                self._failed[key] = answer
            elif key == wanted:
                return answer
            else:
                self.journal.score_of(key, partial(float, answer))
        raise self._failed[wanted]

    def _trials(self) -> Iterator[Trial | None]:
        while True:
            if not self._waiting and self._questions is not None and self.most > 1:
                how, questions = self._questions
                known: dict[Key, float | None] = {**self.journal.scores, **dict.fromkeys(self._failed)}
                ahead = ((how, plan) for plan in plans_ahead(questions, how, known, self.most))
                self.begin(next(([trial] for trial in ahead if key_of(trial) not in self._begun), []))
            yield self._waiting.popleft() if self._waiting else None


def plans_ahead(
    questions: Callable[[], Questions], how: str, known: Mapping[Key, float | None], most: int
) -> Iterator[Plan]:
    """The plans, at most so many, whose scores a search waits for, or will wait for, whatever those are: soonest first.

    `known` are scores by keys, None for one that raised an error. Of a plan whose score is not known both outcomes are
    looked into, less than enough first: the score is taken to be minus or plus infinity.
    """
    branches, given = deque[dict[Key, float | None]]([{}]), set[Key]()
    for _ in range(OUTCOMES * most):
        if not branches:
            return
        assumed = branches.popleft()
        waited = {key_of((how, plan)): plan for plan in _waited_for(questions, how, ChainMap(assumed, dict(known)))}
        for key in [key for key in waited if key not in given]:
            if len(given) == most:
                return
            given.add(key)
            yield waited[key]
        if len(waited) == 1:
            (key,) = waited
            branches += [assumed | {key: -inf}, assumed | {key: inf}]


def _waited_for(questions: Callable[[], Questions], how: str, known: Mapping[Key, float | None]) -> Sequence[Plan]:
    """The plans of unknown score that a search waits for; none where it ends before."""
    search = questions()
    try:
        asked = next(search)
        while True:
            keys = [key_of((how, plan)) for plan in asked]
            unknown = [plan for plan, key in zip(asked, keys, strict=True) if key not in known]
            if unknown:
                return unknown
            scores = [score for key in keys if (score := known[key]) is not None]
            if len(scores) < len(keys):
                return ()
            asked = search.send(scores)
    except (StopIteration, InfeasibleBudget):
        return ()
