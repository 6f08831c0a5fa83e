"""How two plans differ, and what that costs where it is known; no torch, unless only result.json tells the bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixbit.core import Plan, Sensitivity

#: Files of a run.
PLAN_FILE, TABLE_FILE, RESULT_FILE = "plan.json", "sensitivity.json", "result.json"


@dataclass(frozen=True)
class Cost:
    """What a scheme costs a layer: bytes of its weight, and predicted loss; None where it is not known."""

    weight_bytes: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Side:
    """One of two plans, and what is known of its layers' costs.

    Attributes:
        place: The file.
        plan: What it holds.
        costs: Layer -> cost.
    """

    place: Path
    plan: Plan
    costs: Mapping[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanDifference:
    """Two plans.

    Attributes:
        sides: The two.
        layers: Those that take different schemes, or are in one of them alone; in the order of the first, then others.
    """

    sides: tuple[Side, Side]
    layers: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What else differs, a sentence each."""
        first, second = (side.plan for side in self.sides)
        notes = []
        if first.target != second.target:
            notes.append(f"targets differ: {first.target} and {second.target}")
        if first.fingerprint != second.fingerprint:
            notes.append("the plans are for different networks: names or shapes of layers differ")
        return notes

    def to_json(self) -> dict[str, Any]:
        """With `a` and `b` for the two, and the names that plan.json has."""
        a, b = self.sides
        predicted = {
            name: {"a": a.plan.predicted.get(name), "b": b.plan.predicted.get(name)}
            for name in {**a.plan.predicted, **b.plan.predicted}
        }
        return {
            "target": {"a": a.plan.target, "b": b.plan.target},
            "fingerprint": {"a": a.plan.fingerprint, "b": b.plan.fingerprint},
            "layers": {name: {"a": _row(a, name), "b": _row(b, name)} for name in self.layers},
            "predicted": predicted,
        }


def load_plan(path: Path) -> Plan:
    """The plan of a file, or of the folder of a run; raises InvalidInput where there is none."""
    return Plan.load(_place(path))


def _place(path: Path) -> Path:
    return path / PLAN_FILE if path.is_dir() else path


def compare_plans(first: Path, second: Path) -> PlanDifference:
    """Compare plan files, or those of folders of runs.

    Bytes and losses of layers come from a sensitivity.json beside either, of the same network and target; bytes that it
    does not tell, from the result.json beside the plan.

    Raises:
        InvalidInput: A path holds no plan, or a file beside it is not what it is called.
    """
    places = [_place(path) for path in (first, second)]
    plans = [Plan.load(place) for place in places]
    tables = [Sensitivity.load(path) for place in places if (path := place.parent / TABLE_FILE).is_file()]
    a, b = (Side(place, plan, _costs(place, plan, tables)) for place, plan in zip(places, plans, strict=True))
    names = dict.fromkeys((*a.plan.layers, *b.plan.layers))
    return PlanDifference((a, b), tuple(name for name in names if a.plan.layers.get(name) != b.plan.layers.get(name)))


def _costs(place: Path, plan: Plan, tables: list[Sensitivity]) -> dict[str, Cost]:
    costs: dict[str, Cost] = {}
    for table in tables:
        if (table.fingerprint, table.target) == (plan.fingerprint, plan.target):
            for row, layer in enumerate(table.layers):
                scheme = plan.layers.get(layer)
                if scheme in table.choices and layer not in costs:
                    column = table.choices.index(scheme)
                    loss = float(table.loss[row, column])
                    size = int(table.usage["weight_bytes"][row, column])
                    costs[layer] = Cost(size, loss if np.isfinite(loss) else None)
    if len(costs) < len(plan.layers) and place.name == PLAN_FILE and (place.parent / RESULT_FILE).is_file():
        from mixbit.results.result import Result  # noqa: PLC0415 it loads torch

        rows = Result.load(place.parent).layers.items()
        costs = {name: Cost(row.predicted_bytes) for name, row in rows if plan.layers.get(name) == row.scheme} | costs
    return costs


def _row(side: Side, layer: str) -> dict[str, Any] | None:
    if layer not in side.plan.layers:
        return None
    cost = side.costs.get(layer, Cost())
    return {"scheme": side.plan.layers[layer], "weight_bytes": cost.weight_bytes, "loss": cost.loss}
