"""The folder of a study: settings, and every finished plan and metric, so that it can go on where it stopped."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote, unquote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixbit.core import (
    FloatArray,
    InvalidInput,
    Plan,
    Sensitivity,
    check_writable_folder,
    first_problem,
    read_json,
    write_text,
)
from mixbit.metric_study.truth import Predicted, Truth

SETTINGS = "settings.json"
#: All that a study writes, and all that it removes to start over.
RESULTS = (SETTINGS, "study.json", "study.png")
PARTS = ("plans/random-*.json", "plans/near-*.json", "plans/chosen-*.json", "metrics/*.json")

Stored = TypeVar("Stored", bound=BaseModel)


@dataclass(frozen=True)
class StudyFolder:
    """Reads and writes the finished parts, each a file that appears whole or not at all."""

    path: Path

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, force: bool) -> "StudyFolder":
        """Continue the study in the folder, or begin one.

        Raises:
            InvalidInput: a study with other settings is there, or other files, unless force clears what a study
                wrote; or settings that are no study's, which are never replaced.
        """
        stored = _stored_settings(path)
        check_writable_folder(path, force=force or stored is not None)
        if stored is not None and force:
            _clear(path)
        elif stored is not None:
            _check_same(path, stored, settings)
        try:
            for name in ("plans", "metrics"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"{path}: cannot be made ({error.strerror}); choose another folder") from error
        write_text(path / SETTINGS, json.dumps(settings, indent=2) + "\n")
        return cls(path)

    def truth(self, name: str, plan: Plan) -> Truth | None:
        """Of the plan of that name, where it is finished."""
        path = self.path / "plans" / f"{name}.json"
        if not path.exists():
            return None
        stored = _read(path, _StoredTruth)
        if stored.layers != plan.layers:
            raise InvalidInput(f"{path}: not the plan that this study draws; delete it, or pass --force")
        return Truth(**stored.model_dump(exclude={"layers"}))

    def save_truth(self, name: str, plan: Plan, truth: Truth) -> None:
        """Keep what was found of the plan."""
        text = json.dumps({"layers": plan.layers} | asdict(truth), indent=2)
        write_text(self.path / "plans" / f"{name}.json", text + "\n")

    def metrics(self) -> list[str]:
        """Names of those that are finished."""
        return sorted(unquote(path.name.removesuffix(".json")) for path in (self.path / "metrics").glob("*.json"))

    def predicted(self, name: str, digest: str, blank: Sensitivity) -> Predicted | None:
        """Of the metric of that name, where it is finished and its digest is still the same.

        Args:
            name: Of the metric.
            digest: Of what it does.
            blank: A table of the same layers and choices.

        Raises:
            InvalidInput: the file is not what a study wrote.
        """
        path = self._metric_path(name)
        if not path.exists():
            return None
        stored = _read(path, _StoredMetric)
        if stored.digest != digest:
            return None
        try:
            table = dataclasses.replace(
                blank,
                loss=_array(stored.loss),
                standard_error=_array(stored.standard_error),
                num_samples=stored.num_samples,
                metric=name,
            )
        except (ValueError, InvalidInput) as error:
            raise InvalidInput(f"{path}: not what a study wrote ({error}); {_WAY_OUT}") from error
        return Predicted(table, None, stored.seconds, stored.peak_mb)

    def save_predicted(self, name: str, digest: str, found: Predicted) -> None:
        """Keep what the metric predicts, unless it does not: whatever hindered it may be gone the next time."""
        if found.table is None:
            return
        stored = {
            "digest": digest,
            "seconds": found.seconds,
            "peak_mb": found.peak_mb,
            "num_samples": found.table.num_samples,
            "loss": _nullable(found.table.loss),
            "standard_error": _nullable(found.table.standard_error),
        }
        write_text(self._metric_path(name), json.dumps(stored, indent=2) + "\n")

    def _metric_path(self, name: str) -> Path:
        return self.path / "metrics" / f"{quote(name, safe=':=,')}.json"


Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
_WAY_OUT = "delete it, and the study finds it again"


class _StoredTruth(BaseModel):
    """The file of a plan: its layers, and what `Truth` holds."""

    model_config = ConfigDict(extra="forbid")

    layers: dict[str, str]
    accuracy: Share | None
    kl: Number
    loss: Number | None
    judged_by: Literal["accuracy", "loss", "kl"]
    halves: tuple[Number, Number]

    @model_validator(mode="after")
    def _is_judged(self) -> Self:
        if getattr(self, self.judged_by) is None:
            raise ValueError(f"judged by {self.judged_by}, which is null")
        return self


class _StoredMetric(BaseModel):
    """The file of a metric: null for entries that are not offered."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    seconds: Number
    peak_mb: Number | None
    num_samples: int
    loss: list[list[Number | None]]
    standard_error: list[list[Number | None]]


def _read(path: Path, model: type[Stored]) -> Stored:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise InvalidInput(f"{path}: not what a study wrote ({first_problem(error)}); {_WAY_OUT}") from error
    except InvalidInput as error:
        raise InvalidInput(f"{error}; {_WAY_OUT}") from error


def _clear(path: Path) -> None:
    """Remove what a study wrote."""
    parts = [file for pattern in PARTS for file in path.glob(pattern) if file.is_file()]
    for file in (*parts, *(path / name for name in RESULTS)):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidInput(f"{file}: cannot be removed ({error.strerror}); choose another folder") from error


def _stored_settings(path: Path) -> dict[str, Any] | None:
    """Those of the study in the folder, None where there is none."""
    if not (path / SETTINGS).exists():
        return None
    try:
        stored = read_json(path / SETTINGS)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; delete it, or choose another --out") from error
    if not isinstance(stored, dict) or not {"weights", "calibration", "evaluation", "choices"} <= stored.keys():
        raise InvalidInput(f"{path / SETTINGS}: not that of a study; delete it, or choose another --out")
    return stored


def _check_same(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if stored.get(name) != value:
            raise InvalidInput(
                f"{path}: holds a study with another {name} ({stored.get(name)}, here {value}); choose another --out, "
                "or pass --force (force=True) to start over"
            )


def _nullable(values: FloatArray) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]


def _array(rows: list[list[float | None]]) -> FloatArray:
    return np.array([[np.inf if value is None else value for value in row] for row in rows], dtype=float)
