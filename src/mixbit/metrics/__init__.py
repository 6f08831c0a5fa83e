"""Metrics: each predicts the loss increase of every choice of every layer; one method a file."""

from collections.abc import Callable

from mixbit.core import with_options
from mixbit.metrics._input import Estimate as Estimate, MetricInput as MetricInput
from mixbit.metrics.autoround import autoround
from mixbit.metrics.fisher import fisher
from mixbit.metrics.fit import fit, fit_a, fit_error, fit_w
from mixbit.metrics.hawq import hawq
from mixbit.metrics.measured import measured, measured_loss
from mixbit.metrics.modelopt import modelopt
from mixbit.metrics.output_error import noise_to_signal, output_error
from mixbit.metrics.weight_error import weight_error, weight_error_absolute, weight_error_relative

Metric = Callable[[MetricInput], Estimate]
METRICS: dict[str, Metric] = {
    "fisher": fisher,
    "fit": fit,
    "fit_w": fit_w,
    "fit_a": fit_a,
    "fit_error": fit_error,
    "hawq": hawq,
    "weight_error": weight_error,
    "weight_error_absolute": weight_error_absolute,
    "weight_error_relative": weight_error_relative,
    "output_error": output_error,
    "noise_to_signal": noise_to_signal,
    "modelopt": modelopt,
    "autoround": autoround,
    "measured": measured,
    "measured_loss": measured_loss,
}

#: Means over samples, which are asked about parts of the data in turn until plans are stable; others about all of it.
BY_PARTS = {fisher, fit, fit_w, fit_a, fit_error, output_error, noise_to_signal, modelopt, measured}
#: Those that look at weights or outputs alone, whatever the loss.
WITHOUT_LOSS = {
    "weight_error", "weight_error_absolute", "weight_error_relative", "output_error", "noise_to_signal", "measured",
}  # fmt: skip


def find_metric(metric: str | Metric) -> tuple[str, Metric]:
    """Name and function of a metric; raises InvalidInput for an unknown name or option."""
    return with_options("metric", metric, METRICS)
