"""Metrics: each predicts the loss increase of every choice of every layer; one method a file."""

from collections.abc import Callable

from mixbit.estimate import Estimate, Question
from mixbit.metrics.fisher import fisher

METRICS: dict[str, Callable[[Question], Estimate]] = {"fisher": fisher}
