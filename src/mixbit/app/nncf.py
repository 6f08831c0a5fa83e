"""Reads configuration files of NNCF 2 for mixed precision, whose algorithms NNCF 3 removed.

Understood is the form `{"target_device": ..., "compression": {"algorithm": "quantization", "initializer": {"precision":
{"type": "hawq" | "autoq" | "manual", ...}}}}`. Its two meanings of `compression_ratio` are two budgets here:

-   hawq: bit complexity of uniform w8a8 / that of the plan, at least: `bit_complexity_ratio`;
-   autoq: size of the weights / their size in float32, at most: `weight_ratio`, which counts scales too.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixbit.core import Budget, InvalidInput, Target

#: NNCF's defaults; of autoq's episodes there is none that runs, and its examples have 300.
BITS, HAWQ_RATIO, AUTOQ_RATIO, VECTORS, TOLERANCE, EPISODES = [2, 4, 8], 1.5, 0.15, 200, 1e-4, 300


@dataclass(frozen=True)
class NncfConfig:
    """What a configuration asks for, in the words of this package.

    Attributes:
        metric: Name with options.
        search: Name with options.
        budget: Of precisions set by hand, all that float32 takes.
        choices: Schemes.
        pins: Layer -> scheme.
        eval_subset_ratio: Share of the data that plans are tried on.
        notes: Key -> how it was taken: honoured, mapped to something else, or not needed.
    """

    metric: str
    search: str
    budget: Budget
    choices: tuple[str, ...]
    pins: dict[str, str]
    eval_subset_ratio: float
    notes: dict[str, str]


def read_nncf_config(path: str | Path, target: Target, budget: Budget | None = None) -> NncfConfig:
    """Read a configuration file for a target.

    Args:
        path: The file.
        target: What is offered.
        budget: Takes the place of the file's own, where one is given.

    Raises:
        InvalidInput: no such file, not that form, or a key that cannot be honoured; it is named.
    """
    try:
        found = _read(_read_json(Path(path)), target)
        if budget is None and "bit_complexity_ratio" in found.budget.limits and target.input_bits == (8,):
            raise InvalidInput(
                "HAWQ's ratio counts the larger of weight and input bits, and target "
                f"{target.name} runs inputs in 8 bits alone: no plan reaches more than 1; give --budget "
                "weight_ratio=0.15, or another, which replaces it"
            )
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    return found if budget is None else replace(found, budget=budget)


def _read_json(path: Path) -> Any:
    """The file, without its comments, which NNCF allows."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda found: found[1] or "", text))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot be read as JSON: {error}") from error


def _read(stored: Any, target: Target) -> NncfConfig:
    notes: dict[str, str] = {}
    config = _mapping(stored, "the file")
    quantization = _quantization(config.get("compression"))
    precision = dict(_mapping(_mapping(quantization.get("initializer"), "initializer").get("precision"), "precision"))
    kind = precision.pop("type", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InvalidInput(f"compression.initializer.precision.type is {kind!r}; known: {', '.join(_KINDS)}")
    pins = _ignored(config, notes)
    for key in config:
        if key in ("ignored_scopes", "target_scopes"):
            continue
        if key == "target_device":
            notes[key] = f"not needed: --target {target.name} decides what is offered"
        elif key != "compression":
            notes[key] = "not needed: no part of quantization"
    pins |= _quantizer_keys(quantization, target, notes)
    read, known = _KINDS[kind]
    unknown = sorted(set(precision) - known)
    if unknown:
        raise InvalidInput(f"precision.{unknown[0]} is no key of {kind}; known: {', '.join(sorted(known))}")
    if "traces_per_layer_path" in precision:
        raise InvalidInput("precision.traces_per_layer_path: a pickle, which is never read; leave it out, and measure")
    if "dump_init_precision_data" in precision:
        notes["precision.dump_init_precision_data"] = "not needed: sensitivity.json and plan.json hold the data"
    return read(precision, target, pins, notes)


def _hawq(precision: dict[str, Any], target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
    vectors = _number(precision, "iter_number", VECTORS, int)
    tolerance = _number(precision, "tolerance", TOLERANCE)
    mode = precision.get("bitwidth_assignment_mode", "liberal")
    if mode not in ("liberal", "strict"):
        raise InvalidInput(f"precision.bitwidth_assignment_mode is {mode!r}; give liberal or strict")
    ratio = _number(precision, "compression_ratio", HAWQ_RATIO)
    notes["precision.type=hawq"] = "honoured: metric hawq, search hawq"
    notes["precision.iter_number"] = f"honoured: {vectors} vectors at most"
    notes["precision.tolerance"] = f"honoured: {tolerance:g}, by NNCF's rule"
    notes["precision.bitwidth_assignment_mode"] = f"honoured: {mode}"
    notes["precision.compression_ratio"] = f"mapped: bit_complexity_ratio={ratio:g}, at least"
    if "num_data_points" in precision:
        notes["precision.num_data_points"] = "not needed: every vector goes over all of DATA"
    return NncfConfig(
        metric=f"hawq:vectors={vectors},rule=nncf,tolerance={tolerance:g}",
        search=f"hawq:assignment={mode}",
        budget=Budget(bit_complexity_ratio=ratio),
        choices=_choices(precision, target, notes),
        pins=pins,
        eval_subset_ratio=1.0,
        notes=notes,
    )


def _autoq(precision: dict[str, Any], target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
    episodes = _number(precision, "iter_number", EPISODES, int)
    warmup = _number(precision, "warmup_iter_number", 20, int)
    subset = _number(precision, "eval_subset_ratio", 1.0)
    ratio = _number(precision, "compression_ratio", AUTOQ_RATIO)
    notes["precision.type=autoq"] = "honoured: search autoq; plans are tried by --score, or accuracy on DATA"
    notes["precision.iter_number"] = f"honoured: {episodes} episodes"
    notes["precision.warmup_iter_number"] = f"honoured: {min(warmup, episodes // 2)} of them at random, at most half"
    notes["precision.eval_subset_ratio"] = f"honoured: {subset:g} of DATA"
    notes["precision.compression_ratio"] = f"mapped: weight_ratio={ratio:g}, at most, scales included"
    return NncfConfig(
        metric="fisher",
        search=f"autoq:episodes={episodes},warmup={warmup}",
        budget=Budget(weight_ratio=ratio),
        choices=_choices(precision, target, notes),
        pins=pins,
        eval_subset_ratio=subset,
        notes=notes,
    )


def _manual(precision: dict[str, Any], target: Target, pins: dict[str, str], notes: dict[str, str]) -> NncfConfig:
    notes["precision.type=manual"] = "honoured: the layers named are pinned, the others take 8 bits"
    found = dict(pins)
    for entry in _list(precision.get("bitwidth_per_scope", []), "precision.bitwidth_per_scope"):
        if not isinstance(entry, list) or len(entry) != 2:
            raise InvalidInput(f"precision.bitwidth_per_scope: {entry!r}; each is [bits, scope]")
        bits, scope = entry
        layer, what = _layer(scope)
        if what != "WEIGHT" or layer is None:
            notes[scope] = "refused: inputs take 8 bits where precisions are set by hand"
            continue
        if not isinstance(bits, int) or bits not in target.weight_bits:
            raise InvalidInput(f"{scope}: {bits!r} bits; target {target.name} stores weights of {target.weight_bits}")
        found[layer] = f"w{bits}a8"
        notes[scope] = f"mapped: pin {layer}=w{bits}a8"
    return NncfConfig("weight_error", "ilp", Budget(weight_ratio=1), ("w8a8",), found, 1.0, notes)


_COMMON = {"bits", "iter_number", "compression_ratio", "dump_init_precision_data"}
_Read = Callable[[dict[str, Any], Target, dict[str, str], dict[str, str]], NncfConfig]
#: Type -> how it is read, and its keys.
_KINDS: dict[str, tuple[_Read, set[str]]] = {
    "hawq": (
        _hawq,
        _COMMON | {"num_data_points", "tolerance", "traces_per_layer_path", "bitwidth_assignment_mode"},
    ),
    "autoq": (_autoq, _COMMON | {"eval_subset_ratio", "warmup_iter_number"}),
    "manual": (_manual, {"bitwidth_per_scope"}),
}


def _quantization(compression: Any) -> Mapping[str, Any]:
    """The entry of the algorithm quantization, of one or of a list."""
    entries = compression if isinstance(compression, list) else [compression]
    found = [one for one in entries if isinstance(one, Mapping) and one.get("algorithm") == "quantization"]
    others = [one for one in entries if not isinstance(one, Mapping) or one.get("algorithm") != "quantization"]
    if len(found) != 1 or others:
        algorithms = [one.get("algorithm") if isinstance(one, Mapping) else one for one in entries]
        raise InvalidInput(f"compression: algorithms {algorithms}; expected one, quantization")
    return found[0]


def _quantizer_keys(quantization: Mapping[str, Any], target: Target, notes: dict[str, str]) -> dict[str, str]:
    """Notes for the keys beside the precision; layers in ignored scopes are pinned to float."""
    pins = _ignored(quantization, notes)
    for part in ("weights", "activations"):
        entry = _mapping(quantization.get(part, {}), part)
        pins |= _ignored(entry, notes)
        for key in entry:
            if key != "ignored_scopes":
                notes[f"{part}.{key}"] = _FORMATS.get((part, key), f"refused: {part} have one form, see --choices")
    for key in quantization:
        if key not in ("algorithm", "initializer", "ignored_scopes", "weights", "activations"):
            notes[key] = "not needed, or a part of training"
    for key in _mapping(quantization.get("initializer"), "initializer"):
        if key != "precision":
            notes[f"initializer.{key}"] = f"not needed: ranges and scales are chosen on DATA for {target.name}"
    return pins


_FORMATS = {
    ("weights", "bits"): "not needed: the precision decides",
    ("weights", "mode"): "not needed: weights are symmetric",
    ("weights", "per_channel"): "not needed: weights have a scale per output channel",
    ("activations", "bits"): "not needed: the precision decides",
    ("activations", "mode"): "not needed: inputs are asymmetric",
    ("activations", "per_channel"): "not needed: inputs have a scale per tensor",
}


def _ignored(entry: Mapping[str, Any], notes: dict[str, str]) -> dict[str, str]:
    """Layer -> float, of the scopes that are ignored."""
    if entry.get("target_scopes"):
        raise InvalidInput("target_scopes: not read; leave them out, and give the other layers --pin NAME=float")
    scopes, pins = entry.get("ignored_scopes", []), {}
    for scope in [scopes] if isinstance(scopes, str) else _list(scopes, "ignored_scopes"):
        layer, _ = _layer(scope)
        if layer is None:
            notes[scope] = "not needed: no layer with a weight"
        else:
            pins[layer] = "float"
            notes[scope] = f"mapped: pin {layer}=float"
    return pins


def _choices(precision: dict[str, Any], target: Target, notes: dict[str, str]) -> tuple[str, ...]:
    bits = precision.get("bits", BITS)
    if not isinstance(bits, list) or not bits or not all(isinstance(one, int) for one in bits):
        raise InvalidInput(f"precision.bits is {bits!r}; give a list of whole numbers")
    weights = sorted({one for one in bits if one in target.weight_bits})
    inputs = sorted({one for one in bits if one in target.input_bits}) or [8]
    if not weights:
        raise InvalidInput(f"precision.bits {bits}: target {target.name} stores weights of {target.weight_bits}")
    left_out = sorted(set(bits) - set(weights))
    said = f"; {left_out} are not stored by {target.name}" if left_out else ""
    notes["precision.bits"] = f"honoured: weights of {weights}, inputs of {inputs} bits{said}"
    return tuple(f"w{weight}a{input_}" for weight in weights for input_ in inputs)


def _layer(scope: Any) -> tuple[str | None, str]:
    """Name of the parameter behind a scope, as in `Net/NNCFConv2d[conv1]/conv2d_0|WEIGHT`, and what of it is meant.

    No name for scopes of operators without a name of their own, as `Net/relu_0`.
    """
    if not isinstance(scope, str) or scope.startswith("{re}") or "/" not in scope:
        raise InvalidInput(
            f"scope {scope!r} is not understood; write it as in Net/NNCFConv2d[conv1]/conv2d_0, or leave it out and "
            "give --pin NAME=float"
        )
    names = re.findall(r"\[([^\]]+)\]", scope)
    _, _, what = scope.partition("|")
    return ".".join(names) + ".weight" if names else None, re.sub(r"\d+$", "", what) or "WEIGHT"


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{place} is {value!r:.60}; expected an object with keys, as NNCF's schema has it")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{place} is {value!r:.60}; expected a list")
    return value


def _number(precision: dict[str, Any], key: str, default: float, kind: type = float) -> Any:
    value = precision.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < math.inf
        or value != kind(value)
    ):
        raise InvalidInput(f"precision.{key} is {value!r}; give a positive {'whole ' if kind is int else ''}number")
    return kind(value)
