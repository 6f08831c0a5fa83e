"""Flavours: where the ranges of activations come from, and which schemes each offers."""

from collections.abc import Sequence

from mixbit.errors import InvalidInput
from mixbit.fitting import RANGED_AT_RUN_TIME, misfit
from mixbit.layers import Layer
from mixbit.scheme import Scheme
from mixbit.target import Target

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
    if flavour not in FLAVOURS:
        raise InvalidInput(f"flavour {flavour!r} is unknown; known: {', '.join(FLAVOURS)}")
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
