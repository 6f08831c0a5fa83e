"""The folder of a study: settings, and every finished plan and metric, so that it can go on where it stopped."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixbit.errors import InvalidInput
from mixbit.files import check_writable_folder, read_json, write_text
from mixbit.plan import Plan
from mixbit.sensitivity import FloatArray, Sensitivity
from mixbit.studies.truth import Predicted, Truth

SETTINGS = "settings.json"
#: All that a study writes, and all that it removes to start over.
RESULTS = (SETTINGS, "study.json", "study.png")
PARTS = ("plans/uniform-*.json", "plans/near-*.json", "plans/chosen-*.json", "metrics/*.json")


@dataclass(frozen=True)
class StudyFolder:
    """Reads and writes the finished parts, each a file that appears whole or not at all."""

    path: Path

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, force: bool) -> "StudyFolder":
        """Continue the study in the folder, or begin one.

        Raises:
            InvalidInput: a study with other settings is there, or other files; unless force clears what a study wrote.
        """
        if force:
            check_writable_folder(path, force=True)
            _clear(path)
        elif (path / SETTINGS).exists():
            _check_same(path, read_json(path / SETTINGS), settings)
        else:
            check_writable_folder(path, force=False)
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
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.pop("layers", None) != plan.layers:
            raise InvalidInput(f"{path}: not the plan that this study draws; remove the file, or pass --force")
        try:
            stored["halves"] = tuple(stored["halves"])
            return Truth(**stored)
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"{path}: not what a study wrote ({error}); remove the file") from error

    def save_truth(self, name: str, plan: Plan, truth: Truth) -> None:
        """Keep what was found of the plan."""
        text = json.dumps({"layers": plan.layers} | asdict(truth), indent=2)
        write_text(self.path / "plans" / f"{name}.json", text + "\n")

    def predicted(self, name: str, blank: Sensitivity) -> Predicted | None:
        """Of the metric of that name, where it is finished; `blank` is a table of the same layers and choices."""
        path = self.path / "metrics" / f"{name}.json"
        if not path.exists():
            return None
        stored = read_json(path)
        try:
            table = dataclasses.replace(
                blank,
                loss=_array(stored["loss"]),
                standard_error=_array(stored["standard_error"]),
                num_samples=int(stored["num_samples"]),
                metric=name,
            )
            return Predicted(table, None, float(stored["seconds"]), stored["peak_mb"])
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise InvalidInput(f"{path}: not what a study wrote ({error}); remove the file") from error

    def save_predicted(self, name: str, found: Predicted) -> None:
        """Keep what the metric predicts, unless it does not: that takes no time to find again."""
        if found.table is None:
            return
        stored = {
            "seconds": found.seconds,
            "peak_mb": found.peak_mb,
            "num_samples": found.table.num_samples,
            "loss": _nullable(found.table.loss),
            "standard_error": _nullable(found.table.standard_error),
        }
        write_text(self.path / "metrics" / f"{name}.json", json.dumps(stored, indent=2) + "\n")


def _clear(path: Path) -> None:
    """Remove what a study wrote, and folders that are then empty; nothing where the settings are no study's."""
    if not (path / SETTINGS).exists() or not _is_study(read_json(path / SETTINGS)):
        return
    parts = [file for pattern in PARTS for file in path.glob(pattern) if file.is_file()]
    for file in (*parts, *(path / name for name in RESULTS)):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidInput(f"{file}: cannot be removed ({error.strerror}); choose another folder") from error


def _is_study(stored: Any) -> bool:
    return isinstance(stored, dict) and {"weights", "calibration", "evaluation", "choices"} <= stored.keys()


def _check_same(path: Path, stored: Any, settings: Mapping[str, Any]) -> None:
    if not _is_study(stored):
        raise InvalidInput(f"{path / SETTINGS}: not that of a study; choose another --out")
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
