"""Every scheme that a target takes, on the zoo's networks: written, opened again, run, compared with the simulation.

Every layer gets the scheme, or what stands for it there. A row that is kept is not made again; each network runs in a
process of its own, since converters may end theirs:

    python -m benchmarks.zoo.choices --target litert --only resnet,ds_cnn
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import mixbit as mb
from benchmarks.zoo.names import NAMES, make
from mixbit.core.batches import split_batches
from mixbit.core.errors import MixbitError, UnsupportedModel
from mixbit.core.scheme import Scheme
from mixbit.core.target import TARGETS, Target, find_target
from mixbit.graph import Graph
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.offers import why_not
from mixbit.targets.capabilities import SCHEMES

#: Small networks with all kinds of layers between them.
SUBJECTS = (
    *("resnet", "mobilenet_v2", "mlp_mixer", "unet_transposed", "autoencoder"),
    *("ds_cnn", "tcn", "lstm", "text_cnn"),
)
#: Longest seconds of one network on one target.
LONGEST_S = 1800


def schemes_of(target: Target) -> list[str]:
    """The target's own choices, and one scheme of each form that it takes, in integers or beside them."""
    every = dict.fromkeys((*target.default_choices, *SCHEMES))
    taken = []
    for scheme in every:
        with suppress(MixbitError):
            target.schemes([scheme])
            taken.append(scheme)
    return taken


def plan_of(graph: Graph, scheme: str, target: str) -> mb.Plan:
    """The scheme for every layer that can take it; the others take it without groups and zeros."""
    wanted = Scheme.parse(scheme)
    plain = wanted
    if wanted.weight is not None and wanted.weight.floating is None:
        granularity = "channel" if wanted.weight.group else wanted.weight.granularity
        weight = replace(wanted.weight, granularity=granularity, group=None, sparsity=None)
        plain = replace(wanted, weight=weight)
        if find_target(target).refuses(plain) is not None:  # inputs in groups go with weights in groups
            plain = Scheme(weight)
    plan = uniform_plan(graph, str(plain), target=target)
    takes = {layer.name for layer in graph.layers if why_not(layer, wanted, find_target(target)) is None}
    return plan.model_copy(
        update={"layers": {name: scheme if name in takes else text for name, text in plan.layers.items()}}
    )


def row_of(graph: Graph, calibration: Calibration, test: list[Any], task: str, target: str, scheme: str) -> list[Any]:
    """What became of it, share of layers with the scheme, largest relative difference, and bytes by those predicted."""
    try:
        plan = plan_of(graph, scheme, target)
        share = sum(text == scheme for text in plan.layers.values()) / len(plan.layers)
        if not share:
            return ["no layer takes it", 0.0, 0.0, 1.0]
        simulated = mb.quantize(graph, plan, calibration, task=task)
        with TemporaryDirectory() as scratch:
            mb.export(simulated, Path(scratch) / "out")
            found = mb.verify(Path(scratch) / "out", graph, simulated, test, task=task)
    except UnsupportedModel as error:
        return [f"refused: {error}"[:200], 0.0, 0.0, 1.0]
    except Exception as error:  # noqa: BLE001 whatever ends a run is a row
        return [f"{type(error).__name__}: {error}"[:200], 0.0, 0.0, 1.0]
    said = "; ".join(found.problems)[:200] or "matches"
    return [said, share, found.relative_rms, found.weight_bytes / found.predicted_bytes]


def write_rows(name: str, target: str, path: Path) -> None:
    """The rows of one network on one target, behind those that are there."""
    torch.set_num_threads(1)
    subject = make(name)
    graph = mb.capture(subject.model, split_batches(subject.model, subject.calibration)[0][0].args)
    calibration = calibrate(graph, subject.calibration)
    known = {json.loads(line)[0] for line in path.read_text("utf-8").splitlines()} if path.exists() else set()
    for scheme in schemes_of(find_target(target)):
        if scheme not in known:
            row = row_of(graph, calibration, subject.test, subject.task, target, scheme)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([scheme, *row]) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print what did not match, and the counts of each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SUBJECTS), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--target", action="append", help="may be given twice; all by default")
    parser.add_argument("--out", type=Path, default=Path("zoo-choices"), help="folder of the rows")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes
    for target in given.target or [name for name in TARGETS if name != "compressed_tensors"]:
        began, rows = time.monotonic(), []
        for name in given.only.split(","):
            path = given.out / f"{name}.{target}.jsonl"
            process = multiprocessing.get_context("spawn").Process(target=write_rows, args=(name, target, path))
            process.start()
            process.join(LONGEST_S)
            if process.exitcode != 0:
                process.kill()
                print(f"{target}, {name}: the process ended with {process.exitcode}")
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            rows += [(name, *json.loads(line)) for line in lines]
        kinds = Counter(said if said == "matches" else said.partition(":")[0] for _, _, said, *_ in rows)
        ran = [row for row in rows if row[3]]
        for name, scheme, said, *_ in rows:
            if said not in {"matches", "no layer takes it"}:
                print(f"{target}, {name}, {scheme}: {said}")
        print(
            f"{target}: {dict(kinds)}; largest difference {max((row[4] for row in ran), default=0):.2%}, bytes "
            f"{min((row[5] for row in ran), default=1):.4f} to {max((row[5] for row in ran), default=1):.4f} of those "
            f"predicted, {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
