"""What a run says of itself: how large the network is, what a plan should do, and how long it will take."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixbit.core import Batch, Batches, Plan, Task, duration, passes_of
from mixbit.graph import Graph, ports_of, returned_by
from mixbit.metrics import METRICS, Metric

#: Runs of the network that everything but the metric costs: on all calibration data, on held-out data and on that to
#: evaluate on; each plan that is compared adds one of held-out data and one of the last.
CALIBRATING, COMPARING, EVALUATING = 3.0, 2.0, 6.0
#: Plans that are compared: the searched one and uniform ones.
PLANS = 4
#: Tensors of a batch that are alive at once in a forward pass and its gradients, as a share of all of them.
ALIVE = 2.0
#: Copies of the weights: the graph, its float file, the simulations that are compared, the artefact.
COPIES = 8
#: Capturing, writing files and timing them, of a network of usual size.
FIXED_S = 10.0
#: What takes less is not told.
LONG_S = 30.0


def size_of(graph: Graph) -> str:
    """Layers, their weights, and work per sample."""
    weights, macs = sum(layer.numel for layer in graph.layers), sum(layer.macs for layer in graph.layers)
    return f"{_layers(len(graph.layers))}, {weights:,} weights, {macs:,.0f} multiply-accumulates a sample"


def predicted_of(plan: Plan) -> str:
    """What the search predicts of a plan."""
    forms = {"loss": "predicted loss {:.3g}", "weight_bytes": "{:,.0f} bytes of weights", "mean_bits": "{:.3g} bits"}
    texts = [form.format(plan.predicted[name]) for name, form in forms.items() if name in plan.predicted]
    return ", ".join(texts) or _layers(len(plan.layers))


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def note_on_classes(graph: Graph, task: Task, classes: Sequence[str] | None) -> str | None:
    """A sentence where names of classes are not as many as the outputs that choose among them; else None.

    Their numbers are then those of the alphabet, and not the network's.
    """
    outputs = ports_of(graph).outputs
    if not classes or task.name != "classification" or len(outputs) != 1 or len(outputs[0].shape) != 2:
        return None
    count = outputs[0].shape[1]
    if count in (1, len(classes)):
        return None
    return (
        f"the data has {len(classes)} classes, and the network {count}: labels are numbers in alphabetical order, so "
        "accuracy means something only if the network learned them so; give data of every class, or call folders and "
        "labels by their numbers"
    )


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take.

    Attributes:
        seconds: From calibration to the end, without training, learned roundings and searches that try plans.
        peak_bytes: Of the process's memory.
        without: What else is not counted; "" where nothing.
    """

    seconds: float
    peak_bytes: float
    without: str

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} and {self.peak_bytes / 2**30:.1f} GiB of memory{self.without}"


def expected(
    graph: Graph,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    evaluation: Sequence[Batch],
    metric: str | Metric | None,
    num_choices: int,
) -> Cost:
    """What a run costs, from the seconds of one batch and the sizes of its tensors.

    With t the seconds of a sample in a forward pass in float, n_c, n_h and n_e the samples to calibrate, compare and
    evaluate on, P the plans compared and m the passes of the metric, 0 where there is none:
    FIXED_S + t (n_c (CALIBRATING + m) + n_h P COMPARING + n_e (P + EVALUATING)).
    Memory is what the process has now, COPIES of the weights, and ALIVE times the tensors of the largest batch.
    """
    inputs, _ = Batches.of(batches)[0]
    with torch.no_grad():
        returned_by(graph, inputs)
        began = time.perf_counter()
        returned_by(graph, inputs)
        seconds = (time.perf_counter() - began) / inputs.batch_size
    counts = [sum(Batches.of(part).sizes) for part in (batches, held_out, evaluation)]
    passes = 0 if metric is None else passes_of(METRICS.find(metric)[1], len(graph.layers), num_choices)
    runs = counts[0] * (CALIBRATING + (passes or 0)) + counts[1] * PLANS * COMPARING + counts[2] * (PLANS + EVALUATING)
    per_sample = 4 * sum(torch.Size(shape).numel() for shape in graph.shapes.values()) / graph.example.batch_size
    weights = 4 * sum(layer.numel for layer in graph.layers)
    largest = max(Batches.of(batches).sizes)
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    without = "" if passes is not None else ", without the metric, whose cost is not known"
    return Cost(FIXED_S + seconds * runs, now + COPIES * weights + ALIVE * per_sample * largest, without)
