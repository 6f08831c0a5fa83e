"""measure(): the table of sensitivity and usage, layers x choices."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mixbit.batches import Batch, split_batch
from mixbit.calibrate import Calibration, calibrate
from mixbit.errors import InvalidInput
from mixbit.estimate import Estimate, Question, joined
from mixbit.graph import Graph
from mixbit.layers import Layer, find_layers, model_fingerprint, shared_inputs
from mixbit.metrics import OF_ALL_DATA, Metric, find_metric
from mixbit.progress import track
from mixbit.ranking import ranking_problem
from mixbit.scales import weight_quantizer
from mixbit.scheme import Scheme
from mixbit.sensitivity import FloatArray, Sensitivity
from mixbit.target import Target, find_target
from mixbit.task import Task

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

    Measures batch after batch until plans are stable under resampling or the data is spent; `verdict` says which.

    Args:
        graph: A captured graph; it is left as it is.
        batches: Calibration batches, with labels where the metric needs them; gone through twice, so kept in memory.
        target: Whose choices are offered, and whose file the bytes are counted in; its runtime is not needed.
        task: What the outputs mean; classification where None.
        metric: Name of a metric, or a function of the same kind.
        choices: Schemes to offer; the target's default ones where None.
        calibration: Of the same graph and batches, where it is at hand.
        seed: Of every draw.

    Raises:
        InvalidInput: an unknown name, a choice that the target does not run, a graph that is quantized already, or
            data or a calibration that does not fit.
    """
    target = find_target(target)
    schemes = target.schemes(choices)
    name, method = find_metric(metric)
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; measure the captured graph")
    layers = find_layers(graph)
    pairs = [split_batch(batch, len(graph.example.args)) for batch in batches]
    calibration = calibration or calibrate(graph, layers, [inputs for inputs, _ in pairs])
    calibration.check_layers(layers)
    for layer in track(layers, "choose scales"):  # kept in the calibration, for the metric and for quantize()
        for fmt in {scheme.weight for scheme in schemes if scheme.weight is not None}:
            weight_quantizer(graph, layer, fmt, calibration)
    question = Question(graph, layers, schemes, calibration, pairs, task or Task.classification(), seed)
    rounds = [pairs] if method in OF_ALL_DATA and pairs else [*_rounds(pairs)]
    total = None
    for number, part in enumerate(rounds):
        found = method(dataclasses.replace(question, batches=part, seed=seed + number))
        total = found if total is None else joined(total, found)
        table = _table(question, total, target, name)
        problem = ranking_problem(table)
        if number == len(rounds) - 1 or problem is None or not total.standard_error.any():
            return dataclasses.replace(table, verdict=_verdict(problem, rounds[: number + 1], pairs))
    raise InvalidInput("the data holds no batch: an empty loader, or an iterator that was used up before")


def _rounds(batches: list[Batch]) -> Iterator[list[Batch]]:
    """A quarter of the batches, the next quarter, the rest; all at once where they are few.

    Each part is from all over the data, which may be in order.
    """
    if not batches:
        return
    if len(batches) < FEWEST_BATCHES:
        yield batches
        return
    yield batches[0::4]
    yield batches[2::4]
    yield [*batches[1::4], *batches[3::4]]


def _verdict(problem: str | None, rounds: list[list[Batch]], batches: list[Batch]) -> str:
    seen = sum(inputs.batch_size for part in rounds for inputs, _ in part)
    after = f"after {seen} of {sum(inputs.batch_size for inputs, _ in batches)} samples"
    return f"plans are stable, {after}" if problem is None else f"cannot rank plans for sure: {problem}, {after}"


def _table(question: Question, estimate: Estimate, target: Target, metric: str) -> Sensitivity:
    layers = question.layers
    return Sensitivity(
        layers=tuple(layer.name for layer in layers),
        choices=tuple(str(scheme) for scheme in question.schemes),
        loss=estimate.loss,
        standard_error=estimate.standard_error,
        usage=usage(layers, question.schemes, target),
        numel=np.array([float(layer.numel) for layer in layers]),
        macs=np.array([float(layer.macs) for layer in layers]),
        ties=(),
        input_ties=shared_inputs(layers),
        metric=metric,
        target=target.name,
        fingerprint=model_fingerprint(layers),
        num_samples=estimate.num_samples,
        seed=question.seed,
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
