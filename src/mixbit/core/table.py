"""The table of predicted loss increase: layers x choices, with standard errors and usage (numpy only)."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixbit.core.errors import InvalidInput
from mixbit.core.io.files import read_json, write_text
from mixbit.core.scheme import Scheme

FloatArray = NDArray[np.float64]

USAGE = {"weight_bytes", "weight_bits", "bit_ops"}  # what every table holds


#: Larger numbers are no measurements, and sums of them no numbers.
LARGEST = 1e100


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Predicted loss increase of every choice of every layer; L layers, C choices.

    Attributes:
        layers: Names of the layers, in execution order.
        choices: Schemes, as text.
        loss: [L, C] expected increase of the loss (nats where the metric allows); inf where not offered.
        standard_error: [L, C] of the same unit; inf from a single sample.
        usage: Resource -> [L, C]: `weight_bytes`, `weight_bits`, `bit_ops`, and any other.
        numel: [L] number of weights.
        macs: [L] multiply-accumulates of one sample.
        input_ties: Groups of layers that read the same tensor and so take the same input format.
        metric: Name of the metric that made the table.
        target: Name of the target whose choices these are.
        fingerprint: Which model: see `Plan.fingerprint`.
        num_samples: Calibration samples behind each entry.
        seed: Seed of the draws.
        verdict: Whether the table can rank plans, or why not, in a sentence.
        trace: [L] the Hessian's average trace of each weight, where the metric estimates it; else None.
        live: [S, 1 + L] bytes and numbers of the activations that are alive at once, see `live_activations`; None where
            that is not known.
    """

    layers: tuple[str, ...]
    choices: tuple[str, ...]
    loss: FloatArray
    standard_error: FloatArray
    usage: dict[str, FloatArray]
    numel: FloatArray
    macs: FloatArray
    input_ties: tuple[tuple[int, ...], ...]
    metric: str
    target: str
    fingerprint: str
    num_samples: int
    seed: int
    verdict: str = ""
    trace: FloatArray | None = None
    live: FloatArray | None = None

    def __post_init__(self) -> None:
        self._check_names()
        missing = USAGE - self.usage.keys()
        if missing:
            raise InvalidInput(f"sensitivity: the usage lacks {', '.join(sorted(missing))}; measure again")
        rows, table = (len(self.layers),), (len(self.layers), len(self.choices))
        self._check_numbers("loss", self.loss, table, finite=False)
        offered = np.isfinite(self.loss)
        self._check_numbers("standard_error", self.standard_error, table, finite=offered & (self.num_samples > 1))
        for name, values in self.usage.items():
            self._check_numbers(name, values, table, finite=offered)
        self._check_numbers("numel", self.numel, rows, finite=True)
        self._check_numbers("macs", self.macs, rows, finite=True)
        if self.trace is not None and (self.trace.shape != rows or not np.isfinite(self.trace).all()):
            raise InvalidInput(f"sensitivity: trace is {self.trace}, expected a number for each layer; measure again")
        if self.live is not None:
            self._check_numbers("live", self.live, (len(self.live), 1 + len(self.layers)), finite=True)
        if self.numel.sum() == 0 or self.num_samples < 1:
            raise InvalidInput(
                f"sensitivity: {self.numel.sum():.0f} weights, {self.num_samples} samples; measure again"
            )
        for layer, row in zip(self.layers, offered, strict=True):
            if not row.any():
                raise InvalidInput(f"sensitivity: no choice of {layer} can run; offer more choices")

    def _check_names(self) -> None:
        for word, names in (("layer", self.layers), ("choice", self.choices)):
            if len(set(names)) < len(names):
                raise InvalidInput(f"sensitivity: {word} {max(names, key=names.count)} stands twice; measure again")
        for choice in self.choices:
            Scheme.parse(choice)
        for index in (index for tie in self.input_ties for index in tie):
            if not 0 <= index < len(self.layers):
                raise InvalidInput(f"sensitivity: a tie names layer {index}, but there are {len(self.layers)} layers")

    def _check_numbers(
        self, name: str, values: FloatArray, shape: tuple[int, ...], *, finite: NDArray[np.bool_] | bool
    ) -> None:
        """Raise InvalidInput unless the values have that shape, and none is NaN or -inf, nor +inf where `finite`.

        None but a loss may be negative, and a finite one is no larger than LARGEST.
        """
        if values.shape != shape:
            raise InvalidInput(f"sensitivity: {name} has shape {values.shape}, expected {shape}")
        wrong = np.isnan(values) | np.isneginf(values) | (np.isposinf(values) & finite)
        wrong |= (np.abs(values) > LARGEST) & np.isfinite(values)
        if name != "loss":
            wrong |= values < 0
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise InvalidInput(f"sensitivity: {name} of {self.layers[place[0]]} is {values[place]}; measure again")

    def pinned(self, pins: Mapping[str, str], only_pinned: Collection[str] = ()) -> "Sensitivity":
        """The table with some layers offered one scheme alone.

        Args:
            pins: Pattern of layers' names, as in `conv1.weight` or `blocks.*`, -> scheme; of several patterns that
                match a layer, the last counts.
            only_pinned: Schemes that are offered to pinned layers only, and to those that are offered nothing else.

        Raises:
            InvalidInput: a pattern that matches no layer, or a scheme that the table does not hold or a layer is not
                offered.
        """
        every = np.isfinite(self.loss)
        others = every & ~np.isin(self.choices, list(only_pinned))
        offered = np.where(others.any(axis=1, keepdims=True), others, every)
        for layer, (pattern, scheme) in pinned_schemes(self.layers, pins).items():
            if scheme not in self.choices:
                raise InvalidInput(f"pin {pattern}={scheme}: the table holds {', '.join(self.choices)}; measure it too")
            row, column = self.layers.index(layer), self.choices.index(scheme)
            if not every[row, column]:
                raise InvalidInput(f"pin {pattern}={scheme}: {layer} is not offered that scheme")
            offered[row] = np.arange(len(self.choices)) == column
        return dataclasses.replace(self, loss=np.where(offered, self.loss, np.inf))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON; entries that are not offered are null."""
        stored = _Stored(
            version=1,
            layers=list(self.layers),
            choices=list(self.choices),
            loss=_nullable(self.loss),
            standard_error=_nullable(self.standard_error),
            usage={name: _nullable(values) for name, values in self.usage.items()},
            numel=self.numel.tolist(),
            macs=self.macs.tolist(),
            ties=[],
            input_ties=[list(group) for group in self.input_ties],
            metric=self.metric,
            target=self.target,
            fingerprint=self.fingerprint,
            num_samples=self.num_samples,
            seed=self.seed,
            verdict=self.verdict,
            trace=None if self.trace is None else self.trace.tolist(),
            live=None if self.live is None else self.live.tolist(),
        )
        write_text(Path(path), stored.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Sensitivity":
        """Read a table that `save` wrote; raise InvalidInput for anything else."""
        try:
            stored = _Stored.model_validate(read_json(Path(path)))
        except ValidationError as error:
            raise InvalidInput(f"{path}: not a sensitivity table: {first_problem(error)}") from error
        if stored.ties:
            raise InvalidInput(f"{path}: ties of layers to one scheme, {stored.ties}, are not supported; measure again")
        try:
            return cls(
                layers=tuple(stored.layers),
                choices=tuple(stored.choices),
                loss=_array(stored.loss),
                standard_error=_array(stored.standard_error),
                usage={name: _array(values) for name, values in stored.usage.items()},
                numel=np.array(stored.numel),
                macs=np.array(stored.macs),
                input_ties=tuple(tuple(group) for group in stored.input_ties),
                metric=stored.metric,
                target=stored.target,
                fingerprint=stored.fingerprint,
                num_samples=stored.num_samples,
                seed=stored.seed,
                verdict=stored.verdict,
                trace=None if stored.trace is None else np.array(stored.trace),
                live=None if stored.live is None else np.array(stored.live),
            )
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error
        except ValueError as error:
            raise InvalidInput(f"{path}: rows of different lengths ({error})") from error


Entry = Annotated[float, Field(allow_inf_nan=False)] | None


def pinned_schemes(layers: Sequence[str], pins: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Layer -> the pattern that pins it and its scheme; of several patterns that match a layer, the last counts.

    Raises:
        InvalidInput: a pattern that matches no layer.
    """
    pinned: dict[str, tuple[str, str]] = {}
    for pattern, scheme in pins.items():
        matching = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matching:
            near = get_close_matches(pattern, layers, 3, 0.3) or layers[:3]
            raise InvalidInput(f"pin {pattern}={scheme}: no layer has such a name; there are {', '.join(near)}, ...")
        pinned |= dict.fromkeys(matching, (pattern, scheme))
    return pinned


class _Stored(BaseModel):
    """The file: unknown keys refused, null for entries that are not offered."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=1)]
    layers: Annotated[list[str], Field(min_length=1)]
    choices: Annotated[list[str], Field(min_length=1)]
    loss: list[list[Entry]]
    standard_error: list[list[Entry]]
    usage: dict[str, list[list[Entry]]]
    numel: list[float]
    macs: list[float]
    ties: list[list[int]]  # of weights: always empty
    input_ties: list[list[int]]
    metric: str
    target: str
    fingerprint: str
    num_samples: int
    seed: int
    verdict: str
    trace: list[float] | None = None
    live: list[list[float]] | None = None


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, as `place: what (value)`."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the file"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r:.80})"


def _nullable(values: FloatArray) -> list[list[Entry]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in values]


def _array(rows: list[list[Entry]]) -> FloatArray:
    return np.array([[np.inf if value is None else value for value in row] for row in rows], dtype=float)
