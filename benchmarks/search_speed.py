"""Seconds of the exact search and of the whole front on random tables as large as networks are.

python -m benchmarks.search_speed
"""

import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from mixbit.search._exact import optimum
from mixbit.search._pareto import pareto_choices
from mixbit.search._problem import Problem

SEEDS = 5


def random_problem(seed: int, num_layers: int, num_choices: int) -> Problem:
    """Losses over many orders of magnitude; bytes and bit operations as of a real network, both limited."""
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + num_choices)
    weights = np.round(rng.lognormal(10, 1.5, num_layers))
    macs = np.round(weights * rng.lognormal(4, 1, num_layers))
    loss = rng.lognormal(-6, 3, (num_layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.2, (num_layers, num_choices))
    usage = np.stack([np.ceil(np.outer(weights, bits / 8)), np.outer(macs, bits**2)])
    return Problem.of(loss, usage, usage[:, :, num_choices // 2].sum(axis=1) * [0.9, 1.1])


def main() -> None:
    """Print the table."""
    table = Table(
        "layers x choices", "what", "median s", "largest s", "largest gap", "points", title=f"{SEEDS} problems"
    )
    for num_layers, num_choices in ((20, 5), (53, 7), (1000, 7)):
        seconds, gaps = [], []
        for seed in range(SEEDS):
            groups = random_problem(seed, num_layers, num_choices).groups
            began = time.perf_counter()
            gaps.append(optimum(groups).gap)
            seconds.append(time.perf_counter() - began)
        row = f"{num_layers} x {num_choices}"
        times = f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}"
        table.add_row(row, "ilp, two limits", *times, f"{max(gaps):.1e}", "")
        if num_layers > 100:
            continue
        seconds, counts = [], []
        for seed in range(SEEDS):
            groups = random_problem(seed, num_layers, num_choices).groups
            began = time.perf_counter()
            counts.append(len(pareto_choices(groups, groups.usage[0])))
            seconds.append(time.perf_counter() - began)
        times = f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}"
        table.add_row(row, "front of bytes", *times, "", f"{min(counts):,} to {max(counts):,}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
