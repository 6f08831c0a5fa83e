"""timed(): the table with what each choice of each layer adds to the time of one sample in the target's runtime."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from mixbit.core import FloatArray, InvalidInput, Plan, Sensitivity, find_target
from mixbit.graph import Graph
from mixbit.targets._kept_times import keep_times, kept_times, new_times, place_of, question_of
from mixbit.targets.latency import ALIKE
from mixbit.targets.time_plans import PlanTime, time_plans

#: Fours of plans that mix choices, and by how much a plan of one choice for all layers weighs more.
FOURS, ONE_CHOICE = 3, 2.0
#: What a layer may read in four plans: any two rows differ in two plans, once in either way.
WAYS = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
#: Random plans whose times are compared with those predicted, which are not fitted to them.
CHECKED = 5
SEED = 0
MADE_BY = "timing"


def timed(table: Sensitivity, graph: Graph, simulate: Callable[[Plan], Graph]) -> tuple[Sensitivity, str]:
    """The table of `timed_beside`, and a sentence on how far it is off the times of CHECKED random plans.

    Times of the same network, choices, runtime, settings and processor are taken from the user's cache, where they are
    there; the sentence then says since when, and in which file.

    Args:
        table: Of the graph.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    target = find_target(table.target)
    target.require()
    with target.written(simulate(table.plan_like(0, MADE_BY)), graph, 1) as runner:
        question = question_of(table, graph, runner.environment)
    times, note = kept_times(question), ""
    if times is not None:
        note = f"; taken on {times.date} and kept in {place_of(question)}: delete it to take them anew"
    else:
        choices = np.random.default_rng(SEED).integers(len(table.choices), size=(CHECKED, len(table.layers)))
        found, off = timed_beside(table, list(choices), graph, simulate)
        times = new_times(question, found, off)
        try:
            keep_times(times)
        except InvalidInput as error:
            note = f"; they are not kept: {error}"
    apart = abs(np.array(times.off) - 1)
    said = f"{np.median(apart):.0%} off the measured times of {len(apart)} random plans in the median"
    return times.added_to(table), f"latency_ms: {said}, {apart.max():.0%} at most{note}"


def timed_beside(
    table: Sensitivity, choices: Sequence[NDArray[np.int64]], graph: Graph, simulate: Callable[[Plan], Graph]
) -> tuple[Sensitivity, FloatArray]:
    """The table with the usage `latency_ms` and conversions, and [P] its latencies of plans by their measured times.

    Every choice is run in all layers together, and so are 4 FOURS plans that mix choices at random. r_p is the time of
    plan p by that of the last choice, which takes t; p_pl is the share of layer l in it, see `PlanTime`. What a layer
    takes depends on its own choice c, and on whether the layers before and behind it read integers and float numbers as
    it does; for each layer, the sum over the plans of the squares of

        r_p p_pl - u[l, c_pl] - a[l, k] [layer l - 1 reads differently] - b[l, k] [layer l + 1 does]

    with k, what layer l reads, is made the smallest by u, a, b >= 0; plans of one choice have the weight ONE_CHOICE.

        latency[l, c] = t u[l, c]
        conversions[l] = t s (b[l, integers] + a[l + 1, float], b[l, float] + a[l + 1, integers])

    where s, near 1, makes the sum over the mixed plans right: what is as likely below 0 as above would add up else.
    Choices that a layer executes alike share u, if their plans take as long, to ALIKE. Where all choices read integers,
    or all float numbers, or where the runtime does not tell the times of its operators, no plan mixes choices, and so
    latency[l, c] = t r_c p_cl. A layer that is not offered a choice takes the first that it is offered instead.

    Args:
        table: Of the graph.
        choices: [P] of [L] each: plans to compare with, which nothing is fitted to. They are run with the others.
        graph: The captured graph in float.
        simulate: Makes the simulation of a plan.
    """
    uniform = [table.plan_like(column, MADE_BY) for column in range(len(table.choices))]
    of_uniform, ms = time_plans(table, uniform, graph, simulate)
    offered = np.flatnonzero(np.isfinite(table.loss).any(axis=0))
    reads = {table.schemes[column].input is None for column in offered.tolist()}
    draws = _mixed(table) if len(reads) > 1 and all(each.told for each in of_uniform) else []
    mixed, others = ([table.plan_like(choice, MADE_BY) for choice in some] for some in (draws, choices))
    found, _ = time_plans(table, [*mixed, *others, uniform[-1]], graph, simulate)
    columns = np.array([table.columns(plan.layers) for plan in [*uniform, *mixed]])
    latency, conversions = _fitted(table, columns, [*of_uniform, *found[: len(mixed)]])
    usage = table.usage | {"latency_ms": ms * latency}
    timed = dataclasses.replace(table, usage=usage, conversions=ms * conversions if conversions.any() else None)
    predicted = [timed.plan(timed.columns(plan.layers), MADE_BY).predicted["latency_ms"] for plan in others]
    return timed, np.array(predicted) / (ms * np.array([each.ratio.value for each in found[len(mixed) : -1]]))


def _fitted(table: Sensitivity, columns: NDArray[np.int64], times: Sequence[PlanTime]) -> tuple[FloatArray, FloatArray]:
    """What layers and conversions take, by t, as plans of these columns [P, L] do: first those of one choice."""
    num_layers, num_choices = len(table.layers), len(table.choices)
    in_float = np.array([scheme.input is None for scheme in table.schemes])[columns]
    differ = np.stack([~in_float[:, :-1] & in_float[:, 1:], in_float[:, :-1] & ~in_float[:, 1:]], axis=2)
    borders = np.pad(
        differ.astype(float), ((0, 0), (1, 1), (0, 0))
    )  # nothing before the first layer and behind the last
    weight = np.where(np.arange(len(times)) < num_choices, ONE_CHOICE, 1.0)
    latency, conversions = np.zeros((num_layers, num_choices)), np.zeros((num_layers + 1, 2))
    for row, layer in enumerate(table.layers):
        alike = _first_alike(layer, times[:num_choices])
        own = np.eye(num_choices)[alike[columns[:, row]]]
        parts = np.array([each.ratio.value * each.shares[row] for each in times])
        features = np.concatenate([own, borders[:, row], borders[:, row + 1]], axis=1)
        found, _ = nnls(weight[:, None] * features, weight * parts)
        latency[row] = found[alike]
        conversions[row : row + 2] += found[num_choices:].reshape(2, 2)
    ratios, rows = np.array([each.ratio.value for each in times]), np.arange(num_layers)
    left = (ratios - latency[rows, columns].sum(axis=1))[num_choices:].sum()
    added = (borders * conversions).sum(axis=(1, 2))[num_choices:].sum()
    return latency, conversions[1:-1] * (max(left, 0.0) / added if added else 0.0)


def _first_alike(layer: str, times: Sequence[PlanTime]) -> NDArray[np.int64]:
    """[P] of plans of one choice each, the first that executes the layer as the plan does, and takes as long.

    Kernels of one name may differ in time: onnxruntime has slower ones for 8-bit weights where processors lack VNNI.
    """
    first = list[int]()
    for each in times:
        same = [
            other.executed.get(layer) == each.executed.get(layer)
            and 1 / ALIKE <= other.ratio.value / each.ratio.value <= ALIKE
            for other in times
        ]
        first.append(same.index(True))
    return np.array(first)


def _mixed(table: Sensitivity) -> list[NDArray[np.int64]]:
    """Of [L] each: in every four, two neighbours read integers and float numbers in all four ways, unless tied."""
    in_float = np.array([scheme.input is None for scheme in table.schemes])
    columns = [np.flatnonzero(in_float == kind) for kind in np.unique(in_float)]
    draws, size, choices = np.random.default_rng(SEED), len(table.layers), list[NDArray[np.int64]]()
    for _ in range(FOURS):
        pattern = np.cumsum(draws.integers(1, len(WAYS), size=size)) % len(WAYS)
        turned = draws.integers(2, size=size)
        for tie in map(list, table.input_ties):
            pattern[tie], turned[tie] = pattern[tie[0]], turned[tie[0]]
        for kinds in (WAYS[pattern] ^ turned[:, None]).T:
            choices.append(np.array([draws.choice(columns[kind % len(columns)]) for kind in kinds]))
    return choices
