"""Times of choices in the user's cache: JSON files, each with the question that it answers."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mixbit.core import (
    FloatArray,
    InvalidInput,
    Sensitivity,
    cache_folder,
    digest,
    environment,
    file_errors,
    read_model,
    write_text,
)
from mixbit.graph import Graph

#: Of `environment`: what times depend on, beside the runtime and its settings.
MACHINE = ("mixbit", "machine", "processor", "cores")


class KeptTimes(BaseModel):
    """What was measured, and when.

    Attributes:
        question: All that times depend on, see `question_of`.
        date: When they were taken.
        latency_ms: [L, C] of a table's usage.
        conversions: [L - 1, 2] of a table.
        off: [P] predicted by measured times of plans that nothing was fitted to.
        digest: Of all these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    version: Literal[1] = 1
    question: dict[str, Any]
    date: str
    latency_ms: list[list[Annotated[float, Field(ge=0)]]]
    conversions: list[tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]] | None
    off: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    digest: str

    def added_to(self, table: Sensitivity) -> Sensitivity:
        """The table with these times."""
        usage = table.usage | {"latency_ms": np.array(self.latency_ms)}
        conversions = None if self.conversions is None else np.array(self.conversions)
        return dataclasses.replace(table, usage=usage, conversions=conversions)


def question_of(table: Sensitivity, graph: Graph, runtime: dict[str, str]) -> dict[str, Any]:
    """What times of choices depend on: the network's operators and shapes, choices, runtime, settings and processor."""
    inputs = [(list(leaf.shape), str(leaf.dtype)) for leaf in graph.tensors(graph.example.rows([0]))]
    return {
        "network": digest(graph.module.code, inputs, table.fingerprint),
        "offered": digest(table.layers, table.input_ties, np.isfinite(table.loss)),
        "choices": list(table.choices),
        "target": table.target,
        "runtime": runtime,
        "machine": {name: value for name, value in environment().items() if name in MACHINE},
    }


def place_of(question: dict[str, Any]) -> Path:
    """The file of the answer in the user's cache; raises InvalidInput where the user has none."""
    return cache_folder() / "latency" / f"{_digest(question)}.json"


def kept_times(question: dict[str, Any]) -> KeptTimes | None:
    """The answer in the user's cache, if it is what was written; else None."""
    try:
        kept = read_model(place_of(question), KeptTimes, "times of choices")
    except InvalidInput:  # none, or a damaged one, which new times replace
        return None
    return kept if kept.question == question and kept.digest == _digest_of(kept) else None


def new_times(question: dict[str, Any], timed: Sensitivity, off: FloatArray) -> KeptTimes:
    """The answer of now: the times of a table, and how far they are off."""
    fields = {
        "question": question,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "latency_ms": timed.usage["latency_ms"].tolist(),
        "conversions": None if timed.conversions is None else timed.conversions.tolist(),
        "off": off.tolist(),
    }
    return KeptTimes(**fields, digest=_digest(fields))


def keep_times(times: KeptTimes) -> None:
    """Write the answer into the user's cache; raises InvalidInput where it cannot be written."""
    path = place_of(times.question)
    with file_errors(f"{path.parent}: cannot be made", "; set MIXBIT_CACHE to a folder that can"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, times.model_dump_json(indent=1) + "\n")


def _digest_of(times: KeptTimes) -> str:
    return _digest(times.model_dump(mode="json", exclude={"version", "digest"}))


def _digest(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True))
