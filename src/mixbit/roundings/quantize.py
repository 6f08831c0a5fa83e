"""quantize(): from a float graph and a plan to the simulated graph."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixbit.core import InvalidInput, Plan, Store, Task, checked, find_target, pick, reserved
from mixbit.graph import Case, Graph, check_arguments, check_by_layer
from mixbit.graph.resources import num_uncovered
from mixbit.quantization.biases import BIAS_CORRECTIONS, corrected
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.offers import for_target
from mixbit.quantization.ranges import RangeMethod
from mixbit.quantization.shared import Shared
from mixbit.quantization.simulate import check_plan, simulate
from mixbit.quantization.sizes import weight_bytes_of
from mixbit.roundings._input import ROUNDINGS, Elsewhere, Rounding, RoundingInput, check_shared_out, few
from mixbit.roundings.nearest import nearest


@checked
def quantize(  # noqa: PLR0913
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any] | Calibration | None,
    *,
    rounding: str | Rounding = "nearest",
    bias_correction: str = "at_once",
    ranges: str | RangeMethod | None = None,
    task: Task | str | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    shared: Shared | None = None,
) -> Graph:
    """The graph with the plan's quantizers, simulated in float: a module that evaluates and trains.

    Activations: one quantizer per tensor, shared by all that read it, with a static range; or, where the range is
    taken at run time, for the plan's layers that read it alone, and none between layers. Biases: `at_once` takes off
    the mean error of each operator's output that the nearest rounding of its weight makes on the calibration data;
    `sequential` corrects them after the rounding, see `mixbit.quantization.biases.corrected`. Where weight and input
    are integers of known scales, a bias is a whole multiple of the product of the scales, as runtimes hold it.

    Args:
        graph: A captured graph in float; it is left as it is.
        plan: A scheme for every layer, for the target it names.
        batches: Calibration data, labels ignored; or a calibration of this graph, with its masks of sparse schemes (see
            `mixbit.quantization.masks`; otherwise chosen by magnitude), and with its `batches` where the rounding is
            not nearest or the correction sequential, of which these take about FEW_SAMPLES samples, from all over the
            data; or None where no input has a static range: weights then take
            min-max scales, and biases stay.
        rounding: A name in ROUNDINGS, as `brecq:iterations=500`, or a function from a `RoundingInput` to a graph.
        bias_correction: A name in `mixbit.quantization.biases.BIAS_CORRECTIONS`.
        ranges: A name in `mixbit.quantization.ranges.RANGES`, or a function: how ranges of activations are chosen.
            `mse` where None; a calibration has its own.
        task: What the outputs mean, for roundings that need it, as a Task or its name; classification where None.
        seed: Random seed of the rounding.
        folder: Where a rounding stores finished parts, so that the same call resumes there; None stores nothing.
        shared: Where blocks are learned, each in one thread, so that the result is the same bits for every number of
            processes, with `brecq:inputs=float` and `adaround:inputs=float`; where None, in this one, with all threads.
            Its setup returns this graph and the batches, or those of the calibration.

    Raises:
        InvalidInput: the plan is of another model, offers what the target does not run or a layer cannot take, the data
            does not fit or is needed, the rounding is unknown, or its work is not one that several processes can share.
    """
    task = Task.of(task)
    check_arguments(graph, task, seed)
    pick("bias correction", bias_correction, BIAS_CORRECTIONS)
    name, round_weights = ROUNDINGS.find(rounding)
    check_by_layer(graph, f"rounding {name}", round_weights, ROUNDINGS)
    if shared is not None:
        check_shared_out(rounding)
    check_plan(graph, plan)
    graph = for_target(graph, find_target(plan.target))
    plan = _without_outdated_predictions(graph, plan)
    calibration = _calibration(graph, plan, batches, ranges)
    needs_data = round_weights is not nearest or bias_correction == "sequential"
    inputs = [] if calibration is None or not needs_data else few(calibration)
    if needs_data and not inputs:
        what = "sequential bias correction" if round_weights is nearest else f"rounding {name}"
        raise InvalidInput(f"{what}: {_given(calibration)} is not enough; give the batches")
    corrects, place = bias_correction != "off", Store(folder).folder
    simulated = simulate(graph, plan, calibration, bias_correction=corrects)
    elsewhere = None
    if shared is not None and calibration is not None:
        elsewhere = Elsewhere(shared, Case(graph, calibration.batches, task, seed), calibration)
    with reserved(place):
        rounded = round_weights(RoundingInput(graph, simulated, inputs, task, seed, place, corrects, elsewhere))
    if not isinstance(rounded, Graph) or rounded.plan is None:
        what = "a graph in float" if isinstance(rounded, Graph) else f"a {type(rounded).__name__}"
        raise InvalidInput(f"rounding {name}: returns {what}; return the simulated graph with other weights")
    return corrected(graph, rounded, inputs) if bias_correction == "sequential" else rounded


def _calibration(
    graph: Graph, plan: Plan, batches: Iterable[Any] | Calibration | None, ranges: str | RangeMethod | None
) -> Calibration | None:
    """The calibration given, or one of the batches given; None where there is neither and the plan needs none."""
    if batches is not None and not isinstance(batches, Calibration):
        return calibrate(graph, batches, target=plan.target, ranges=ranges or "mse")
    inputs = {name: plan.scheme(name).input for name in plan.layers}
    static = [f"{name} ({plan.layers[name]})" for name, fmt in inputs.items() if fmt is not None and not fmt.dynamic]
    if batches is None and static:
        raise InvalidInput(
            f"batches: None, but {static[0]} has an input of static range; give calibration data, or take a scheme "
            "whose range is taken at run time, as w8a8d"
        )
    if ranges is not None:
        raise InvalidInput(
            f"ranges={ranges!r}: {_given(batches)} chooses none; give ranges to calibrate(), or the batches"
        )
    return batches


def _given(batches: Calibration | None) -> str:
    return "no data" if batches is None else "a calibration alone"


def _without_outdated_predictions(graph: Graph, plan: Plan) -> Plan:
    """The plan without its predictions where its schemes were edited since, which changes its bytes."""
    target, uncovered = find_target(plan.target), num_uncovered(graph)
    if target.coded_bytes is None:
        name, held = "weight_bytes", sum(weight_bytes_of(graph, plan, target).values()) + 4 * uncovered
    else:  # bytes are known once there are integers
        bits = sum(layer.numel * plan.scheme(layer.name).weight_bits for layer in graph.layers) + 32 * uncovered
        name, held = "mean_bits", bits / (sum(layer.numel for layer in graph.layers) + uncovered)
    if math.isclose(plan.predicted.get(name, held), held, rel_tol=1e-9):
        return plan
    return plan.model_copy(update={"predicted": {}, "made_by": f"{plan.made_by}, edited"})
