"""Seconds of searches and of the whole front on random tables as large as networks are.

python -m benchmarks.search_speed
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mixbit.core import Limit
from mixbit.searches._problem import Problem, optimum
from mixbit.searches.front import pareto_choices
from mixbit.searches.search import SEARCHES

SEEDS = 5
#: Layers, choices, and what is timed.
CASES = (
    (20, 5, ("ilp", "front", "greedy", "hawq")),
    (53, 4, ("hawq",)),
    (53, 7, ("ilp", "front", "greedy")),
    (1000, 7, ("ilp",)),
)


def random_problem(seed: int, num_layers: int, num_choices: int) -> Problem:
    """Losses over many orders of magnitude; bytes and bit operations as of a real network, both limited."""
    rng = np.random.default_rng(seed)
    bits = np.arange(2, 2 + num_choices)
    weights = np.round(rng.lognormal(10, 1.5, num_layers))
    macs = np.round(weights * rng.lognormal(4, 1, num_layers))
    loss = rng.lognormal(-6, 3, (num_layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.2, (num_layers, num_choices))
    usage = np.stack([np.ceil(np.outer(weights, bits / 8)), np.outer(macs, bits**2)])
    limits = usage[:, :, num_choices // 2].sum(axis=1) * [0.9, 1.1]
    return Problem(
        layers=[f"layer{row}" for row in range(num_layers)],
        loss=loss,
        budget=[
            Limit(f"limit {row}", table, bound) for row, (table, bound) in enumerate(zip(usage, limits, strict=True))
        ],
        weight_bits=bits,
        input_bits=np.full(num_choices, 8),
        numel=weights,
    )


def timed(run: Callable[[Problem], Any], num_layers: int, num_choices: int) -> tuple[list[float], list[Any]]:
    """Seconds and answers for each seed."""
    seconds, answers = [], []
    for seed in range(SEEDS):
        problem = random_problem(seed, num_layers, num_choices)
        began = time.perf_counter()
        answers.append(run(problem))
        seconds.append(time.perf_counter() - began)
    return seconds, answers


def main() -> None:
    """Print the table."""
    table = Table("layers x choices", "what", "median s", "largest s", "", title=f"{SEEDS} problems, two limits")
    for num_layers, num_choices, names in CASES:
        for name in names:
            if name == "front":
                seconds, found = timed(lambda one: pareto_choices(one, one.usage[0]), num_layers, num_choices)
                said = f"{min(map(len, found)):,} to {max(map(len, found)):,} plans, one resource"
            elif name == "ilp":
                seconds, found = timed(optimum, num_layers, num_choices)
                said = f"largest gap {max(one.gap for one in found):.1e}"
            else:
                seconds, _ = timed(SEARCHES[name], num_layers, num_choices)
                said = ""
            row = (
                f"{num_layers} x {num_choices}",
                name,
                f"{statistics.median(seconds):.3f}",
                f"{max(seconds):.3f}",
                said,
            )
            table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
