"""What sharing out a study costs and saves: seconds and CPU seconds of plans on ResNet-20, by engine, all in turn.

Each study runs in a process of its own, begun afresh; CPU seconds are those of all processes that it starts. At the end
two studies in one process each run at once: what they take more than one alone is the machine's, not of sharing.

    python -m benchmarks.cluster.sharing --plans 60
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core import digest as digest_of, split_batch

ENGINES = {"1 process": mb.Engine(), "2 processes": mb.Engine(processes=2), "2 Ray workers": mb.Engine("ray", 2)}
#: Training images to calibrate on, and test images; drawn, so that all classes are among them.
CALIBRATION, TEST = 512, 2000
#: Plans of the study that compiles modules, which is not counted, and of two that show what the machine itself costs.
FEWEST, CONTROL = 3, 10
#: What every process of a study has in its environment.
MARK = "MIXBIT_SHARING_BENCHMARK"


def setup() -> tuple[Any, ...]:
    """ResNet-20, data to calibrate on, and test data."""
    source = paths.require("MIXBIT_CIFAR10")
    calibration = cifar.batches(*cifar.load_images(source, "train", CALIBRATION), 64)
    graph = mb.capture(resnet20.load(paths.require("MIXBIT_RESNET20")), split_batch(calibration[0])[0].args)
    return graph, calibration, cifar.batches(*cifar.load_images(source, "test", TEST), 500)


def cpu_seconds(known: dict[str, float]) -> None:
    """Note the CPU seconds of every process with the mark, by its number."""
    ticks = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if MARK.encode() in (path / "environ").read_bytes():
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                known[path.name] = (int(fields[11]) + int(fields[12])) / ticks


def measured(name: str, plans: int, compiled: dict[str, str], count: int = 1) -> tuple[float, float, set[str]]:
    """Seconds, CPU seconds, and digests of what studies find, without their times, of so many at once."""
    command = [sys.executable, "-m", "benchmarks.cluster.sharing", "--run", name, "--plans", str(plans), "--out"]
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        outs, known = [Path(scratch) / str(number) for number in range(count)], dict[str, float]()
        began = time.monotonic()
        for out in outs:
            out.mkdir()
        studies = [stack.enter_context(subprocess.Popen([*command, out], env=compiled | {MARK: "1"})) for out in outs]
        while any(study.poll() is None for study in studies):
            cpu_seconds(known)
            time.sleep(0.1)
        seconds = time.monotonic() - began
        if any(study.returncode for study in studies):
            sys.exit(1)
        return seconds, sum(known.values()), {(out / "digest").read_text() for out in outs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=60)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run is not None:
        study = mb.study(
            setup,
            target="packed",
            out=Path(given.out) / "study",
            choices=["w2", "w3", "w4", "w8"],
            metrics=["fisher", "fit"],
            num_plans=given.plans,
            engine=ENGINES[given.run],
        )
        spent = ("seconds", "peak_mb")
        metrics = {name: {k: v for k, v in row.items() if k not in spent} for name, row in study.metrics.items()}
        (Path(given.out) / "digest").write_text(digest_of(json.dumps([metrics, study.plans])))
        return
    digests = set[str]()
    with TemporaryDirectory() as cache:
        # as installers leave packages: their modules are compiled already, also where the environment says not to
        compiled = dict(os.environ, PYTHONPYCACHEPREFIX=cache)
        compiled.pop("PYTHONDONTWRITEBYTECODE", None)
        measured("2 Ray workers", FEWEST, compiled)
        for name in ENGINES:
            took, used, found = measured(name, given.plans, compiled)
            digests |= found
            print(f"{name}: {took:.0f} s, {used:.0f} CPU s, figures {', '.join(found)}", flush=True)
        alone, beside = (measured("1 process", CONTROL, compiled, count)[1] / count for count in (1, 2))
        print(f"a study in 1 process beside another: {beside / alone:.2f} times the CPU seconds of one alone")
    sys.exit(len(digests) > 1)


if __name__ == "__main__":
    main()
