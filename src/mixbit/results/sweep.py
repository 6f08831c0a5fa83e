"""sweep.json: every cell of a sweep, with the figures of its result or the reason why it has none."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from mixbit.core import InvalidInput, MixbitError, TargetMismatch, Versions, read_model, write_text
from mixbit.results.result import Result

#: The file.
SWEEP_FILE = "sweep.json"
VERSIONS = Versions()
_Positive = Annotated[float, Field(ge=0)]


class SweepCell(BaseModel):
    """One model for one target, within one budget, with one rounding.

    Attributes:
        budget: As `--budget` takes it, or `max_drop=1%`.
        folder: Of its results, from the folder of the sweep on, with slashes.
        state: `waiting` is not run yet; `differs` has results, but the file does not do what was promised.
        reason: Why it failed, or how the file differs; in one line.
        exit_code: What `mixbit quantize` would end with.
        accuracy, divergence, file_bytes, latency_ms: Of the artefact, as in `deployed` of result.json.
        float_accuracy: Of the float network.
        weight_bytes, weight_ratio: Of all weights and scales, as the budgets of these names count.
        latency_ratio: The artefact's latency by the float network's.
        schemes: Scheme -> how many layers take it.
        chosen: Why this plan was deployed.
        seconds: Of all steps of its run; what cells share counts for the first of them alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str
    target: str
    budget: str
    rounding: str
    folder: str
    state: Literal["waiting", "done", "differs", "failed"] = "waiting"
    reason: str | None = None
    exit_code: Annotated[int, Field(ge=0)] = 0
    accuracy: float | None = None
    float_accuracy: float | None = None
    divergence: float | None = None
    weight_bytes: _Positive | None = None
    weight_ratio: _Positive | None = None
    file_bytes: _Positive | None = None
    latency_ms: _Positive | None = None
    latency_ratio: _Positive | None = None
    schemes: dict[str, int] = {}
    chosen: str | None = None
    seconds: _Positive | None = None

    @property
    def name(self) -> str:
        """Its four parts in words."""
        return f"{self.model}, {self.target}, {self.budget}, {self.rounding}"

    @property
    def schemes_in_words(self) -> str:
        """`w4a8 x 8, w8a8 x 2`, the most first."""
        ordered = sorted(self.schemes.items(), key=lambda item: -item[1])
        return ", ".join(f"{scheme} x {count}" for scheme, count in ordered)

    def failed(self, error: MixbitError) -> Self:
        """The cell that ended so."""
        return self.model_copy(
            update={"state": "failed", "reason": " ".join(str(error).split()), "exit_code": error.exit_code}
        )

    def ended(self, result: Result) -> Self:
        """The cell with the figures of its result."""
        after, problems, ratio = result.deployed, result.problems or [], result.latency_ratio
        return self.model_copy(
            update={
                "state": "differs" if problems else "done",
                "reason": "; ".join(problems) or None,
                "exit_code": TargetMismatch.exit_code if problems else 0,
                **{name: after.get(name) for name in ("accuracy", "divergence", "file_bytes", "latency_ms")},
                "float_accuracy": result.float_.get("accuracy"),
                "weight_bytes": after["weight_bytes"] + result.float_bytes,
                "weight_ratio": result.weight_share,
                "latency_ratio": None if ratio is None else ratio.value,
                "schemes": dict(Counter(result.schemes.values())),
                "chosen": result.chosen,
                "seconds": round(sum(result.seconds.values()), 3),
            }
        )


class Sweep(BaseModel):
    """The file sweep.json.

    Attributes:
        settings: Those of all cells, by the words of the sweep's file.
        models: Name -> what the sweep's file says of it.
        cells: In the order of models, targets, budgets and roundings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    settings: dict[str, JsonValue]
    models: dict[str, dict[str, JsonValue]]
    cells: Annotated[list[SweepCell], Field(min_length=1)]

    @model_validator(mode="after")
    def _models_are_known(self) -> Self:
        for cell in self.cells:
            if cell.model not in self.models:
                raise ValueError(f"cell {cell.name}: no such model; there are {', '.join(self.models)}")
        return self

    @property
    def exit_code(self) -> int:
        """0 where every cell is done; else 4 where a file differs, or 2 for bad input, or 3: budgets out of reach."""
        codes = {cell.exit_code for cell in self.cells}
        return next((code for code in (TargetMismatch.exit_code, InvalidInput.exit_code) if code in codes), max(codes))

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, folder: Path) -> None:
        """Write the file into the folder."""
        write_text(folder / SWEEP_FILE, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> "Sweep":
        """Read the file of a folder; raise InvalidInput for anything else."""
        return read_model(folder / SWEEP_FILE, cls, "a sweep", versions=VERSIONS)
