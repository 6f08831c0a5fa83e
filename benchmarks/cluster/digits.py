"""What these benchmarks share out: plans of the shipped network, each with what it truly costs."""

from collections.abc import Callable
from functools import partial

import mixbit as mb
from mixbit.core import Plan
from mixbit.demo.data import calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.metric_study.plans import draw_choices
from mixbit.metric_study.subject import Subject
from mixbit.metrics.measure import blank_table


def setup() -> tuple[object, ...]:
    """The captured network, data to calibrate on, and data to evaluate on."""
    calibration = calibration_batches()
    return mb.capture(trained(), calibration[0][0]), calibration, test_batches()


def start() -> Callable[[Plan], str]:
    """In a worker, what evaluates a plan: the JSON of its truth."""
    return partial(_truth, Subject.of(setup()))


def _truth(subject: Subject, plan: Plan) -> str:
    return subject.truth(plan).model_dump_json()


def plans(count: int, seed: int) -> list[Plan]:
    """Random plans of the network."""
    graph, *_ = setup()
    frame = blank_table(graph, target="packed", choices=["w2", "w3", "w4", "w8"])  # type: ignore[arg-type] a graph
    drawn = draw_choices(frame, count, None, seed)
    return [frame.plan(choice, "drawn") for choice in drawn["random"]]
