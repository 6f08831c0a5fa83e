"""Latency of artefacts, paired: runs of several alternate, so that a busy machine slows them alike."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixbit.progress import track

WARM_UP = 5
ROUNDS = 200
#: Seconds after which fewer rounds are run.
SECONDS = 5.0


def paired_latency_ms(
    runs: Mapping[str, Callable[[list[NDArray[Any]]], Any]], inputs: list[NDArray[Any]], label: str
) -> dict[str, float]:
    """Median milliseconds of each run on these inputs, over rounds in which each runs once.

    Each round has an order of its own, as what ran before leaves its data in the caches.
    """
    orders = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for round_number in track(range(WARM_UP + ROUNDS), label):
        for name in orders.sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name](inputs)
            if round_number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
        if round_number > 2 * WARM_UP and time.perf_counter() - began > SECONDS:
            break
    return {name: float(np.median(values)) for name, values in times.items()}
