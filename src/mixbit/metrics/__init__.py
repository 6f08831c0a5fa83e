"""Metrics: each predicts the loss increase of every choice of every layer; one method a file."""

from mixbit.metrics._input import (
    IGNORES_LOSS as IGNORES_LOSS,
    MEAN_OVER_SAMPLES as MEAN_OVER_SAMPLES,
    METRICS as METRICS,
    Estimate as Estimate,
    Metric as Metric,
    MetricInput as MetricInput,
)
