"""front(): the plans that are best at some budget of one resource; all of them, exact, in one call."""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field

from mixbit.core import (
    LARGEST,
    MOST_JSON,
    MOST_TABLE_VALUES,
    Budget,
    InfeasibleBudget,
    InvalidInput,
    Plan,
    Scheme,
    Sensitivity,
    Versions,
    checked,
    quoted,
    read_model,
    write_text,
)
from mixbit.searches._problem import TOLERANCE, Floats, Integers, Problem, least_used, optimum

#: How many steps below the cheapest plan known to be enough to look for others: scores do not fall evenly.
PROBES = (2, 4, 8, 16, 32)
#: A front with more points than this is drawn from its convex hull: it would take minutes and gigabytes.
MOST_EXACT = 30_000
#: Limits of latency that plans are searched for, where conversions between layers cost time.
STEPS = 100
#: Units of one resource: what is within a limit in one is within the same limit in the other.
_SAME = {"weight_ratio": "weight_bytes"}


@checked
def front(table: Sensitivity, resource: str = "weight_bytes") -> "Front":
    """All plans that no other plan beats in both loss and use of the resource, from the cheapest to the dearest.

    Exact: within any limit it has the plan that `ilp` finds. Uses that differ by less than 1e-12 of the largest count
    as equal. 53 layers with 7 choices have some 25,000 such plans. Where conversions between layers take time, a
    latency is no sum: then plans are searched for at STEPS limits of `latency_ms`.

    Args:
        table: Predicted loss and usage of every choice of every layer.
        resource: What is limited: `weight_bytes`, `weight_ratio`, `file_bytes`, `mean_bits`, `bit_ops` or
            `latency_ms`.

    Raises:
        InvalidInput: an unknown resource, or one that the table does not hold.
        InfeasibleBudget: layers that are tied have no choice in common.

    Source: the dominance rule of G. Nemhauser and Z. Ullmann, "Discrete Dynamic Programming and Capital Allocation",
    Management Science 1969, for several choices an item.
    """
    if resource == "latency_ms" and table.conversions is not None:
        return front_to_draw(table, STEPS, resource)
    problem = Problem.of(table)
    return _front_of(table, resource, pareto_choices(problem, _used(table, problem, resource)))


def front_to_draw(table: Sensitivity, number: int, resource: str = "weight_bytes") -> "Front":
    """At most about that many points of the front, in seconds at any size: each is best at its use of the resource.

    Where the front has more than MOST_EXACT points, these are of its lower convex hull alone: plans that are best at
    some price of the resource. Between two of them lie the steps of one layer, little in a network that large.

    Args:
        table: Predicted loss and usage of every choice of every layer.
        number: How many points, two or more.
        resource: As `front` takes it; raises as that does.
    """
    problem = Problem.of(table)
    if resource == "latency_ms" and table.conversions is not None:
        return _front_of(table, resource, _at_limits(table, number))
    usage = _used(table, problem, resource)
    choices = pareto_choices(problem, usage, most=MOST_EXACT)
    if choices is None:
        return _front_of(table, resource, _hull_choices(problem, usage, number))
    return _front_of(table, resource, choices).thinned(number)


def _at_limits(table: Sensitivity, number: int) -> Integers:
    """[N, L] the best choices within limits of `latency_ms`, each a `number`-th of the range below the last.

    Conversions make latencies no sums, as the front's dominance rule needs.
    """
    choices = [optimum(Problem.of(table)).choice]
    used = float(table.figures(choices[0][None])["latency_ms"][0])
    least = least_used(Problem.of(table, Budget(latency_ms=used)), 0)
    step = (used - least) / number
    for _ in range(number):
        bound = max(used - step, least * (1 + TOLERANCE))
        if bound >= used:
            break
        choices.append(optimum(Problem.of(table, Budget(latency_ms=bound))).choice)
        used = float(table.figures(choices[-1][None])["latency_ms"][0])
    every = np.array(choices)
    figures = table.figures(every)
    return every[_unbeaten(figures["loss"], figures["latency_ms"])]


def _used(table: Sensitivity, problem: Problem, resource: str) -> Floats:
    return _whole(np.where(problem.offered, table.usage_of(resource), 0.0))


def _front_of(table: Sensitivity, resource: str, choices: Integers) -> "Front":
    figures = table.figures(choices)
    return Front(
        resource=resource,
        target=table.target,
        fingerprint=table.fingerprint,
        made_by=f"{table.metric} + front",
        layers=table.layers,
        schemes=table.choices,
        choices=choices,
        figures={name: values for name, values in figures.items() if np.isfinite(values).all()},
    )


def _whole(usage: Floats) -> Floats:
    """[L, C] in units of 1e-12 of the largest sum, unless whole already: sums of whole numbers have no rounding."""
    largest = usage.max(axis=1).sum()
    if (usage == np.round(usage)).all() or not largest:
        return usage
    return np.round(usage / (largest * 1e-12))


@overload
def pareto_choices(problem: Problem, usage: Floats) -> Integers: ...
@overload
def pareto_choices(problem: Problem, usage: Floats, *, most: int) -> Integers | None: ...
def pareto_choices(problem: Problem, usage: Floats, *, most: int | None = None) -> Integers | None:
    """[N, L] every choice that no other beats, by ascending use [L, C] of the resource and so descending loss.

    Unit after unit, each choice on the front so far is joined with each of the unit's, and joined ones that another
    beats go: every continuation of a beaten choice would be beaten too. The problem's limits do not count.
    None where there are more than `most`, of all units or of the first ones.
    """
    loss, used = np.zeros(1), np.zeros(1)
    stages: list[tuple[Integers, Integers, Integers, Integers]] = []
    for unit in problem.units:
        options = _options(problem, unit, usage)
        joined_loss = (problem.loss[unit, options].sum(axis=1)[:, None] + loss).ravel()
        joined_used = (usage[unit, options].sum(axis=1)[:, None] + used).ravel()
        unbeaten = _unbeaten(joined_loss, joined_used)
        stages.append((unit, options, unbeaten // len(loss), unbeaten % len(loss)))
        loss, used = joined_loss[unbeaten], joined_used[unbeaten]
        if most is not None and len(loss) > most:
            return None
    # contiguous columns: written, and later added up, layer by layer
    choices, at = np.zeros((len(problem.loss), len(loss)), dtype=np.int64).T, np.arange(len(loss))
    for unit, options, option, parent in reversed(stages):
        choices[:, unit] = options[option[at]]
        at = parent[at]
    return choices


def _hull_choices(problem: Problem, usage: Floats, number: int) -> Integers:
    """[N, L] choices on the front's lower convex hull, by ascending use; about `number` of them, the ends among them.

    From the cheapest choice of all units on, each step takes one unit to its next choice, the step that loses most for
    what it uses first. (Everett 1963: what is best at a price is best at its use.)
    """
    choice, steps = np.zeros(len(problem.loss), dtype=np.int64), list[tuple[float, float, int]]()
    hulls: list[tuple[Integers, Integers]] = []
    for place, unit in enumerate(problem.units):
        options = _options(problem, unit, usage)
        loss, used = (values[unit, options].sum(axis=1) for values in (problem.loss, usage))
        corners = _lower_hull(used, loss)
        hulls.append((unit, options[corners]))
        choice[unit] = options[corners[0]]
        gained, spent = -np.diff(loss[corners]), np.diff(used[corners])
        steps += zip((-gained / spent).tolist(), spent.tolist(), [place] * len(spent), strict=True)
    steps.sort()  # within a unit the slopes fall, so that its steps keep their order
    spent = np.cumsum([0.0, *(step[1] for step in steps)])
    kept = set(np.searchsorted(spent, np.linspace(0, spent[-1], number), side="left").tolist())
    rows, at = [choice.copy()], [0] * len(hulls)
    for count, (_, _, place) in enumerate(steps, 1):
        at[place] += 1
        unit, options = hulls[place]
        choice[unit] = options[at[place]]
        if count in kept:
            rows.append(choice.copy())
    return np.array(rows)


def _lower_hull(used: Floats, loss: Floats) -> Integers:
    """Indices of the corners below all other points, which come by ascending use and descending loss."""
    corners: list[int] = []
    for index in range(len(used)):
        while len(corners) > 1:
            first, second = corners[-2:]
            rises = (loss[index] - loss[first]) * (used[second] - used[first])
            if rises > (loss[second] - loss[first]) * (used[index] - used[first]):
                break
            corners.pop()
        corners.append(index)
    return np.array(corners)


def _unbeaten(loss: Floats, used: Floats) -> Integers:
    """Indices of those that no other beats, by ascending use; of equal ones the first."""
    order = np.argsort(used, kind="stable")
    if (np.diff(used[order]) == 0).any():  # among equal uses the smallest loss first
        order = order[np.lexsort((loss[order], used[order]))]
    losses = loss[order]
    best = np.minimum.accumulate(losses)
    return order[np.concatenate([[True], losses[1:] < best[:-1]])]


def _options(problem: Problem, unit: Integers, usage: Floats) -> Integers:
    """[n, members] the choices of a unit's layers together that no other beats."""

    def best_of(layers: Integers, options: Integers) -> Integers:
        return options[_unbeaten(problem.loss[layers, options].sum(axis=1), usage[layers, options].sum(axis=1))]

    by_class = []
    for columns in problem.columns(unit):
        options = np.zeros((1, 0), dtype=np.int64)
        for member, layer in enumerate(unit):
            offered = columns[problem.offered[layer, columns]]
            joined = np.repeat(options, len(offered), axis=0), np.tile(offered, len(options))[:, None]
            options = best_of(unit[: member + 1], np.concatenate(joined, axis=1))
        by_class.append(options)
    return best_of(unit, np.concatenate(by_class))


@dataclass(frozen=True, eq=False)
class Front:
    """The plans that no other plan beats; N points, L layers.

    Attributes:
        resource: What was limited.
        target: Name of the target; `fingerprint`, `made_by` and `layers` are as in `Plan`.
        schemes: What `choices` index.
        choices: [N, L] by ascending use of the resource.
        figures: `loss`, `weight_bytes`, `mean_bits`, ... -> [N], see `Plan.predicted`.
        thinned_from: How many points there were, where some were left out.
    """

    resource: str
    target: str
    fingerprint: str
    made_by: str
    layers: tuple[str, ...]
    schemes: tuple[str, ...]
    choices: Integers
    figures: dict[str, Floats]
    thinned_from: int | None = None

    def __len__(self) -> int:
        return len(self.choices)

    @checked
    def plan(self, index: int) -> Plan:
        """The plan of one point; raises InvalidInput where there is none."""
        if not -len(self) <= index < len(self):
            raise InvalidInput(f"point {index}: the front has points 0 to {len(self) - 1}")
        return Plan(
            target=self.target,
            fingerprint=self.fingerprint,
            layers=self._layers(index),
            predicted={name: float(values[index]) for name, values in self.figures.items()},
            made_by=self.made_by,
        )

    @checked
    def within(self, budget: Budget) -> Plan:
        """The best of these plans within the budget, which limits the front's resource, in any unit, and nothing else.

        Raises:
            InvalidInput: a budget of another resource, whose best plans are not all on this front.
            InfeasibleBudget: the cheapest plan is over the budget.
        """
        (name, bound), *others = budget.limits.items() or (("max_drop", 0.0),)
        if others or _SAME.get(name, name) != _SAME.get(self.resource, self.resource) or name not in self.figures:
            raise InvalidInput(f"front over {self.resource}: cannot tell the best plan within {budget}; search again")
        used = self.figures[name]
        fits = np.flatnonzero(used <= bound * (1 + TOLERANCE))
        if not fits.size:
            raise InfeasibleBudget(f"no plan keeps {budget} (reachable: {used[0]:.6g} to {used[-1]:.6g})")
        return self.plan(int(fits[-1])).model_copy(update={"budget": dict(budget.limits)})

    def cheapest_enough(self, score: Callable[[Plan], float], least: float) -> int:
        """Index of the cheapest plan found to score at least `least`; the plan one step cheaper scores less.

        Those that `halving` asks about are scored, each once.

        Raises:
            InfeasibleBudget: the dearest plan does not score enough.
        """
        points = self.halving(least)
        index = next(points)
        while True:
            try:
                index = points.send(score(self.plan(index)))
            except StopIteration as end:
                return end.value

    def halving(self, least: float) -> Generator[int, float, int]:
        """Ask for the scores of points, and return the index of the cheapest plan found to score at least `least`.

        A binary search; then probes 2, 4, 8, 16 and 32 steps below its answer, since scores do not fall evenly along
        the front, and where one is enough, a binary search below that, until none is: 2 log2(N) + 5 plans, each once.

        Raises:
            InfeasibleBudget: the dearest plan does not score enough.
        """
        tried: dict[int, bool] = {}

        def enough(index: int) -> Generator[int, float, bool]:
            if index not in tried:
                tried[index] = (yield index) >= least
            return tried[index]

        best, below = len(self) - 1, -1
        if not (yield from enough(best)):
            raise InfeasibleBudget(f"the dearest plan scores less than {least:.6g}: allow a larger drop; widen schemes")
        while True:
            while best - below > 1:
                middle = (best + below) // 2
                best, below = (middle, below) if (yield from enough(middle)) else (best, middle)
            for step in PROBES:
                if best >= step and (yield from enough(best - step)):
                    best -= step
                    break
            else:
                return best
            below = max((index for index in tried if index < best and not tried[index]), default=-1)

    @checked
    def thinned(self, number: int) -> "Front":
        """At most that many points, two or more: the ends, and the others as evenly as the resource allows."""
        if number < 2:
            raise InvalidInput(f"{number} points: give 2 or more")
        if len(self) <= number:
            return self
        used = self.figures[self.resource]
        wanted = np.linspace(used[0], used[-1], number)
        index = np.unique(np.concatenate([np.searchsorted(used, wanted[:-1], side="right") - 1, [len(self) - 1]]))
        figures = {name: values[index] for name, values in self.figures.items()}
        return replace(self, choices=self.choices[index], figures=figures, thinned_from=self.thinned_from or len(self))

    def to_json(self) -> str:
        """The file's text: one point a line."""
        names = ("resource", "target", "fingerprint", "made_by", "thinned_from")
        head = {name: value for name in names if (value := getattr(self, name)) is not None}
        points = (
            json.dumps({name: _short(values[i]) for name, values in self.figures.items()} | {"layers": self._layers(i)})
            for i in range(len(self))
        )
        return json.dumps({"version": 1} | head)[:-1] + ', "points": [\n' + ",\n".join(points) + "\n]}\n"

    def save(self, path: str | Path) -> None:
        """Write the front as JSON; raises InvalidInput where the file would be larger than what is read again."""
        text = self.to_json()
        values = len(self) * (len(self.layers) + len(self.figures))
        share = min(MOST_JSON / len(text), 0.9 * MOST_TABLE_VALUES / values)
        if share < 1:
            fewer = int(0.9 * share * len(self))
            raise InvalidInput(
                f"{path}: all {len(self):,} plans take {len(text):,} bytes, too many to read again; keep some of them, "
                f"as --points {fewer} (thinned({fewer}) in Python)"
            )
        write_text(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Front":
        """Read a front that `save` wrote; raise InvalidInput for anything else."""
        stored = read_model(Path(path), FrontFile, "a front", versions=Versions(), most_values=MOST_TABLE_VALUES)
        layers, values = tuple(stored.points[0].layers), [point.model_extra or {} for point in stored.points]
        for place, point in enumerate(stored.points):
            if tuple(point.layers) != layers or values[place].keys() != values[0].keys():
                raise InvalidInput(f"{path}: point {place} has other layers or figures than point 0; make it again")
        figures = {name: np.array([row[name] for row in values]) for name in values[0]}
        schemes, columns = np.unique([list(point.layers.values()) for point in stored.points], return_inverse=True)
        if stored.resource not in figures or (np.diff(figures[stored.resource]) < 0).any():
            raise InvalidInput(f"{path}: points not in the order of {quoted(stored.resource)}; make the front again")
        loss = figures.get("loss", np.full(1, np.inf))
        if not (np.abs(loss) < LARGEST).all() or (np.diff(loss) > TOLERANCE * np.abs(loss[1:])).any():
            raise InvalidInput(f"{path}: a dearer point has no smaller loss; make the front again")
        for scheme in schemes.tolist():
            try:
                Scheme.parse(scheme)
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error}") from error
        return cls(
            **stored.model_dump(exclude={"version", "points"}),
            layers=layers,
            schemes=tuple(schemes.tolist()),
            choices=columns.reshape(-1, len(layers)),
            figures=figures,
        )

    def _layers(self, index: int) -> dict[str, str]:
        return {layer: self.schemes[column] for layer, column in zip(self.layers, self.choices[index], strict=True)}


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


class FrontPoint(BaseModel):
    """One plan: figures by name beside its layers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(allow_inf_nan=False)]]  # type: ignore[reportIncompatibleVariableOverride] pydantic's own way

    layers: Annotated[dict[str, str], Field(min_length=1)]


class FrontFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    resource: str
    target: str
    fingerprint: str
    made_by: str
    thinned_from: Annotated[int, Field(ge=1)] | None = None
    points: Annotated[list[FrontPoint], Field(min_length=1), FailFast()]
