"""The table of predicted loss increase, layers x choices, and plans, a choice for each layer (numpy only)."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    SerializationInfo,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic_core import core_schema

from mixbit.core.arguments import checked, checked_class
from mixbit.core.budget import OF_FILES, RESOURCES, Budget, untold
from mixbit.core.errors import InvalidInput, did_you_mean, pick
from mixbit.core.io.files import read_bytes, write_text
from mixbit.core.io.json_files import MOST_JSON, MOST_TABLE_VALUES, first_problem, model_of
from mixbit.core.io.versions import Versions
from mixbit.core.scheme import Scheme

FloatArray = NDArray[np.float64]
_Entry = Annotated[float, Field(allow_inf_nan=False)] | None


def _array(rows: list[list[float | None]]) -> FloatArray:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows of different lengths")
    return np.array([[np.inf if value is None else value for value in row] for row in rows], dtype=float)


def _row(values: list[float]) -> FloatArray:
    return np.array(values, dtype=float)


def _rows(values: FloatArray) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in values.tolist()]


def _read_as(form: Any, read: Callable[[Any], FloatArray], write: Callable[[FloatArray], Any]) -> GetPydanticSchema:
    def array(value: Any, validate: Callable[[Any], Any]) -> FloatArray:
        return value if isinstance(value, np.ndarray) else read(validate(value))

    def lists(value: FloatArray, info: SerializationInfo) -> Any:
        return write(value) if info.mode == "json" else value

    written = core_schema.plain_serializer_function_ser_schema(lists, info_arg=True)
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_wrap_validator_function(array, handler(form), serialization=written)
    )


#: Arrays that pydantic reads from lists and writes as lists in JSON; in tables, null stands for inf.
Table = Annotated[FloatArray, _read_as(Annotated[list[Annotated[list[_Entry], FailFast()]], FailFast()], _array, _rows)]
Row = Annotated[FloatArray, _read_as(Annotated[list[float], FailFast()], _row, np.ndarray.tolist)]

#: Of files of plans, and of tables.
VERSIONS = Versions()
#: Usage that every table holds.
USAGE = {"weight_bytes", "weight_bits", "bit_ops"}
#: Budgets that are no sum over layers.
_NO_SUMS = ("bit_ops_ratio", "bit_complexity_ratio", "activation_bytes")
#: Budgets whose usage is measured where it is asked for -> what that is, and the option of `measure`.
MEASURED = {"latency_ms": ("times", "--latency")} | dict.fromkeys(OF_FILES, ("sizes", "--size"))
#: Larger entries are not measurements, and their sums would overflow.
LARGEST = 1e100


@dataclass(frozen=True)
class Limit:
    """One linear limit on a choice per layer: the sum of `usage` [L, C] over the layers is at most `bound`.

    Attributes:
        name: Of the budget, one of RESOURCES.
        usage: What each choice uses.
        bound: The largest sum, in the unit of `usage`.
        ratio_of: What uniform w8a8 uses, where the budget is a ratio to it; else None.
        offset: What is used whatever the choice, and not part of `bound`.
        conversions: [L - 1, 2] what is used beside the sum, see `Sensitivity.conversions`; None for nothing.
    """

    name: str
    usage: FloatArray
    bound: float
    ratio_of: float | None = None
    offset: float = 0.0
    conversions: FloatArray | None = None

    def named(self, used: float) -> float:
        """A sum of `usage` in the unit of the budget's name."""
        if self.ratio_of is None:
            return used + self.offset
        return self.ratio_of / used if used else math.inf


class Price(BaseModel):
    """What one limit of the budget costs.

    Attributes:
        used: Of the limited resource, in the unit of its name.
        price: The shadow price: how much the smallest loss falls for each unit that the limit is looser, in the linear
            relaxation; 0 where the limit does not bind.
        looser: A limit that is 5 % looser.
        gain: How much the predicted loss falls with it, exactly.
        widens: Layer -> `w4a8 to w6a8`, what changes then, the largest gain first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    used: float
    price: float
    looser: float
    gain: float
    widens: dict[str, str]


class Plan(BaseModel):
    """Which scheme each layer takes, what that was predicted to cost, and how it was made.

    Attributes:
        target: Name of the target that the plan is for.
        fingerprint: Which model the plan is for: see `model_fingerprint`.
        layers: Layer -> scheme as text, in execution order.
        budget: The limits that the plan was made under, or `max_drop`; empty for a plan written by hand.
        predicted: What the search expected: `loss`, its `standard_error` where known, `weight_bytes`, `weight_ratio`,
            `mean_bits`, `bit_ops`, and `latency_ms`, `file_bytes` and other measured ones that the table holds.
        prices: Limit of the budget -> what it costs; empty unless asked for.
        made_by: The method behind it, as text for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    version: Literal[1] = 1
    target: str
    fingerprint: str
    layers: Annotated[dict[str, str], Field(min_length=1)]
    budget: dict[str, float] = {}
    predicted: dict[str, float] = {}
    prices: dict[str, Price] = {}
    made_by: str = "hand"

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InvalidInput(f"not a plan: {first_problem(error)}") from error

    @field_validator("layers")
    @classmethod
    def _schemes_are_known(cls, layers: dict[str, str]) -> dict[str, str]:
        for name, scheme in layers.items():
            try:
                Scheme.parse(scheme)
            except InvalidInput as error:
                raise ValueError(f"layer {name}: {error}") from error
        return layers

    def scheme(self, layer: str) -> Scheme:
        """The scheme of one layer, by name."""
        return Scheme.parse(self.layers[pick("layer", layer, self.layers)])

    @checked
    def check_model(self, layers: Iterable[str], model_fingerprint: str) -> None:
        """Raise InvalidInput unless the plan names exactly these layers of this model."""
        known = set(layers)
        for name in self.layers:
            if name not in known:
                raise InvalidInput(
                    f"plan: layer {name!r} is not in this model{did_you_mean(name, known)}; it has {_some(known)}"
                )
        if missing := known - self.layers.keys():
            raise InvalidInput(f"plan: no scheme for {_some(missing)}; add them or plan again for this model")
        if self.fingerprint != model_fingerprint:
            shapes = f"its shapes are {self.fingerprint}, not {model_fingerprint}"
            raise InvalidInput(f"plan: made for another model ({shapes}); plan again for this model")

    @checked
    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_text(Path(path), self.model_dump_json(indent=2) + "\n")

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan; raise InvalidInput that names the first key, layer or scheme that is wrong."""
        return cls.of_text(read_bytes(Path(path), MOST_JSON), path)

    @classmethod
    def of_text(cls, text: str | bytes, place: str | Path) -> "Plan":
        """The plan that JSON text holds; raises as `load` does, with its place."""
        return model_of(text, place, cls, "a plan", versions=VERSIONS)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


@checked_class
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
        trace: [L] the Hessian's average trace of each weight, where the metric estimates it.
        conversions: [L - 1, 2] milliseconds that `latency_ms` of a plan has beside the sum over its layers: for each
            layer but the last, where it reads integers and the next one reads float numbers, and the other way round.
            None where there are none, or times are not held.
        live: [S, 1 + L] bytes and numbers of the activations that are alive at once, see `live_activations`; or None.
        uncovered: Number of weights that no layer covers: the file holds them in 32 bits whatever the plan.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    layers: Annotated[tuple[str, ...], Field(min_length=1), FailFast()]
    choices: Annotated[tuple[str, ...], Field(min_length=1), FailFast()]
    loss: Table
    standard_error: Table
    usage: dict[str, Table]
    numel: Row
    macs: Row
    input_ties: Annotated[tuple[Annotated[tuple[int, ...], FailFast()], ...], FailFast()]
    metric: str
    target: str
    fingerprint: str
    num_samples: int
    seed: int
    verdict: str = ""
    trace: Row | None = None
    conversions: Table | None = None
    live: Table | None = None
    uncovered: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        self._check_names()
        if missing := USAGE - self.usage.keys():
            raise InvalidInput(f"sensitivity: the usage lacks {', '.join(sorted(missing))}; measure again")
        rows, table, offered = (len(self.layers),), (len(self.layers), len(self.choices)), np.isfinite(self.loss)
        self._check_numbers("loss", self.loss, table, finite=False)
        self._check_numbers("standard_error", self.standard_error, table, finite=offered & (self.num_samples > 1))
        for name, values in self.usage.items():
            self._check_numbers(name, values, table, finite=offered)
        self._check_numbers("numel", self.numel, rows)
        self._check_numbers("macs", self.macs, rows)
        if self.trace is not None and (self.trace.shape != rows or not np.isfinite(self.trace).all()):
            raise InvalidInput(f"sensitivity: trace is {self.trace}, expected a number for each layer; measure again")
        if self.conversions is not None:
            self._check_numbers("conversions", self.conversions, (len(self.layers) - 1, 2))
        if self.live is not None:
            self._check_numbers("live", self.live, (len(self.live), 1 + len(self.layers)))
        if (weights := self.numel.sum()) == 0 or self.num_samples < 1:
            raise InvalidInput(f"sensitivity: {weights:.0f} weights, {self.num_samples} samples; measure again")
        for layer, row in zip(self.layers, offered, strict=True):
            if not row.any():
                raise InvalidInput(f"sensitivity: no choice of {layer} can run; offer more choices")

    def _check_names(self) -> None:
        for word, names in (("layer", self.layers), ("choice", self.choices)):
            if len(set(names)) < len(names):
                raise InvalidInput(f"sensitivity: {word} {max(names, key=names.count)} stands twice; measure again")
        for choice in self.choices:
            Scheme.parse(choice)
        last = len(self.layers) - 1
        for tie in self.input_ties:
            if not tie or min(tie) < 0 or max(tie) > last:
                raise InvalidInput(f"sensitivity: input tie {list(tie)}: expected layers 0 to {last}; measure again")

    def _check_numbers(
        self, name: str, values: FloatArray, shape: tuple[int, ...], *, finite: NDArray[np.bool_] | bool = True
    ) -> None:
        """Raise InvalidInput for another shape, NaN, -inf, inf if `finite`, over LARGEST, or below 0 but in a loss."""
        if values.shape != shape:
            raise InvalidInput(f"sensitivity: {name} has shape {values.shape}, expected {shape}")
        wrong = np.isnan(values) | np.isneginf(values) | (np.isposinf(values) & finite)
        wrong |= (np.abs(values) > LARGEST) & np.isfinite(values)
        wrong |= (values < 0) & (name != "loss")
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise InvalidInput(f"sensitivity: {name} of {self.layers[place[0]]} is {values[place]}; measure again")

    @checked
    def pinned(self, pins: Mapping[str, str], only_pinned: Collection[str] = ()) -> "Sensitivity":
        """The table with some layers offered one scheme alone, see `pinned_schemes`.

        Schemes in `only_pinned` are offered to pinned layers only, and to those that are offered nothing else.

        Raises:
            InvalidInput: a pattern that matches no layer, or a scheme that the table or a layer does not have.
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

    @property
    def schemes(self) -> list[Scheme]:
        """[C] the choices."""
        return [Scheme.parse(choice) for choice in self.choices]

    def columns(self, layers: Mapping[str, str]) -> NDArray[np.int64]:
        """[L] the column of each layer's scheme, as a plan's `layers` hold it."""
        return np.array([self.choices.index(layers[layer]) for layer in self.layers])

    def usage_of(self, resource: str) -> FloatArray:
        """[L, C] what each choice adds to a resource, see `fixed_usage` for what is used whatever the choice.

        Raises InvalidInput for a resource that is no sum or not held.
        """
        known = [name for name in RESOURCES if name not in _NO_SUMS]
        if resource not in known:
            instead = "; take bit_ops" if resource == "bit_ops_ratio" else ""
            if resource not in RESOURCES:
                pick("resource", resource, known)
            raise InvalidInput(f"resource {resource!r} does not add up over layers; known: {', '.join(known)}{instead}")
        if resource == "weight_ratio":
            return self.usage["weight_bytes"] / (4 * self.num_weights)
        if resource == "mean_bits":
            return self.usage["weight_bits"] / self.num_weights
        if resource not in self.usage:
            if resource in OF_FILES and "file_bytes" in self.usage:
                raise InvalidInput(untold(resource, self.target))
            what, option = MEASURED[resource]
            raise InvalidInput(f"{resource}: the table holds no {what} of its choices; measure with {option}")
        return self.usage[resource]

    @property
    def num_weights(self) -> float:
        """Weights in the file, those that no layer covers included."""
        return float(self.numel.sum()) + self.uncovered

    def fixed_usage(self, resource: str) -> float:
        """What the weights that no layer covers add to a resource."""
        of_one = {"weight_bytes": 4.0, "weight_ratio": 1 / self.num_weights, "mean_bits": 32 / self.num_weights}
        return of_one.get(resource, 0.0) * self.uncovered

    def limits(self, budget: Budget) -> list[Limit]:
        """The budget's limits on sums over the choices, for a peak one a moment; raises InvalidInput as `usage_of`."""
        if budget.max_drop is not None:
            raise InvalidInput(f"budget {budget}: a table does not tell accuracy; auto_quantize() measures it on files")
        return [limit for name, bound in budget.limits.items() for limit in self._limits(name, bound)]

    def _limits(self, name: str, bound: float) -> list[Limit]:
        if name == "activation_bytes":
            if self.live is None:
                raise InvalidInput(f"{name}: the table does not say which activations are alive at once; measure again")
            moments = zip(self.live[:, 0], self.live[:, 1:, None] * self._input_bytes, strict=True)
            return [Limit(name, usage, bound - fixed, offset=float(fixed)) for fixed, usage in moments]
        if name == "bit_ops_ratio":
            usage, int8 = self.usage["bit_ops"], 64.0
        elif name == "bit_complexity_ratio":
            weight_bits = np.array([float(scheme.weight_bits) for scheme in self.schemes])
            usage, int8 = np.maximum(np.outer(self.macs, weight_bits), self.usage["bit_ops"] / weight_bits), 8.0
        else:
            fixed, conversions = self.fixed_usage(name), self.conversions if name == "latency_ms" else None
            return [Limit(name, self.usage_of(name), bound - fixed, offset=fixed, conversions=conversions)]
        int8 *= float(self.macs.sum())
        if not math.isfinite(int8 / bound):
            raise InvalidInput(f"budget {name}={bound}: so small a ratio is no limit; give a larger one")
        return [Limit(name, usage, int8 / bound, int8)]

    @property
    def _input_bytes(self) -> FloatArray:
        """[C] bytes of one number of a layer's input."""
        return np.array([4.0 if scheme.input is None else 1.0 for scheme in self.schemes])

    def figures(self, choices: NDArray[np.int64]) -> dict[str, FloatArray]:
        """Figure -> [N] for N choices [N, L]: predicted loss, its standard error, and usage.

        Layers count as independent: the standard error is the root of summed squares, and inf from a single sample.
        """
        rows = np.arange(len(self.layers))
        used = {name: values[rows, choices].sum(axis=1) for name, values in self.usage.items()}
        if self.conversions is not None and "latency_ms" in used:
            reads_float = np.array([scheme.input is None for scheme in self.schemes])
            used["latency_ms"] += converted(self.conversions, reads_float[choices])
        weight_bytes = used["weight_bytes"] + self.fixed_usage("weight_bytes")
        figures = {
            "loss": self.loss[rows, choices].sum(axis=1),
            "standard_error": np.sqrt(np.square(self.standard_error[rows, choices]).sum(axis=1)),
            "weight_bytes": weight_bytes,
            "weight_ratio": weight_bytes / (4 * self.num_weights),
            "mean_bits": used["weight_bits"] / self.num_weights + self.fixed_usage("mean_bits"),
            "bit_ops": used["bit_ops"],
        }
        if self.live is not None:
            alive = self.live[:, 0] + self._input_bytes[choices] @ self.live[:, 1:].T
            figures["activation_bytes"] = alive.max(axis=1)
        return figures | {name: used[name] for name in MEASURED if name in used}

    def plan(self, choice: Sequence[int] | NDArray[np.int64], made_by: str, budget: Budget | None = None) -> Plan:
        """The plan of a choice [L], with the predicted figures that are known."""
        figures = {name: float(values[0]) for name, values in self.figures(np.asarray(choice)[None]).items()}
        return Plan(
            target=self.target,
            fingerprint=self.fingerprint,
            layers={layer: self.choices[column] for layer, column in zip(self.layers, choice, strict=True)},
            budget={} if budget is None else dict(budget.limits),
            predicted={name: value for name, value in figures.items() if math.isfinite(value)},
            made_by=made_by,
        )

    def plan_like(self, choice: int | NDArray[np.int64], made_by: str) -> Plan:
        """A plan of the choice [L], or of one column for all; where it is not offered, the first that is.

        Layers that read one tensor then take its format that most of them have, of those that all are offered.
        """
        offered = np.isfinite(self.loss)
        wanted = np.broadcast_to(choice, len(offered))
        taken = np.where(offered[np.arange(len(offered)), wanted], wanted, offered.argmax(axis=1))
        reads = [scheme.input for scheme in self.schemes]
        for tie in map(list, self.input_ties):
            formats = [reads[column] for column in taken[tie]]
            columns = {fmt: offered & np.array([read == fmt for read in reads]) for fmt in dict.fromkeys(reads)}
            common = [fmt for fmt, of_format in columns.items() if of_format[tie].any(axis=1).all()]
            if common and len(set(formats)) > 1:
                of_format = columns[max(common, key=formats.count)]
                taken[tie] = [
                    column if of_format[row, column] else of_format[row].argmax()
                    for row, column in zip(tie, taken[tie], strict=True)
                ]
        return self.plan(taken, made_by)

    def to_json(self) -> str:
        """The text of its file; entries that are not offered are null."""
        # No layers are tied to one scheme; readers of the file's format expect the field.
        content = {"version": 1, **TypeAdapter(Sensitivity).dump_python(self, mode="json"), "ties": []}
        return json.dumps(content, indent=2) + "\n"

    @checked
    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_text(Path(path), self.to_json())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "Sensitivity":
        """Read a table that `save` wrote; raise InvalidInput for anything else."""
        return cls.of_text(read_bytes(Path(path), MOST_JSON), path)

    @classmethod
    def of_text(cls, text: str | bytes, place: str | Path) -> "Sensitivity":
        """The table that JSON text holds; raises as `load` does, with its place."""
        what, most = "a sensitivity table", MOST_TABLE_VALUES
        file = model_of(text, place, TableFile, what, versions=VERSIONS, most_values=most)
        return model_of(json.dumps(file.model_extra), place, cls, what, most_values=most)


class TableFile(BaseModel):
    """What the file holds beside the table's own fields."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    version: Literal[1]
    ties: Annotated[list[Any], FailFast()] = []

    @field_validator("ties")
    @classmethod
    def _there_are_none(cls, ties: list[Any]) -> list[Any]:
        if ties:
            raise ValueError("ties of layers to one scheme are not supported; measure again")
        return ties


def converted(conversions: FloatArray, reads_float: NDArray[np.bool_]) -> FloatArray:
    """[...] what conversions [L - 1, 2] between neighbours add where the layers [..., L] read float numbers or not."""
    before, behind = reads_float[..., :-1], reads_float[..., 1:]
    return (~before & behind) @ conversions[:, 0] + (before & ~behind) @ conversions[:, 1]


def pinned_schemes(layers: Sequence[str], pins: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Layer -> the pattern that pins it, as `conv1.weight` or `blocks.*`, and its scheme; the last that matches counts.

    Raises InvalidInput for a pattern that matches no layer.
    """
    pinned: dict[str, tuple[str, str]] = {}
    for pattern, scheme in pins.items():
        matching = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matching:
            near = get_close_matches(pattern, layers, 3, 0.3) or layers[:3]
            raise InvalidInput(
                f"pin {pattern}={scheme}: no layer has such a name{did_you_mean(pattern, layers)}; "
                f"there are {', '.join(near)}, ..."
            )
        pinned |= dict.fromkeys(matching, (pattern, scheme))
    return pinned
