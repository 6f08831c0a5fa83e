"""Folders of runs that never ran: a table, its plan and figures, as files of a result."""

import json
from pathlib import Path

import numpy as np

from mixbit.core import Sensitivity, sha256
from mixbit.results.result import Result

BITS = (2, 4, 8)


def table_of(names, seed=0):
    """Random costs that fall with bits; sizes of random layers."""
    random = np.random.default_rng(seed)
    count = len(names)
    numel = np.round(np.exp(random.uniform(3, 10, count)))
    loss = np.exp(random.normal(-6, 1, count))[:, None] * 4.0 ** -np.array(BITS) * random.uniform(0.9, 1.1, (count, 3))
    usage = {
        "weight_bytes": np.ceil(numel[:, None] * BITS / 8),
        "weight_bits": numel[:, None] * BITS,
        "bit_ops": numel[:, None] * BITS * 8.0,
    }
    choices = tuple(f"w{bits}a8" for bits in BITS)
    return Sensitivity(
        tuple(names), choices, loss, loss / 10, usage, numel, 10 * numel, (), "fisher", "packed", "x", 64, 0
    )


def write_folder(folder: Path, table: Sensitivity, *, with_table: bool = True, **changes) -> Result:
    """Write a folder whose plan takes the middle choice everywhere; `changes` are parts of result.json."""
    folder.mkdir()
    plan = table.plan(np.ones(len(table.layers), dtype=np.int64), "fisher + ilp")
    plan.save(folder / "plan.json")
    if with_table:
        table.save(folder / "sensitivity.json")
    sizes = table.usage["weight_bytes"][:, 1].astype(int).tolist()
    content = {
        "target": "packed",
        "task": "classification",
        "model": None,
        "chosen": "the searched plan is deployed",
        "float": {"accuracy": 0.75, "weight_bytes": 4 * float(table.numel.sum()), "latency_ms": 2.0},
        "simulated": {"accuracy": 0.5, "divergence": 0.25},
        "deployed": {
            "accuracy": 0.5,
            "weight_bytes": sum(sizes),
            "predicted_bytes": sum(sizes),
            "num_samples": 8,
            "relative_rms": 0.001,
        },
        "uniform": [],
        "layers": {
            name: {
                "scheme": scheme,
                "predicted_bytes": size,
                "weight_bytes": size,
                "stored": "4-bit planes",
                "executed": "Convolution int8",
            }
            for (name, scheme), size in zip(plan.layers.items(), sizes, strict=True)
        },
        "uncovered": [],
        "files": {path.name: sha256(path) for path in folder.iterdir()},
        "seconds": {"search": 0.25},
        "environment": {"python": "3.11"},
    }
    (folder / "result.json").write_text(json.dumps(content | changes))
    return Result.load(folder)
