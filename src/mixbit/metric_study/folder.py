"""The folder of a study: settings, and every finished plan and metric, so that it resumes where it stopped."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict

from mixbit.core import InvalidInput, Plan, Sensitivity, Table, read_json, read_model, write_text
from mixbit.metric_study.truth import Number, Predicted, Truth

SETTINGS = "settings.json"
#: All that a study writes, and all that it removes to start over.
WRITTEN = (
    SETTINGS, "study.json", "study.png",
    "plans/random-*.json", "plans/near-*.json", "plans/chosen-*.json", "metrics/*.json",
)  # fmt: skip

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class StudyFolder:
    """Reads and writes the finished parts, each a file that appears whole or not at all."""

    path: Path

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, force: bool) -> "StudyFolder":
        """Continue the study in the folder, or begin one.

        Raises:
            InvalidInput: a study with other settings is there, unless force clears what a study wrote; or settings
                that are no study's, which are never replaced.
        """
        stored = _stored_settings(path)
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
        truth = _read(path, Truth)
        if truth is not None and truth.layers != plan.layers:
            raise InvalidInput(f"{path}: not the plan that this study draws; delete it, or pass --force")
        return truth

    def save_truth(self, name: str, truth: Truth) -> None:
        """Store what the plan of that name costs."""
        write_text(self.path / "plans" / f"{name}.json", truth.model_dump_json(indent=2) + "\n")

    def metrics(self) -> list[str]:
        """Names of those that are finished."""
        return sorted(unquote(path.name.removesuffix(".json")) for path in (self.path / "metrics").glob("*.json"))

    def predicted(self, name: str, digest: str, frame: Sensitivity) -> Predicted | None:
        """Of the metric of that name, where it is finished and its digest is still the same.

        Args:
            name: Of the metric.
            digest: Of what it does.
            frame: A table of the same layers and choices.

        Raises:
            InvalidInput: the file is not what a study wrote.
        """
        path = self._metric_path(name)
        stored = _read(path, _StoredMetric)
        if stored is None or stored.digest != digest:
            return None
        try:
            measured = stored.model_dump(include={"loss", "standard_error", "num_samples"})
            table = dataclasses.replace(frame, metric=name, **measured)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: not what a study wrote ({error}); {_WAY_OUT}") from error
        return Predicted(table, None, stored.seconds, stored.peak_mb)

    def save_predicted(self, name: str, digest: str, predicted: Predicted) -> None:
        """Store what the metric predicts, if it does: what hindered it may be gone the next time."""
        if (table := predicted.table) is not None:
            stored = _StoredMetric(
                digest=digest,
                seconds=predicted.seconds,
                peak_mb=predicted.peak_mb,
                num_samples=table.num_samples,
                loss=table.loss,
                standard_error=table.standard_error,
            )
            write_text(self._metric_path(name), stored.model_dump_json(indent=2) + "\n")

    def _metric_path(self, name: str) -> Path:
        return self.path / "metrics" / f"{quote(name, safe=':=,')}.json"


class _StoredMetric(BaseModel):
    """The file of a metric: null for entries that are not offered."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    digest: str
    seconds: Number
    peak_mb: Number | None
    num_samples: int
    loss: Table
    standard_error: Table


_WAY_OUT = "delete it, and the study finds it again"


def _read(path: Path, model: type[T]) -> T | None:
    """What the file holds, None where there is none."""
    if not path.exists():
        return None
    try:
        return read_model(path, model, "what a study wrote")
    except InvalidInput as error:
        raise InvalidInput(f"{error}; {_WAY_OUT}") from error


def _clear(path: Path) -> None:
    """Remove what a study wrote."""
    for file in (file for pattern in WRITTEN for file in path.glob(pattern) if file.is_file()):
        try:
            file.unlink()
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
