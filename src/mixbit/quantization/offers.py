"""Which layer takes which scheme for a target: groups that divide, inputs whose range the runtime takes itself."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from mixbit.core import Format, InvalidInput, Plan, Scheme, Target, find_target, pick
from mixbit.graph.graph import Graph, Layer, check_graph
from mixbit.graph.layers import model_fingerprint
from mixbit.quantization import sparsity

#: Operators whose inputs runtimes quantize on the fly; lookups in a table read numbers of rows, which have no range.
RANGED_AT_RUN_TIME = ("linear", "addmm", "matmul")
#: Divisors that an error lists one by one.
LISTED = 4


def misfit(layer: Layer, scheme: Scheme) -> str | None:
    """Why the layer cannot take the scheme, whatever the target, and what to do; None where it can.

    Args:
        layer: By its shape, output axis and operators.
        scheme: One that the target offers, see `Target.schemes`.
    """
    found = _misfit_of_weight(layer, scheme.weight)
    if found is None and scheme.input is not None and scheme.input.dynamic:
        found = _misfit_of_input(layer, scheme, scheme.input)
    return None if found is None else f"{layer.name}: {found}"


def check_pin(layers: Sequence[Layer], pattern: str, scheme: Scheme) -> None:
    """Raise InvalidInput, with the reason, where a layer whose name matches the pattern cannot take the scheme."""
    for layer in layers:
        reason = misfit(layer, scheme) if fnmatchcase(layer.name, pattern) else None
        if reason is not None:
            raise InvalidInput(f"pin {pattern}={scheme}: {reason}")


def takes_weight(layer: Layer, fmt: Format) -> bool:
    """Whether the layer's weight can be stored in the format."""
    return _misfit_of_weight(layer, fmt) is None


def with_fallbacks(layers: Sequence[Layer], schemes: Sequence[Scheme]) -> tuple[tuple[Scheme, ...], NDArray[np.bool_]]:
    """The schemes with those that take the place of dynamic ones, and [L, C] which layer is offered which.

    A layer that cannot take a scheme whose input is ranged at run time is offered the same weight beside an input in
    float, per channel where its groups do not divide the layer; such schemes are offered to no other layer.
    """
    dynamic = [scheme for scheme in schemes if scheme.input is not None and scheme.input.dynamic]
    places = [
        (row, instead)
        for row, layer in enumerate(layers)
        for scheme in dynamic
        if misfit(layer, scheme) is not None and (instead := _in_float(layer, scheme)) is not None
    ]
    added = tuple(dict.fromkeys(scheme for _, scheme in places if scheme not in schemes))
    every = (*schemes, *added)
    asked = np.arange(len(every)) < len(schemes)
    fits = np.array([[misfit(layer, scheme) is None for scheme in every] for layer in layers])
    offered = fits & asked
    for row, scheme in places:
        offered[row, every.index(scheme)] = True
    return every, offered


def uniform_plan(graph: Graph, scheme: str, *, target: str) -> Plan:
    """The plan that gives every layer one scheme, or what takes its place (`Scheme.fallbacks`) where a layer cannot.

    Args:
        graph: What `capture` returned.
        scheme: As text.
        target: Name of the target.

    Raises:
        InvalidInput: the target is unknown or does not run the scheme, or a layer can take neither.
    """
    check_graph(graph)
    (wanted,) = find_target(target).schemes([scheme])
    layers, taken = graph.layers, {}
    for layer in layers:
        reason = misfit(layer, wanted)
        found = wanted if reason is None else _in_float(layer, wanted)
        if found is None:
            raise InvalidInput(f"uniform {scheme}: {reason}")
        taken[layer.name] = str(found)
    fingerprint = model_fingerprint(layers)
    return Plan(target=target, fingerprint=fingerprint, layers=taken, made_by=f"uniform {scheme}")


def _in_float(layer: Layer, scheme: Scheme) -> Scheme | None:
    return next((one for one in scheme.fallbacks if misfit(layer, one) is None), None)


def _misfit_of_weight(layer: Layer, fmt: Format | None) -> str | None:
    rest = layer.numel // max(1, layer.shape[layer.axis])
    if fmt is not None and fmt.sparsity is not None:
        return sparsity.misfit(layer.shape, layer.axis, fmt.sparsity)
    if fmt is None or fmt.group is None or rest % fmt.group == 0:
        return None
    return f"group {fmt.group} does not divide {rest} inputs; use one of {_divisors(rest)}"


def _misfit_of_input(layer: Layer, scheme: Scheme, fmt: Format) -> str | None:
    kinds = [operation.kind.name for operation in layer.operations if operation.input is not None]
    others = [kind for kind in kinds if kind not in RANGED_AT_RUN_TIME]
    weight, instead = scheme.weight, _in_float(layer, scheme)
    if others:
        return (
            f"ranges are taken at run time for linear layers and products of matrices, not for {others[0]}; "
            f"give it {instead}, or a static range"
        )
    if fmt.group is None or not kinds:
        return None
    inputs = layer.numel // layer.shape[layer.axis]
    if inputs % fmt.group:
        return f"groups of {fmt.group} do not divide its {inputs} inputs; give it {instead}"
    if weight is not None and weight.group is not None and weight.group % fmt.group:
        return (
            f"weights in groups of {weight.group}, inputs in groups of {fmt.group}: the former must be multiples of "
            f"the latter; give it {instead}, or w{weight.bits}g{fmt.group}"
        )
    return None


def _divisors(number: int) -> str:
    """The divisors, the smallest ones and the number itself where they are many."""
    found = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    every = sorted({*found, *(number // one for one in found)})
    texts = [str(one) for one in every]
    if len(texts) <= LISTED:
        return ", ".join(texts)
    return f"{', '.join(texts[: LISTED - 1])}, ... {texts[-1]}"


#: Names, and what each does.
FLAVOURS = {
    "static": "Ranges of activations are fixed by calibration data; no training.",
    "dynamic": "Ranges of activations are taken at run time, for linear layers and products of matrices; no training.",
    "qat": "As static; then weights and scales are trained with the roundings in place, the float network as teacher.",
}
#: Share of the work from which on a network is told that it gains little.
MOST = 0.5


def choices_of(flavour: str, target: Target, choices: Sequence[str] | None) -> tuple[str, ...]:
    """The schemes offered: those given, else the target's own of the flavour.

    Raises:
        InvalidInput: an unknown flavour, a scheme that the target does not run, or that is of the other flavour.
    """
    pick("flavour", flavour, FLAVOURS)
    own = target.dynamic_choices if flavour == "dynamic" else target.default_choices
    schemes = target.schemes(own if choices is None else choices)
    for scheme in schemes:
        if scheme.input is not None and scheme.input.dynamic != (flavour == "dynamic"):
            other = "static" if flavour == "dynamic" else "dynamic"
            raise InvalidInput(f"choice {scheme}: is of the flavour {other}; give that flavour, or choose as {own[-1]}")
    return tuple(str(scheme) for scheme in schemes)


def note_on_run_time_ranges(layers: Sequence[Layer], choices: Sequence[str]) -> str | None:
    """What ranges taken at run time leave out, in a sentence, where that is most of the work; else None.

    Raises:
        InvalidInput: some choice takes its range at run time, and no layer can take such a one.
    """
    dynamic = [scheme for text in choices if (scheme := Scheme.parse(text)).input is not None and scheme.input.dynamic]
    if not dynamic:
        return None
    left_out = [layer for layer in layers if all(misfit(layer, scheme) is not None for scheme in dynamic)]
    if all(layer in left_out or not layer.inputs for layer in layers):
        raise InvalidInput(
            f"flavour dynamic: no layer can take its range at run time: {misfit(left_out[0], dynamic[0])}; "
            "take --flavour static"
        )
    share = sum(layer.macs for layer in left_out) / max(1, sum(layer.macs for layer in layers))
    if share < MOST:
        return None
    kinds = {operation.kind.name for layer in left_out for operation in layer.operations}
    what = "layers whose inputs cannot be ranged so" if kinds & set(RANGED_AT_RUN_TIME) else "convolutions"
    return (
        f"{what} do {share:.1%} of the multiply-accumulates and gain nothing from ranges taken at run time: they "
        "compute in float; --flavour static does better"
    )
