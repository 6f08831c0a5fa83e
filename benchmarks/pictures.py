"""Draws the pictures of the documents: `python -m benchmarks.pictures`, which writes docs/pictures/*.svg.

All but `way` hold what this version of mixbit computes on the demo's network.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import mixbit as mb
from mixbit.core import Format, Sensitivity, Task, split_all
from mixbit.demo.data import calibration_batches, test_batches
from mixbit.demo.network import trained
from mixbit.graph import Graph
from mixbit.graph.evaluate import Reference, evaluate
from mixbit.quantization import calibrate
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.ranges import Histogram, mse

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
STEPS = ("capture", "calibrate", "measure", "search", "quantize", "export", "verify")
BETWEEN = ("graph", "ranges", "table", "plan", "simulation", "file")
DARK, ACCENT, PALE = "#37474f", "#00796b", "#b0bec5"
NUM_PLANS = 40


def save(name: str, axes: Axes) -> None:
    """Write a figure, the same bytes each time."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close("all")


def canvas(width: float = 6.4, height: float = 3.2) -> Axes:
    return plt.subplots(figsize=(width, height))[1]


def way() -> None:
    """The steps from left to right, and what each hands to the next."""
    axes = canvas(9.6, 1.4)
    for place, step in enumerate(STEPS):
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#e0f2f1", "edgecolor": ACCENT}
        axes.text(place, 0, step, ha="center", va="center", color=DARK, bbox=box)
    for place, what in enumerate(BETWEEN):
        axes.annotate("", (place + 0.62, -0.45), (place + 0.38, -0.45), arrowprops={"arrowstyle": "->", "color": DARK})
        axes.text(place + 0.5, -0.72, what, ha="center", va="center", color=DARK, fontsize=9)
    axes.set(xlim=(-0.6, len(STEPS) - 0.4), ylim=(-1, 0.5))
    axes.axis("off")
    save("way", axes)


def staircase() -> None:
    """Three bits: what each number becomes, and the error."""
    axes, x = canvas(), np.linspace(-4.6, 4.6, 1001)
    rounded = np.clip(np.round(x), -4, 3)
    axes.plot(x, x, color=PALE, label="x")
    axes.plot(x, rounded, color=ACCENT, label="Q(x)")
    axes.plot(x, rounded - x, color=DARK, linewidth=1, label="Q(x) - x")
    axes.set(xlabel="x / s")
    axes.legend(frameon=False)
    save("staircase", axes)


def ranges(values: torch.Tensor) -> None:
    """The mean square error of 4 bits over the range, on a tensor of the demo's network."""
    axes, highest = canvas(), float(values.max())
    shares = np.linspace(0.1, 1, 91)
    errors = []
    for share in shares:
        step = share * highest / 15
        errors.append(float(((values / step).round().clamp(0, 15) * step - values).square().mean()))
    axes.plot(shares, np.array(errors) / min(errors), color=ACCENT, label="error of a range of this share")
    histogram = Histogram()
    histogram.update(values)
    scale, _ = mse(histogram, Format(4, "tensor", symmetric=False))
    axes.axvline(float(scale) * 15 / highest, color=DARK, linestyle="--", label="what the method mse chooses")
    axes.set(xlabel="range over the largest value", ylabel="mean square error, 1 the least", yscale="log")
    axes.legend(facecolor="white", framealpha=1, edgecolor="none")
    save("ranges", axes)


def prediction(graph: Graph, calibration: Calibration) -> None:
    """Random plans: what fisher predicts on half of the test images, and their divergence from float on the others."""
    axes, generator, task = canvas(4.8, 3.6), np.random.default_rng(0), Task.classification()
    batches = test_batches()
    table = mb.measure(graph, batches[::2], target="openvino", metric="fisher")
    others = split_all(batches[1::2], 1)
    reference = Reference.recorded(graph, task)
    predicted, true = [], []
    for _ in range(NUM_PLANS):
        columns = generator.integers(0, len(table.choices), len(table.layers))
        layers = {name: table.choices[column] for name, column in zip(table.layers, columns, strict=True)}
        plan = mb.Plan(target=table.target, fingerprint=table.fingerprint, layers=layers)
        predicted.append(float(table.loss[np.arange(len(columns)), columns].sum()))
        small = mb.quantize(graph, plan, calibration)
        true.append(evaluate(small, others, task, "plan", diverging_from=reference).divergence)
    axes.loglog(predicted, true, "o", color=ACCENT, markersize=4)
    ends = [min(predicted + true), max(predicted + true)]
    axes.loglog(ends, ends, color=PALE)
    axes.set(xlabel="predicted by fisher, nats", ylabel="KL divergence of the plan, nats")
    save("prediction", axes)


def front(table: Sensitivity) -> None:
    """The front of the demo's network, and the uniform plans beside it."""
    axes, plans = canvas(), mb.front(table)
    kilobytes, loss = plans.figures["weight_bytes"] / 1000, plans.figures["loss"]
    axes.semilogy(kilobytes, loss, color=ACCENT, drawstyle="steps-post", label="the front")
    sizes, costs = table.usage["weight_bytes"].sum(0) / 1000, table.loss.sum(0)
    axes.semilogy(sizes, costs, "o", color=DARK, label="the same bits everywhere")
    for size, cost, choice in zip(sizes, costs, table.choices, strict=True):
        axes.annotate(choice, (size, cost), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="weights, kB", ylabel="predicted loss, nats")
    axes.legend(frameon=False)
    save("front", axes)


def main() -> None:
    """Draw all pictures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    mpl.rcParams.update({"svg.hashsalt": "mixbit", "svg.fonttype": "none", "font.family": "sans-serif"})
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    batches = [images for images, _ in calibration_batches()]
    graph = mb.capture(trained(), batches[0])
    calibration = calibrate(graph, batches)
    table = mb.measure(graph, calibration, target="openvino")
    way()
    staircase()
    model = trained()
    ranges(torch.relu(model.norm(model.conv(torch.cat(batches)))).detach())
    prediction(graph, calibration)
    front(table)


if __name__ == "__main__":
    main()
