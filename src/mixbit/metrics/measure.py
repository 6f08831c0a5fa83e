"""measure(): the table of sensitivity and usage, layers x choices, and whether it can rank plans."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from mixbit.core import (
    Batch,
    Batches,
    FloatArray,
    InfeasibleBudget,
    InvalidInput,
    Scheme,
    Sensitivity,
    Target,
    Task,
    UnsupportedModel,
    checked,
    facts_of,
    find_target,
    split_all,
    track,
)
from mixbit.graph import (
    Case,
    Graph,
    check_arguments,
    check_by_layer,
    check_graph,
    fitted,
    model_fingerprint,
    shared_inputs,
    try_data,
)
from mixbit.graph.resources import live_activations, num_uncovered
from mixbit.metrics._input import (
    IGNORES_LOSS,
    IGNORES_TASK,
    MEAN_OVER_SAMPLES,
    METRICS,
    NEEDS_LABELS,
    Estimate,
    Metric,
    MetricInput,
    check_estimate,
    joined,
)
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.offers import for_target, why_not, with_fallbacks
from mixbit.quantization.scales import choose_scales
from mixbit.quantization.shared import Shared
from mixbit.quantization.simulate import rounded_between
from mixbit.quantization.sizes import weight_bytes_of_choices
from mixbit.searches import Problem
from mixbit.searches.mixtures import mixtures

#: How the verdict on a good table begins.
STABLE = "plans are stable against sampling noise"
#: Fewer batches are measured at once: a part of them says little.
FEWEST_BATCHES = 4
#: Shards of a round, where it has so many batches, and samples of a shard, where there are more than so many of them.
FEWEST_SHARDS, SHARD_SAMPLES = 4, 64
#: Plans are not taken to be stable by fewer samples where there are more: few tell little of what others would say.
FEWEST_SAMPLES = 64
#: Budgets at which plans are compared, as shares of the way from the cheapest plan to the dearest.
SHARES = (0.25, 0.5, 0.75)
#: Tables drawn from the standard errors, where the metric resamples none.
DRAWS = 32
#: A plan is stable if, by the table itself, plans of the drawn tables lose at most this share more on average.
TOLERANCE = 0.05
#: Plans that lose more than that share are not worth a number.
MUCH = 2.0
#: Sampled costs count as zero where all are below the first (nats), exact costs where all are below the second.
NOTHING, TINIEST = 1e-9, 1e-300
#: Least share of the dearest plan's loss that the best plan counts as losing, in comparisons.
LEAST_BEST = 1e-3


@checked
def measure(
    graph: Graph,
    batches: Iterable[Any] | Calibration,
    *,
    target: str | Target,
    task: Task | str | None = None,
    metric: str | Metric = "fisher",
    choices: Sequence[str] | None = None,
    seed: int = 0,
    shared: Shared | None = None,
) -> Sensitivity:
    """Predict what each choice of each layer costs in loss, and what it uses.

    Metrics that are means over samples get parts of the batches in turn until plans are stable under resampling or all
    data is used; others, and functions of your own, get all of it at once. `verdict` says which.

    Args:
        graph: A captured graph; it is left as it is.
        batches: Calibration batches, with labels where the metric needs them, see `calibrate`.
            Or a calibration of this graph, with the batches that it keeps; sparse choices take the masks that it
            holds, see `mixbit.quantization.masks`, and others by magnitude.
        target: Whose choices are offered, and whose file the bytes are counted in; its runtime is not needed.
        task: What the outputs mean, as a Task or its name; classification where None.
        metric: Name of a metric, as `hawq` or `hawq:vectors=20`, or a function from a `MetricInput` to an `Estimate`.
        choices: Schemes to offer; the target's default ones where None. A layer that cannot take one is not offered it;
            instead of one whose input is ranged at run time it is offered the same weight with an input in float.
        seed: Random seed.
        shared: Where shards of the data are measured, each in one thread, so that the table is the same bits for every
            number of processes; where None, larger parts one after the other in this one, with all threads.

    Raises:
        InvalidInput: an unknown name, a choice that the target does not run, choices none of which a layer can take, a
            graph that is quantized already, or data or a calibration that does not fit, or lacks labels.
    """
    name, method = METRICS.find(metric)
    task = Task.of(task)
    check_arguments(graph, task, seed)
    check_by_layer(graph, f"metric {name}", method, METRICS)
    if shared is not None and graph.room is not None:
        raise InvalidInput("shared: the weights are in files, which one process reads; leave it out")
    graph = for_target(graph, find_target(target))
    frame = dataclasses.replace(blank_table(graph, target=target, choices=choices), metric=name, seed=seed)
    if isinstance(batches, Calibration):
        batches.check_layers(graph.layers)
        pairs = batches.batches
    else:
        pairs = split_all(batches, len(graph.example.args))
    task = try_metric(graph, pairs, task, metric)
    calibration = batches if isinstance(batches, Calibration) else calibrate(graph, pairs, target=frame.target)
    calibration = calibration.for_target(find_target(target))
    schemes = tuple(Scheme.parse(choice) for choice in frame.choices)
    choose_all_scales(graph, calibration, schemes)
    sizes = weight_bytes_of_choices(graph, schemes, find_target(target), calibration)
    frame = dataclasses.replace(frame, usage=frame.usage | {"weight_bytes": sizes})
    rounds = _rounds(Batches.of(pairs), method, whole=shared is None)
    work = partial(_estimator, frame=frame, target=target, metric=metric, whole=shared is None)
    case, shards = Case(graph, pairs, task, seed), range(sum(map(len, rounds)))
    if shared is None:
        estimate_of = work(case, calibration)
        answers = ((shard, estimate_of(shard)) for shard in shards)
    else:
        answers = shared.answers(work, case, calibration, shards)
    with closing(answers):
        return _measured(frame, rounds, answers)


def takes_loss(metric: str | Metric, task: Task) -> bool:
    """Whether the metric takes the task's loss on labels."""
    facts = facts_of(METRICS.find(metric)[1])
    return NEEDS_LABELS in facts or (task.own_loss is not None and not {IGNORES_LOSS, IGNORES_TASK} & facts)


def try_metric(graph: Graph, batches: Sequence[Batch], task: Task, metric: str | Metric) -> Task:
    """The task, fitted where the metric looks at it, after data and loss were tried, which takes seconds.

    Raises:
        InvalidInput: data that does not fit the graph or the task, no labels for a metric or a loss that needs them.
    """
    name, method = METRICS.find(metric)
    facts, with_loss = facts_of(method), takes_loss(metric, task)
    unlabelled = [
        number for number, (_, labels) in enumerate(batches if NEEDS_LABELS in facts else ()) if labels is None
    ]
    if unlabelled:
        raise InvalidInput(
            f"metric {name.partition(':')[0]!r} needs labels, batch {unlabelled[0]} has none: give batches that end "
            "with them, or take a metric that needs none, as fisher"
        )
    if IGNORES_TASK not in facts:
        task = fitted(task, graph, batches)
    answers = with_loss and task.own_loss is None
    try_data(graph, task, task.aligned(batches), with_loss=with_loss, answers=answers)
    return task


def _rounds(batches: Batches[Batch], method: Metric, *, whole: bool) -> list[list[Batches[Batch]]]:
    """The shards of each round, one where it is whole: a metric answers for a shard; plans may be stable by a round."""
    if MEAN_OVER_SAMPLES not in facts_of(method) or len(batches) < FEWEST_BATCHES:
        return [[batches]]
    # A quarter, the next quarter, the rest: each from all over the data, which may be in order.
    parts = [batches[0::4], batches[2::4], batches.at([*range(1, len(batches), 4), *range(3, len(batches), 4)])]
    return [[part] if whole else _shards(part) for part in parts]


def _shards(part: Batches[Batch]) -> list[Batches[Batch]]:
    """Batches that follow one another, in as many sets as there can be, or enough for a cluster where data is much."""
    count = min(len(part), max(FEWEST_SHARDS, sum(part.sizes) // SHARD_SAMPLES))
    bounds = [len(part) * number // count for number in range(count + 1)]
    return [part[low:high] for low, high in pairwise(bounds)]


def _estimator(
    case: Case, calibration: Calibration, *, frame: Sensitivity, target: str | Target, metric: str | Metric, whole: bool
) -> Callable[[int], Estimate]:
    """What estimates the entries of the table from the shard of that number."""
    _, method = METRICS.find(metric)
    runtime, schemes = find_target(target), tuple(frame.schemes)
    graph = for_target(case.graph, runtime)
    dynamic = any(scheme.input is not None and scheme.input.dynamic for scheme in schemes)
    between = {} if dynamic else rounded_between(graph, graph.layers, runtime)
    between = {name: owners for name, owners in between.items() if calibration.histogram(name).finite}
    batches = case.task.aligned(calibration.batches)
    inputs = MetricInput(graph, schemes, calibration, batches, case.task, case.seed, between, runtime.zero_points)
    shards = [shard for part in _rounds(Batches.of(inputs.batches), method, whole=whole) for shard in part]

    def estimate(number: int) -> Estimate:
        answer = method(dataclasses.replace(inputs, batches=shards[number], seed=inputs.seed + number))
        check_estimate(answer, frame.metric, inputs)
        return answer

    return estimate


def _measured(
    frame: Sensitivity, rounds: Sequence[Sequence[Batches[Batch]]], answers: Iterator[tuple[int, Estimate]]
) -> Sensitivity:
    """The table of as many rounds as make plans stable, or of all, from the estimates, which come in any order."""
    total, table, found = None, frame, dict[int, Estimate]()
    given, num_seen, wanted = sum(sum(shard.sizes) for part in rounds for shard in part), 0, 0
    for part in rounds:
        for number in range(wanted, wanted + len(part)):  # joined in this order, that of no clock
            while number not in found:
                shard, estimate = next(answers)
                found[shard] = estimate
            total = found[number] if total is None else joined(total, found.pop(number))
        wanted += len(part)
        num_seen += sum(sum(shard.sizes) for shard in part)
        assert total is not None  # noqa: S101 every round has a shard
        loss = np.where(np.isfinite(frame.loss), total.loss, np.inf)
        filled = {name: value for name, value in vars(total).items() if name != "resampled"}
        table = dataclasses.replace(frame, **filled | {"loss": loss})
        problem = ranking_problem(table, total.resampled)
        after = f"after {num_seen} of {given} samples"
        if num_seen == 1:
            problem = "a single sample says nothing of others; give more"
        verdict = f"{STABLE}, {after}"
        if problem is not None:
            verdict = f"cannot rank plans for sure, {after}: {problem}"
        elif not table.standard_error[np.isfinite(table.loss)].any():
            verdict = f"no standard errors: whether plans would change with other data is not known, {after}"
        table = dataclasses.replace(table, verdict=verdict)
        if verdict.startswith(STABLE) and num_seen >= FEWEST_SAMPLES:
            break
    return table


def blank_table(graph: Graph, *, target: str | Target, choices: Sequence[str] | None = None) -> Sensitivity:
    """The table before a metric fills it: a loss of 0 where a layer is offered a choice, inf elsewhere.

    Raises:
        InvalidInput: as `measure` does for its graph, target and choices.
        UnsupportedModel: the target has no operator for a layer.
    """
    check_graph(graph)
    target = find_target(target)
    if graph.plan is not None:
        raise InvalidInput("graph: quantized already; measure the captured graph")
    layers = graph.layers
    asked = target.schemes(choices)
    schemes, offered = with_fallbacks(layers, asked, target)
    if not offered[:, : len(asked)].any() and offered.any():
        raise InvalidInput(f"choices: target {target.name} stores no layer so: {why_not(layers[0], asked[0], target)}")
    for layer, row in zip(layers, offered, strict=True):
        if not row.any():
            if (missing := why_not(layer, Scheme(), target)) is not None:
                raise UnsupportedModel(missing)
            weight = schemes[0].weight
            plain = (
                None
                if weight is None
                else dataclasses.replace(weight, granularity="channel", group=None, sparsity=None)
            )
            beside = f"offer another beside it for such layers, as {schemes[0]},{Scheme(plain, schemes[0].input)}"
            raise InvalidInput(f"choices: none fits a layer; {why_not(layer, schemes[0])}; or {beside}")
    dynamic = any(scheme.input is not None and scheme.input.dynamic for scheme in schemes)
    numel, macs = np.array([(layer.numel, layer.macs) for layer in layers], dtype=float).T
    weight_bits, input_bits = np.array([(scheme.weight_bits, scheme.input_bits) for scheme in schemes], dtype=float).T
    # what is never rounded, as by recurrences, has as many bits whatever the scheme
    read_bits = np.where([[bool(layer.inputs)] for layer in layers], input_bits, Scheme().input_bits)
    return Sensitivity(
        layers=tuple(layer.name for layer in layers),
        choices=tuple(str(scheme) for scheme in schemes),
        loss=np.where(offered, 0.0, np.inf),
        standard_error=np.zeros(offered.shape),
        usage={
            "weight_bytes": weight_bytes_of_choices(graph, schemes, target),
            "weight_bits": np.outer(numel, weight_bits),
            "bit_ops": macs[:, None] * weight_bits * read_bits,
        },
        numel=numel,
        macs=macs,
        input_ties=() if dynamic else shared_inputs(layers),  # each operator takes its range itself
        metric="",
        target=target.name,
        fingerprint=model_fingerprint(layers),
        num_samples=1,
        seed=0,
        live=live_activations(graph, target),
        uncovered=num_uncovered(graph),
    )


def choose_all_scales(graph: Graph, calibration: Calibration, schemes: Sequence[Scheme]) -> None:
    """Choose the scales of every weight in every scheme; the calibration then holds them for metrics and quantize()."""
    formats = list(dict.fromkeys(scheme.weight for scheme in schemes if scheme.weight is not None))
    for layer in track(graph.layers, "choose scales"):
        fitting = [fmt for fmt in formats if why_not(layer, Scheme(fmt)) is None]
        choose_scales(graph, layer, fitting, calibration)


def ranking_problem(table: Sensitivity, resampled: FloatArray | None = None) -> str | None:
    """Why the table cannot rank plans, None where it can.

    It cannot where all costs are about zero, as those of a model that has memorised its data; where most layers cost
    the same whatever their scheme; or where plans are not stable under resampling: those of the tables that other
    samples might have given lose more than TOLERANCE over the best one.

    Args:
        table: With its standard errors.
        resampled: [R, L, C] losses by samples drawn again from the same ones, which vary together as samples do; where
            None, they are drawn as normal, each with its standard error, as if independent of one another.
    """
    offered = np.isfinite(table.loss)
    sampled = bool(table.standard_error[offered].any())
    if np.abs(table.loss[offered]).max() < (NOTHING if sampled else TINIEST):
        most = f"{table.loss[offered].max():.1g}"
        return f"all costs are about zero (at most {most}): the data does not challenge the model; give other data"
    rows = [row[choices] for row, choices in zip(table.loss, offered, strict=True) if choices.sum() > 1]
    flat = sum(len(np.unique(row)) == 1 for row in rows)
    if rows and flat > len(rows) / 2:
        return f"{flat} of {len(rows)} layers cost the same whatever their scheme; give other data or another metric"
    if np.isinf(table.standard_error[offered]).any():
        return "a single sample has no standard error; give more data"
    excess = resampled_excess(table, resampled)
    if excess > TOLERANCE:
        return _noise(excess, table.num_samples)
    return None


def _noise(excess: float, num_samples: int) -> str:
    """What a relative excess means, and how many samples would do: noise has a variance of one by their number."""
    if excess > MUCH:
        return f"with {num_samples:,} samples plans are no better than chance; give many times as many"
    enough = round_up(num_samples * excess / TOLERANCE)
    return (
        f"with these {num_samples:,} samples plans may lose {excess:.0%} more than the best one; about {enough:,} "
        f"samples would do (for {TOLERANCE:.0%})"
    )


def round_up(count: float) -> int:
    """The next number of two digits and zeros, as 520 for 512.3."""
    unit = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return math.ceil(count / unit) * unit


def resampled_excess(table: Sensitivity, resampled: FloatArray | None = None) -> float:
    """By how much plans searched on resampled tables lose more than the table's own, relative; mean of all budgets.

    Plans are mixtures, see `mixbit.searches.mixtures`: they lose no more or less because a whole layer more does not
    fit. A best plan that loses next to nothing counts as LEAST_BEST of what the dearest choices lose. Limits are on the
    mean bits of weights or, where all choices have the same, on bit operations.
    """
    offered = np.isfinite(table.loss)
    errors, losses = np.where(offered, table.standard_error, 0), np.where(offered, table.loss, 0)
    if not errors.any():
        return 0.0
    if resampled is None:
        normal = np.random.default_rng(table.seed).standard_normal((DRAWS, *losses.shape))
        resampled = losses + errors * normal
    try:
        problem = Problem.of(table)
    except InfeasibleBudget:  # layers that are tied have no choice in common: no plan
        return 0.0
    usage = next((table.usage[name] for name in ("weight_bits", "bit_ops") if np.ptp(table.usage[name], 1).any()), None)
    if usage is None:
        return 0.0
    floor = max(LEAST_BEST * float(losses.max(1).sum()), TINIEST)
    tables, excesses = np.concatenate([losses[None], resampled]), []
    for share in SHARES:
        best, *others = (mixtures(problem, tables, usage, share) * losses).sum((1, 2))
        excesses.append((np.mean(others) - best) / max(best, floor))
    return float(np.mean(excesses))
