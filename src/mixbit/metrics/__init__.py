"""Metrics: each predicts the loss increase of every choice of every layer; one method a file."""

from collections.abc import Callable

from mixbit.errors import InvalidInput
from mixbit.estimate import Estimate, Question
from mixbit.metrics.fisher import fisher

Metric = Callable[[Question], Estimate]
METRICS: dict[str, Metric] = {"fisher": fisher}


def find_metric(metric: str | Metric) -> Metric:
    """The metric of that name, or the function itself; raises InvalidInput for an unknown name."""
    if not isinstance(metric, str):
        return metric
    if metric not in METRICS:
        raise InvalidInput(f"metric {metric!r} is unknown; known: {', '.join(METRICS)}")
    return METRICS[metric]
