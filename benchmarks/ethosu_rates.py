"""Bytes in an Ethos-U's flash at the same loss, to second order, by what else than today's choices layers may take.

The loss of a weight's errors is their squares times the Fisher information's diagonal, half of the sum; each layer
takes what is least of loss + lambda x bytes, for each of many lambdas. Bytes are by those of today's choices:

    python -m benchmarks.ethosu_rates ds_cnn resnet20
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.ethosu import TASK, Network
from mixbit.core import Format
from mixbit.core.target import find_target
from mixbit.graph import Case, Layer
from mixbit.quantization.calibrate import Calibration
from mixbit.quantization.masks import mean_square_gradients
from mixbit.quantization.scales import weight_quantizer
from mixbit.targets.ethosu import Device

DEVICE = Device("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")
#: Batches for the Fisher information; multiples of the least loss at which bytes are compared.
BATCHES, MULTIPLES = 4, (1.5, 4, 8, 16, 32, 64)
#: Prices of a byte, and rates of rounding, in shares of the mean error of a weight in one step.
LAMBDAS, RATES = np.geomspace(1e-12, 1e-2, 400), (0.02, 0.05, 0.1)
#: Values of a palette, and rounds of choosing them, or of choosing integers by their bits.
PALETTE, ROUNDS, RATE_ROUNDS = 32, 60, 3
LARGEST = 127
NOW = "today's choices"

#: Of a layer: bytes and loss of each way to store it.
Points = list[tuple[int, float]]


def stored(layer: Layer, weight: Tensor, fisher: Tensor, calibration: Calibration, graph: object) -> dict[str, Points]:
    """What is offered -> bytes and losses. Tensors have the output channels first."""
    points: dict[str, Points] = defaultdict(list)
    widest = weight.flatten(1).abs().amax(1).clamp(min=1e-9)
    channel = fisher.flatten(1).mean(1).clamp(min=1e-3 * float(fisher.mean()))

    def point(integers: Tensor, scale: Tensor) -> tuple[int, float]:
        error = (integers * along(scale) - weight).double()
        whole = integers.to(torch.int8).movedim(0, layer.axis).numpy()
        return DEVICE.weights_alone(layer, whole), float((fisher * error.square()).sum()) / 2

    def along(scale: Tensor) -> Tensor:
        return scale.expand(len(weight)).reshape(-1, *[1] * (weight.ndim - 1))

    def nearest(scale: Tensor, limit: int = LARGEST) -> Tensor:
        return (weight / along(scale)).round().clamp(-limit, limit)

    for bits in range(2, 9):
        for granularity in ("channel", "tensor") if bits > 3 else ("channel",):
            scale = weight_quantizer(graph, layer, Format(bits, granularity, symmetric=True), calibration).scale
            points[NOW].append(point(nearest(scale, 2 ** (bits - 1) - 1), scale))
    bases = {"half bits": (widest, widest.max()), "a step a channel by Fisher": ()}
    bases["a step a channel by Fisher"] = ((widest * channel.sqrt()).max() / channel.sqrt(),)
    for what, some in bases.items():
        for scale in (torch.maximum(each / (2 ** (half / 2 - 1) - 0.5), widest / LARGEST)
                      for each in some for half in range(4, 17)):  # fmt: skip
            points[what].append(point(nearest(scale), scale))
            for rate in RATES:
                integers = by_rate(weight / along(scale), fisher * along(scale).square(), rate)
                points["half bits, rounded by rate"].append(point(integers, scale))
    integers = in_palette(nearest(widest / LARGEST))
    points[f"palettes of {PALETTE}"].append(point(integers, widest / LARGEST))
    return points


def by_rate(positions: Tensor, prices: Tensor, rate: float) -> Tensor:
    """Integers below or above, or the nearest one less, by their squared error's price and the bits of their value."""
    nearest = positions.round().clamp(-LARGEST, LARGEST)
    integers, price = nearest, rate * float(prices.mean())
    for _ in range(RATE_ROUNDS):
        values, counts = torch.unique(integers, return_counts=True)
        bits = torch.full((2 * LARGEST + 3,), 14.0)
        bits[(values + LARGEST + 1).long()] = -(counts / counts.sum()).log2()
        candidates = torch.stack([positions.floor(), positions.ceil(), nearest - nearest.sign()])
        candidates = candidates.clamp(-LARGEST, LARGEST)
        costs = prices * (candidates - positions).square() + price * bits[(candidates + LARGEST + 1).long()]
        integers = candidates.gather(0, costs.argmin(0, keepdim=True)).squeeze(0)
    return integers


def in_palette(integers: Tensor) -> Tensor:
    """The integers, each moved to the nearest of PALETTE values, which are chosen for the least squares (Lloyd)."""
    numbers = integers.flatten().numpy()
    values: NDArray[np.float64] = np.unique(np.quantile(numbers, (np.arange(PALETTE) + 0.5) / PALETTE))
    for _ in range(ROUNDS):
        places = np.searchsorted((values[1:] + values[:-1]) / 2, numbers)
        sums, counts = (np.bincount(places, weights, len(values)) for weights in (numbers, None))
        values = np.where(counts > 0, sums / np.maximum(counts, 1), values)
    values = np.unique(values.round())
    moved = values[np.searchsorted((values[1:] + values[:-1]) / 2, numbers)]
    return torch.from_numpy(moved).to(integers).reshape(integers.shape)


def front(layers: Sequence[Points]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of loss, rising, and of bytes, for each lambda."""
    found = set()
    for price in LAMBDAS:
        chosen = [min(points, key=lambda each: each[1] + price * each[0]) for points in layers]
        found.add((sum(loss for _, loss in chosen), sum(size for size, _ in chosen)))
    losses, sizes = np.log(np.array(sorted(found))).T
    return losses, sizes


def rows_for(name: str) -> Iterator[tuple[str, ...]]:
    """What is offered beside today's choices, and its bytes by theirs at each multiple of their least loss."""
    network = Network.load(name, "nearest")
    graph, calibration = network.graph, network.calibration.for_target(find_target("ethosu"))
    case = Case(graph, [*calibration.batches][:BATCHES], TASK)
    fisher = mean_square_gradients(case, calibration, graph.layers)
    layers = []
    for layer in graph.layers:
        weight = graph.parameter(layer.name).detach()
        first = (tensor.movedim(layer.axis, 0) for tensor in (weight, fisher[layer.name].float()))
        layers.append(stored(layer, *first, calibration, graph))
    now = front([points[NOW] for points in layers])
    at = now[0].min() + np.log(MULTIPLES)
    yield name, f"bytes of {NOW}", *(f"{size:,.0f}" for size in np.exp(np.interp(at, *now)))
    for what in (each for each in layers[0] if each != NOW):
        found = front([points[NOW] + points[what] for points in layers])
        yield name, what, *(f"{ratio:.3f}" for ratio in np.exp(np.interp(at, *found) - np.interp(at, *now)))
    every = front([[point for points in each.values() for point in points] for each in layers])
    yield name, "all of them", *(f"{ratio:.3f}" for ratio in np.exp(np.interp(at, *every) - np.interp(at, *now)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["ds_cnn", "resnet20"])
    table = Table("network", "beside today's", *(f"loss x {multiple:g}" for multiple in MULTIPLES))
    for name in parser.parse_args(arguments).networks:
        for row in rows_for(name):
            table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
