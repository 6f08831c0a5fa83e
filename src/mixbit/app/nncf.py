"""Reads configuration files of NNCF 2 for mixed precision, whose algorithms NNCF 3 removed.

Understood is the form `{"target_device": ..., "compression": {"algorithm": "quantization", "initializer": {"precision":
{"type": "hawq" | "autoq" | "manual", ...}}}}`. Its two meanings of `compression_ratio` are two budgets here:

-   hawq: bit complexity of uniform w8a8 / that of the plan, at least: `bit_complexity_ratio`;
-   autoq: size of the weights / their size in float32, at most: `weight_ratio`, which counts scales too.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mixbit.core import MOST_JSON, Budget, InvalidInput, Target, json_of, quoted, read_bytes

#: Bits of the inputs that integer kernels read.
BYTE = 8


@dataclass(frozen=True)
class NncfConfig:
    """What a configuration asks for, as the options of `mixbit quantize`.

    Attributes:
        budget: Of precisions set by hand, all that float32 takes.
        eval_subset_ratio: Share of the data that plans are tried on.
        notes: Key -> what became of it: honoured, mapped to something else, or not needed.
    """

    metric: str
    search: str
    budget: Budget
    choices: tuple[str, ...]
    pins: dict[str, str]
    eval_subset_ratio: float
    notes: dict[str, str]


def read_nncf_config(path: str | Path, target: Target, budget: Budget | None = None) -> NncfConfig:
    """Read a file, whose budget another may replace; raises InvalidInput, which names what cannot be honoured."""
    text = read_bytes(Path(path), MOST_JSON)
    without_comments = re.sub(rb'("(?:\\.|[^"\\])*+(?:"|$))|//[^\n]*', lambda match: match[1] or b"", text)
    stored = json_of(without_comments, path)
    try:
        config = _read(stored, target)
        if budget is None and "bit_complexity_ratio" in config.budget.limits and _input_bits(target) == (BYTE,):
            raise InvalidInput(
                f"HAWQ's ratio counts the wider of weight and input; target {target.name} runs inputs in 8 bits alone: "
                "no plan reaches more than 1; give --budget weight_ratio=0.15, or another, which replaces it"
            )
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    return config if budget is None else replace(config, budget=budget)


def _input_bits(target: Target) -> tuple[int, ...]:
    """Widths of inputs that are worth a choice: integer kernels read a byte for each input, however few bits it has."""
    return (BYTE,) if target.integer_layers else target.input_bits


Scopes = Annotated[list[Any], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Count = Annotated[
    int,
    BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value),
    Field(gt=0, description="a positive whole number"),
]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a positive number")]


class _Part(BaseModel):
    """A part of the file whose layers may be ignored; further keys are listed in the notes."""

    model_config = ConfigDict(extra="allow", strict=True)

    ignored_scopes: Scopes = []
    target_scopes: Any = None

    def pins(self, notes: dict[str, str]) -> dict[str, str]:
        """Layer -> float, of the scopes that are ignored."""
        if self.target_scopes:
            raise InvalidInput("target_scopes: not read; leave them out, and give the other layers --pin NAME=float")
        pins = {}
        for scope in self.ignored_scopes:
            layer, _ = _layer(scope)
            if layer is None:
                notes[scope] = "not needed: no layer with a weight"
            else:
                pins[layer] = "float"
                notes[scope] = f"mapped: pin {layer}=float"
        return pins


class _Quantization(_Part):
    algorithm: str
    initializer: dict[str, Any] = Field(None, validate_default=True)
    weights: _Part = _Part()
    activations: _Part = _Part()


class _File(_Part):
    compression: Any = None


class _Precision(BaseModel):
    """How bits are chosen; NNCF's defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: str


class _Searched(_Precision):
    bits: Annotated[list[int], Field(min_length=1, description="a list of whole numbers")] = [2, 4, 8]
    dump_init_precision_data: Any = None

    def choices(self, target: Target, notes: dict[str, str]) -> tuple[str, ...]:
        """Schemes of the bits that the target offers."""
        weights = sorted({bits for bits in self.bits if bits in target.weight_bits})
        inputs = sorted({bits for bits in self.bits if bits in _input_bits(target)}) or [BYTE]
        if not weights:
            raise InvalidInput(f"precision.bits {self.bits}: {_stored(target)}")
        left_out = sorted(set(self.bits) - set(weights))
        without = f"; {left_out} are not stored by {target.name}" if left_out else ""
        notes["precision.bits"] = f"honoured: weights of {weights}, inputs of {inputs} bits{without}"
        if "dump_init_precision_data" in self.model_fields_set:
            notes["precision.dump_init_precision_data"] = "not needed: sensitivity.json and plan.json hold the data"
        return tuple(f"w{weight}a{input_}" for weight in weights for input_ in inputs)


class _Hawq(_Searched):
    iter_number: Count = 200
    tolerance: Number = 1e-4
    compression_ratio: Number = 1.5
    bitwidth_assignment_mode: Literal["liberal", "strict"] = Field("liberal", description="liberal or strict")
    num_data_points: Any = None
    traces_per_layer_path: Any = None

    def config(self, target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
        vectors, tolerance, ratio = self.iter_number, self.tolerance, self.compression_ratio
        if "traces_per_layer_path" in self.model_fields_set:
            raise InvalidInput("precision.traces_per_layer_path: a pickle, which is never read; leave it out, measure")
        notes["precision.type=hawq"] = "honoured: metric hawq, search hawq"
        notes["precision.iter_number"] = f"honoured: {vectors} vectors at most"
        notes["precision.tolerance"] = f"honoured: {tolerance:g}, by NNCF's rule"
        notes["precision.bitwidth_assignment_mode"] = f"honoured: {self.bitwidth_assignment_mode}"
        notes["precision.compression_ratio"] = f"mapped: bit_complexity_ratio={ratio:g}, at least"
        if "num_data_points" in self.model_fields_set:
            notes["precision.num_data_points"] = "not needed: every vector goes over all of DATA"
        metric = f"hawq:vectors={vectors},rule=nncf,tolerance={tolerance:g}"
        search = f"hawq:assignment={self.bitwidth_assignment_mode}"
        budget = Budget(bit_complexity_ratio=ratio)
        return NncfConfig(metric, search, budget, self.choices(target, notes), pins, 1.0, notes)


class _Autoq(_Searched):
    iter_number: Count = 300  # NNCF has no default that runs; this is that of its examples
    warmup_iter_number: Count = 20
    eval_subset_ratio: Number = 1.0
    compression_ratio: Number = 0.15

    def config(self, target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
        episodes, warmup, ratio = self.iter_number, self.warmup_iter_number, self.compression_ratio
        random = min(warmup, episodes // 2)
        notes["precision.type=autoq"] = "honoured: search autoq; plans are tried by --score, or accuracy on DATA"
        notes["precision.iter_number"] = f"honoured: {episodes} episodes"
        notes["precision.warmup_iter_number"] = f"honoured: {random} of them at random, at most half"
        notes["precision.eval_subset_ratio"] = f"honoured: {self.eval_subset_ratio:g} of DATA"
        notes["precision.compression_ratio"] = f"mapped: weight_ratio={ratio:g}, at most, scales included"
        search, budget = f"autoq:episodes={episodes},warmup={warmup}", Budget(weight_ratio=ratio)
        choices = self.choices(target, notes)
        return NncfConfig("fisher", search, budget, choices, pins, self.eval_subset_ratio, notes)


class _Manual(_Precision):
    bitwidth_per_scope: list[Any] = []

    def config(self, target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
        notes["precision.type=manual"] = "honoured: the layers named are pinned, the others take 8 bits"
        for entry in self.bitwidth_per_scope:
            if not isinstance(entry, list) or len(entry) != 2:
                raise InvalidInput(f"precision.bitwidth_per_scope: {quoted(entry)}; each is [bits, scope]")
            bits, scope = entry
            layer, what = _layer(scope)
            if what != "WEIGHT" or layer is None:
                notes[scope] = "refused: inputs take 8 bits where precisions are set by hand"
                continue
            if not isinstance(bits, int) or bits not in target.weight_bits:
                raise InvalidInput(f"{scope}: {quoted(bits)} bits; {_stored(target)}")
            pins[layer] = f"w{bits}a8"
            notes[scope] = f"mapped: pin {layer}=w{bits}a8"
        return NncfConfig("weight_error", "ilp", Budget(weight_ratio=1), ("w8a8",), pins, 1.0, notes)


_KINDS = {"hawq": _Hawq, "autoq": _Autoq, "manual": _Manual}
_FORMATS = {
    "weights.bits": "not needed: the precision decides",
    "weights.mode": "not needed: weights are symmetric",
    "weights.per_channel": "not needed: weights have a scale per output channel",
    "activations.bits": "not needed: the precision decides",
    "activations.mode": "not needed: inputs are asymmetric",
    "activations.per_channel": "not needed: inputs have a scale per tensor",
}


def _read(stored: Any, target: Target) -> NncfConfig:
    notes: dict[str, str] = {}
    file = _checked(_File, stored)
    entries = file.compression if isinstance(file.compression, list) else [file.compression]
    algorithms = [entry.get("algorithm") if isinstance(entry, dict) else entry for entry in entries]
    if algorithms != ["quantization"] or not isinstance(entries[0], dict):
        raise InvalidInput(f"compression: algorithms {quoted(algorithms)}; expected one, quantization")
    quantization = _checked(_Quantization, entries[0])
    precision = quantization.initializer.get("precision")
    kind = precision.get("type") if isinstance(precision, dict) else None
    if kind not in list(_KINDS):
        raise InvalidInput(f"compression.initializer.precision.type is {quoted(kind)}; known: {', '.join(_KINDS)}")
    pins = file.pins(notes) | quantization.pins(notes)
    notes |= dict.fromkeys(file.model_extra or (), "not needed: no part of quantization")
    if "target_device" in notes:
        notes["target_device"] = f"not needed: --target {target.name} decides what is offered"
    for name, part in (("weights", quantization.weights), ("activations", quantization.activations)):
        pins |= part.pins(notes)
        for key in part.model_extra or ():
            place = f"{name}.{key}"
            notes[place] = _FORMATS.get(place, f"refused: {name} have one form, see --choices")
    notes |= dict.fromkeys(quantization.model_extra or (), "not needed, or a part of training")
    for key in [key for key in quantization.initializer if key != "precision"]:
        notes[f"initializer.{key}"] = f"not needed: ranges and scales are chosen on DATA for {target.name}"
    return _checked(_KINDS[kind], precision, "precision.").config(target, pins, notes)


def _stored(target: Target) -> str:
    return f"target {target.name} stores weights of {target.weight_bits}"


M = TypeVar("M", bound=BaseModel)


def _checked(model: type[M], stored: Any, place: str = "") -> M:
    """What is stored as a part of the file; raises InvalidInput, which names the key, for anything else."""
    try:
        return model.model_validate(stored)
    except ValidationError as error:
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(model.model_fields.keys() - {"type"}))
            raise InvalidInput(f"{place}{key} is no key of {stored['type']}; known: {known}") from None
        value, wanted = stored.get(key) if key else stored, "expected an object with keys, as NNCF's schema has it"
        if first["type"] == "list_type":
            wanted = "expected a list"
        elif key and (description := model.model_fields[key].description):
            wanted = f"give {description}"
        raise InvalidInput(f"{place}{key or 'the file'} is {quoted(value)}; {wanted}") from None


def _layer(scope: Any) -> tuple[str | None, str]:
    """Name of the parameter behind a scope, as in `Net/NNCFConv2d[conv1]/conv2d_0|WEIGHT`, and what of it is meant.

    No name for scopes of operators without a name of their own, as `Net/relu_0`.
    """
    if not isinstance(scope, str) or scope.startswith("{re}") or "/" not in scope:
        raise InvalidInput(
            f"scope {quoted(scope)} is not understood; write it as in Net/NNCFConv2d[conv1]/conv2d_0, or leave it out "
            "and give --pin NAME=float"
        )
    names = re.findall(r"\[([^\]]+)\]", scope)
    _, _, what = scope.partition("|")
    return ".".join(names) + ".weight" if names else None, re.sub(r"\d+$", "", what) or "WEIGHT"
