"""Metrics: each predicts the loss increase of every choice of every layer; one method a file."""

from collections.abc import Callable

from mixbit.core import Methods
from mixbit.metrics._input import IGNORES_LOSS as IGNORES_LOSS, Estimate as Estimate, MetricInput as MetricInput

Metric = Callable[[MetricInput], Estimate]
METRICS: Methods[Metric] = Methods("metric", __name__)
