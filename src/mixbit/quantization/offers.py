"""Which layer takes which scheme on which target: groups that divide, inputs whose range the runtime takes itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixbit.core import Format, InvalidInput, Plan, Scheme, Target, checked, find_target, pick, pinned_schemes
from mixbit.graph.graph import Graph, Layer, Operation, argument, check_graph, model_fingerprint, num_uses
from mixbit.quantization.affine import misfit

#: Operators whose inputs runtimes quantize on the fly. Look-ups in a table read numbers of rows, which have no range.
RANGED_AT_RUN_TIME = ("linear", "addmm", "matmul")
#: Divisors that an error lists one by one.
LISTED = 4


def why_not(layer: Layer, scheme: Scheme, target: Target | None = None) -> str | None:
    """Why the layer cannot take the scheme on the target, or on one that runs it, and what to do; None where it can."""
    if target is not None:
        if (reason := target.refuses(scheme)) is not None:
            return reason
        missing = [each.kind.name for each in layer.operations if each.kind.name in target.missing_layers]
        if missing:
            return f"{layer.name}: target {target.name} has no operator for {missing[0]}; take another target"
    reason = None if target is None else target.lacks_for(layer, scheme)
    reason = reason or _why_not_the_weight(layer, scheme.weight) or _why_not_the_input(layer, scheme)
    return None if reason is None else f"{layer.name}: {reason}"


def for_target(graph: Graph, target: Target) -> Graph:
    """The graph as the target can write it: where it adds no biases, operators without one of their own take none."""
    if target.adds_biases:
        return graph

    def written(operation: Operation) -> Operation:
        bias = argument(graph.node(operation.node), operation.kind.bias)
        own = graph.bias(operation) is not None and num_uses(bias) == 1
        return replace(operation, takes_bias=operation.takes_bias and own)

    layers = tuple(replace(layer, operations=tuple(map(written, layer.operations))) for layer in graph.layers)
    return replace(graph, layers=layers)


def check_pins(layers: Sequence[Layer], pins: Mapping[str, str], target: Target) -> None:
    """Raise InvalidInput, with the reason, where a pin matches no layer, or a layer cannot take its pin's scheme."""
    pinned = pinned_schemes([layer.name for layer in layers], pins)
    for layer in layers:
        if layer.name in pinned:
            pattern, scheme = pinned[layer.name]
            if (reason := why_not(layer, Scheme.parse(scheme), target)) is not None:
                raise InvalidInput(f"pin {pattern}={scheme}: {reason}")


def with_fallbacks(
    layers: Sequence[Layer], schemes: Sequence[Scheme], target: Target
) -> tuple[tuple[Scheme, ...], NDArray[np.bool_]]:
    """The schemes with those offered instead of dynamic ones, and [L, C] which layer is offered which.

    A layer that cannot take a scheme whose input is ranged at run time is offered the same weight beside an input in
    float, per channel where its groups do not divide the layer; one that the target cannot store so stays in float.
    Such schemes are offered to no other layer.
    """
    taken = [[_taken(layer, scheme, target) for scheme in schemes] for layer in layers]
    every = tuple(dict.fromkeys((*schemes, *(scheme for row in taken for scheme in row if scheme is not None))))
    return every, np.array([[scheme in row for scheme in every] for row in taken])


@checked
def uniform_plan(graph: Graph, scheme: str, *, target: str) -> Plan:
    """The plan that gives every layer one scheme, or the first of `Scheme.fallbacks` that it can take.

    Layers that the target cannot store so stay in float.

    Args:
        graph: What `capture` returned.
        scheme: As text.
        target: Name of the target.

    Raises:
        InvalidInput: the target is unknown or does not run the scheme, or a layer can take neither.
    """
    check_graph(graph)
    runtime, schemes = find_target(target), dict[str, str]()
    (wanted,) = runtime.schemes([scheme])
    for layer in graph.layers:
        taken = _taken(layer, wanted, runtime)
        if taken is None:
            raise InvalidInput(f"uniform {scheme}: {why_not(layer, wanted, runtime)}")
        schemes[layer.name] = str(taken)
    fingerprint = model_fingerprint(graph.layers)
    return Plan(target=target, fingerprint=fingerprint, layers=schemes, made_by=f"uniform {scheme}")


def _taken(layer: Layer, scheme: Scheme, target: Target) -> Scheme | None:
    """The scheme, or the first of its fallbacks, that the layer can take; float where the target lacks it for that."""
    others = (*scheme.fallbacks, Scheme()) if target.lacks_for(layer, scheme) is not None else scheme.fallbacks
    return next((each for each in (scheme, *others) if why_not(layer, each, target) is None), None)


def _why_not_the_weight(layer: Layer, fmt: Format | None) -> str | None:
    rest = layer.numel // max(1, layer.shape[layer.axis])
    if fmt is not None and fmt.sparsity is not None:
        return misfit(layer.shape, layer.axis, fmt.sparsity)
    if fmt is None or fmt.group is None or rest % fmt.group == 0:
        return None
    divisors = [str(divisor) for divisor in range(1, rest + 1) if rest % divisor == 0]
    if len(divisors) > LISTED:
        divisors = [*divisors[: LISTED - 1], f"... {divisors[-1]}"]
    return f"group {fmt.group} does not divide {rest} inputs; use one of {', '.join(divisors)}"


def _why_not_the_input(layer: Layer, scheme: Scheme) -> str | None:
    weight, fmt = scheme.weight, scheme.input
    if fmt is None or not fmt.dynamic:
        return None
    kinds = [operation.kind.name for operation in layer.operations if operation.input is not None]
    others = [kind for kind in kinds if kind not in RANGED_AT_RUN_TIME]
    fallback = next((other for other in scheme.fallbacks if why_not(layer, other) is None), None)
    if others:
        return (
            f"ranges are taken at run time for linear layers and products of matrices, not for {others[0]}; "
            f"give it {fallback}, or a static range"
        )
    if fmt.group is None or not kinds:
        return None
    inputs = layer.numel // layer.shape[layer.axis]
    if inputs % fmt.group:
        return f"groups of {fmt.group} do not divide its {inputs} inputs; give it {fallback}"
    if weight is not None and weight.group is not None and weight.group % fmt.group:
        return (
            f"weights in groups of {weight.group}, inputs in groups of {fmt.group}: the former must be multiples of "
            f"the latter; give it {fallback}, or w{weight.bits}g{fmt.group}"
        )
    return None


#: Names, and what each does.
FLAVOURS = {
    "static": "Ranges of activations are fixed by calibration data; no training.",
    "dynamic": "Ranges of activations are taken at run time, for linear layers and products of matrices; no training.",
    "qat": "As static; then weights and scales are trained with the roundings in place, the float network as teacher.",
}
#: Share of the work from which on a note says how little the network gains.
MOST = 0.5


def choices_of(flavour: str, target: Target, choices: Sequence[str] | None) -> tuple[str, ...]:
    """The schemes offered: those given, else the target's own of the flavour.

    Raises:
        InvalidInput: an unknown flavour, a scheme that the target does not run, or that is of the other flavour.
    """
    pick("flavour", flavour, FLAVOURS)
    own = target.dynamic_choices if flavour == "dynamic" else target.default_choices
    if choices is None and not own:
        raise InvalidInput(
            f"flavour {flavour}: target {target.name} takes no ranges at run time; take --flavour static, or another "
            "target"
        )
    schemes = target.schemes(own if choices is None else choices)
    for scheme in schemes:
        if scheme.input is not None and scheme.input.dynamic != (flavour == "dynamic"):
            other = "static" if flavour == "dynamic" else "dynamic"
            raise InvalidInput(f"choice {scheme}: is of the flavour {other}; give that flavour, or choose as {own[-1]}")
    return tuple(str(scheme) for scheme in schemes)


def note_on_run_time_ranges(layers: Sequence[Layer], choices: Sequence[str]) -> str | None:
    """A sentence about what ranges taken at run time leave out, where that is most of the work; else None.

    Raises:
        InvalidInput: some choice takes its range at run time, and no layer can take that.
    """
    dynamic = [scheme for text in choices if (scheme := Scheme.parse(text)).input is not None and scheme.input.dynamic]
    if not dynamic:
        return None
    left_out = [layer for layer in layers if all(why_not(layer, scheme) is not None for scheme in dynamic)]
    if all(layer in left_out or not layer.inputs for layer in layers):
        reason = why_not(left_out[0], dynamic[0]) if left_out else "none reads what is ever rounded"
        raise InvalidInput(f"flavour dynamic: no layer can take its range at run time: {reason}; take --flavour static")
    share = sum(layer.macs for layer in left_out) / max(1, sum(layer.macs for layer in layers))
    if share < MOST:
        return None
    kinds = {operation.kind.name for layer in left_out for operation in layer.operations}
    what = "layers whose inputs cannot be ranged so" if kinds & set(RANGED_AT_RUN_TIME) else "convolutions"
    return (
        f"{what} do {share:.1%} of the multiply-accumulates and gain nothing from ranges taken at run time: they "
        "compute in float; --flavour static does better"
    )
