"""measure(): the table of sensitivity and usage, layers x choices."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixbit.core import FloatArray, InvalidInput, Scheme, Sensitivity, Target, facts_of, find_target, track
from mixbit.core.batches import Batch, split_all
from mixbit.core.task import Task
from mixbit.graph.graph import Graph, Layer, check_arguments
from mixbit.graph.layers import model_fingerprint, shared_inputs
from mixbit.graph.memory import live_activations
from mixbit.metrics import METRICS, Metric
from mixbit.metrics._input import MEAN_OVER_SAMPLES, Estimate, MetricInput, check_estimate, joined
from mixbit.metrics._stability import ranking_problem
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.offers import why_not, with_fallbacks
from mixbit.quantization.scales import weight_quantizer

#: How the verdict on a good table begins.
STABLE = "plans are stable against sampling noise"
#: Fewer batches are measured at once: a part of them says little.
FEWEST_BATCHES = 8


def measure(
    graph: Graph,
    batches: Iterable[Any],
    *,
    target: str | Target,
    task: Task | None = None,
    metric: str | Metric = "fisher",
    choices: Sequence[str] | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Predict what each choice of each layer costs in loss, and what it uses.

    Metrics that are means over samples are asked about parts of the batches until plans are stable under resampling or
    the data is spent; others, and functions of your own, about all of it at once. `verdict` says which.

    Args:
        graph: A captured graph; it is left as it is.
        batches: Calibration batches, with labels where the metric needs them; gone through twice, so kept in memory.
        target: Whose choices are offered, and whose file the bytes are counted in; its runtime is not needed.
        task: What the outputs mean; classification where None.
        metric: Name of a metric, as `hawq` or `hawq:vectors=20`, or a function from a `MetricInput` to an `Estimate`.
        choices: Schemes to offer; the target's default ones where None. A layer that cannot take one is not offered it;
            in the place of one whose input is ranged at run time it is offered the same weight with an input in float.
        calibration: Of the same graph and batches, where it is at hand; sparse choices take the masks that it holds,
            see `mixbit.quantization.masks`, and others by magnitude.
        seed: Of every draw.

    Raises:
        InvalidInput: an unknown name, a choice that the target does not run, choices none of which a layer can take, a
            graph that is quantized already, or data or a calibration that does not fit.
    """
    target = find_target(target)
    asked = target.schemes(choices)
    name, method = METRICS.find(metric)
    check_arguments(graph, task, seed)
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; measure the captured graph")
    layers = graph.layers
    schemes, offered = with_fallbacks(layers, asked, target)
    _check_offered(layers, schemes, offered)
    pairs = split_all(batches, len(graph.example.args))
    calibration = calibration or calibrate(graph, [batch for batch, _ in pairs])
    calibration.check_layers(layers)
    for layer in track(layers, "choose scales"):  # kept in the calibration, for the metric and for quantize()
        for fmt in {scheme.weight for scheme in schemes if scheme.weight is not None}:
            if why_not(layer, Scheme(fmt)) is None:
                weight_quantizer(graph, layer, fmt, calibration)
    inputs = MetricInput(graph, layers, schemes, calibration, pairs, task or Task.classification(), seed)
    rounds = [*_rounds(pairs)] if MEAN_OVER_SAMPLES in facts_of(method) else [pairs]
    return _measured(inputs, name, method, rounds, (target, offered))


def _measured(
    inputs: MetricInput, name: str, method: Metric, rounds: list[list[Batch]], offer: tuple[Target, NDArray[np.bool_]]
) -> Sensitivity:
    """Ask the metric about one round after the other, until plans are stable or all are spent.

    The offer is the target's: to which layer it makes which choice.
    """

    def ask(number: int) -> Estimate:
        found = method(dataclasses.replace(inputs, batches=rounds[number], seed=inputs.seed + number))
        check_estimate(found, name, inputs)
        return found

    total, asked = ask(0), 1
    while True:
        table = _table(inputs, total, name, *offer)
        verdict = _verdict(ranking_problem(table), table, rounds[:asked], list(inputs.batches))
        if asked == len(rounds) or verdict.startswith(STABLE):
            return dataclasses.replace(table, verdict=verdict)
        total, asked = joined(total, ask(asked)), asked + 1


def _rounds(batches: list[Batch]) -> Iterator[list[Batch]]:
    """A quarter of the batches, the next quarter, the rest; all at once where they are few.

    Each part is from all over the data, which may be in order.
    """
    if len(batches) < FEWEST_BATCHES:
        yield batches
        return
    yield batches[0::4]
    yield batches[2::4]
    yield [*batches[1::4], *batches[3::4]]


def _verdict(problem: str | None, table: Sensitivity, rounds: list[list[Batch]], batches: list[Batch]) -> str:
    seen = sum(batch.batch_size for part in rounds for batch, _ in part)
    after = f"after {seen} of {sum(batch.batch_size for batch, _ in batches)} samples"
    if problem is not None:
        return f"cannot rank plans for sure: {problem}, {after}; give other or more data, or take another metric"
    if not table.standard_error[np.isfinite(table.loss)].any():
        return f"no standard errors: whether plans would change with other data is not known, {after}"
    return f"{STABLE}, {after}"


def _check_offered(layers: tuple[Layer, ...], schemes: tuple[Scheme, ...], offered: NDArray[np.bool_]) -> None:
    """Raise InvalidInput where a layer can take none of the schemes."""
    for layer, row in zip(layers, offered, strict=True):
        if not row.any():
            raise InvalidInput(f"choices: none fits a layer; {why_not(layer, schemes[0])}; or offer float too")


def _table(
    inputs: MetricInput, estimate: Estimate, metric: str, target: Target, offered: NDArray[np.bool_]
) -> Sensitivity:
    layers = inputs.layers
    dynamic = any(scheme.input is not None and scheme.input.dynamic for scheme in inputs.schemes)
    return Sensitivity(
        layers=tuple(layer.name for layer in layers),
        choices=tuple(str(scheme) for scheme in inputs.schemes),
        loss=np.where(offered, estimate.loss, np.inf),
        standard_error=estimate.standard_error,
        usage=usage(layers, inputs.schemes, target),
        numel=np.array([float(layer.numel) for layer in layers]),
        macs=np.array([float(layer.macs) for layer in layers]),
        input_ties=() if dynamic else shared_inputs(layers),  # each operator takes its range itself
        metric=metric,
        target=target.name,
        fingerprint=model_fingerprint(layers),
        num_samples=estimate.num_samples,
        seed=inputs.seed,
        trace=estimate.trace,
        live=live_activations(inputs.graph, target),
    )


def usage(layers: tuple[Layer, ...], schemes: tuple[Scheme, ...], target: Target) -> dict[str, FloatArray]:
    """Resource -> [L, C]: bytes in the target's file, bits of all weights, and MACs x weight bits x input bits."""
    rows = {
        "weight_bytes": lambda layer, scheme: target.weight_bytes(layer.shape, layer.axis, scheme.weight),
        "weight_bits": lambda layer, scheme: layer.numel * scheme.weight_bits,
        "bit_ops": lambda layer, scheme: layer.macs * scheme.weight_bits * scheme.input_bits,
    }
    return {
        name: np.array([[float(count(layer, scheme)) for scheme in schemes] for layer in layers])
        for name, count in rows.items()
    }
