"""The folder of a study: settings, and every finished plan and metric, so that it resumes where it stopped."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixbit.core import InvalidInput, Plan, Sensitivity, Table, digest, file_errors, read_json, read_model, write_text

SETTINGS = "settings.json"
RESULTS, FOLDERS = ("study.json", "study.png"), ("plans", "metrics")
#: All that a study writes, and all that it removes to start over, in this order: what is left is of these settings.
WRITTEN = (
    *RESULTS, "plans/random-*.json", "plans/near-*.json", "plans/chosen-*.json", "metrics/*.json", SETTINGS,
)  # fmt: skip
_WAY_OUT = "delete it, and the study finds it again"

T = TypeVar("T", bound=BaseModel)
Number = Annotated[float, Field(allow_inf_nan=False)]


class Truth(BaseModel):
    """What one plan costs on the evaluation data.

    Attributes:
        layers: The plan: layer -> scheme.
        accuracy: Share of right top answers; None without labels, or where the task has no top answer.
        kl: Mean Kullback-Leibler divergence from the float network, in nats.
        loss: Mean labelled loss, in nats (or the unit of the user's own); None without labels, and for a regression
            whose labels are not values of its outputs, as class numbers beside embeddings.
        judged_by: Which of the three the plan is judged by: with labels the loss where it is the user's own, or of a
            language model, as is usual there, else accuracy; without labels kl.
        halves: That figure on two halves of the data: samples of even and odd number, for a loss batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: dict[str, str]
    accuracy: Annotated[float, Field(ge=0, le=1)] | None
    kl: Number
    loss: Number | None
    judged_by: Literal["accuracy", "loss", "kl"]
    halves: tuple[Number, Number]

    @model_validator(mode="after")
    def _is_judged(self) -> Self:
        if getattr(self, self.judged_by) is None:
            raise ValueError(f"judged by {self.judged_by}, which is null")
        return self

    @property
    def cost(self) -> float:
        """What the plan is judged by, the higher the worse: -accuracy, loss or kl."""
        value = getattr(self, self.judged_by)
        return -value if self.judged_by == "accuracy" else value


class Prediction(BaseModel):
    """What a metric predicts.

    Attributes:
        code: Digest of the metric's code.
        seconds: Wall time, without scales and calibration.
        peak_mb: Growth of the process's peak resident memory, in 2^20 bytes; None where it is not known.
        num_samples: As in `Sensitivity`; so are `loss` and `standard_error`, null for entries that are not offered.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    code: str
    seconds: Number
    peak_mb: Number | None
    num_samples: int
    loss: Table
    standard_error: Table

    def table(self, metric: str, frame: Sensitivity) -> Sensitivity:
        """The metric's table, made from one of the same layers and choices; raises InvalidInput if it does not fit."""
        measured = {name: getattr(self, name) for name in ("num_samples", "loss", "standard_error")}
        return dataclasses.replace(frame, metric=metric, **measured)


class Part(BaseModel, Generic[T]):
    """The file of a plan or a metric: what was found, and a digest of it and of the study that it belongs to."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    found: T

    @classmethod
    def of(cls, found: T, about: str) -> Self:
        """The file for what was found; `about` is the digest of the study's settings."""
        return cls(digest=digest(about, found.model_dump_json()), found=found)


class StudyFolder:
    """Reads and writes the finished parts of a study, each a file that appears whole or not at all.

    The study in the folder continues, or a new one begins; with force, what another study wrote is removed. Raises
    InvalidInput where a study with other settings is there, or settings of something else, which are never replaced.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, force: bool) -> None:
        self.path = path
        stored = _stored_settings(path)
        if force:
            for file in [file for pattern in WRITTEN for file in path.glob(pattern) if file.is_file()]:
                with file_errors(f"{file}: cannot be removed", "; choose another folder"):
                    file.unlink()
        elif stored is not None:
            for name, value in settings.items():
                if stored.get(name) != value:
                    raise InvalidInput(
                        f"{path}: holds a study with another {name} ({stored.get(name)}, here {value}); choose another "
                        "--out, or pass --force (force=True) to start over"
                    )
        with file_errors(f"{path}: cannot be made", "; choose another folder"):
            for name in FOLDERS:
                (path / name).mkdir(parents=True, exist_ok=True)
        self.about = digest(json.dumps(settings))
        write_text(path / SETTINGS, json.dumps(settings, indent=2) + "\n")

    def truth(self, name: str, plan: Plan) -> Truth | None:
        """What the plan of that name costs, None where it is not finished."""
        path = self._path("plans", name)
        truth = self._read(path, Truth)
        if truth is not None and truth.layers != plan.layers:
            raise InvalidInput(f"{path}: not the plan that this study draws; delete it, or pass --force")
        return truth

    def prediction(self, metric: str, code: str, frame: Sensitivity) -> Prediction | None:
        """What the metric predicts, None where it is not finished or its code has another digest now."""
        path = self._path("metrics", metric)
        prediction = self._read(path, Prediction)
        if prediction is None or prediction.code != code:
            return None
        try:
            prediction.table(metric, frame)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: not what a study wrote ({error}); {_WAY_OUT}") from error
        return prediction

    def save(self, kind: str, name: str, found: BaseModel) -> None:
        """Write a finished part; its kind is `plans` or `metrics`."""
        write_text(self._path(kind, name), Part.of(found, self.about).model_dump_json(indent=2) + "\n")

    def metrics(self) -> list[str]:
        """Names of the finished metrics."""
        return sorted(unquote(path.name.removesuffix(".json")) for path in (self.path / "metrics").glob("*.json"))

    def _path(self, kind: str, name: str) -> Path:
        return self.path / kind / f"{quote(name, safe=':=,')}.json"

    def _read(self, path: Path, model: type[T]) -> T | None:
        """What was found, None where there is no file."""
        if not path.exists():
            return None
        try:
            part = read_model(path, Part[model], "what a study wrote")
            if part != Part.of(part.found, self.about):
                raise InvalidInput(f"{path}: not what a study wrote: it has changed since, or is of another study")
        except InvalidInput as error:
            raise InvalidInput(f"{error}; {_WAY_OUT}") from error
        return part.found


def check_folder(path: Path) -> None:
    """Raise InvalidInput where the folder holds what a study cannot replace: before its work, not after."""
    _stored_settings(path)
    for names, kind, fits in ((FOLDERS, "file", Path.is_dir), (RESULTS, "folder", Path.is_file)):
        for name in names:
            if (path / name).exists() and not fits(path / name):
                raise InvalidInput(f"{path / name}: a {kind} is in the way; choose another --out")


def _stored_settings(path: Path) -> dict[str, Any] | None:
    """Settings of the study in the folder, None where there is none."""
    if not (path / SETTINGS).exists():
        return None
    try:
        stored = read_json(path / SETTINGS)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; delete it, or choose another --out") from error
    if not isinstance(stored, dict) or not {"weights", "calibration", "evaluation", "choices"} <= stored.keys():
        raise InvalidInput(f"{path / SETTINGS}: not that of a study; delete it, or choose another --out")
    return stored
