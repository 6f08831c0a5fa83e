"""Mutated files of every kind that mixbit reads: each is refused by a MixbitError, or read as what it still is.

Run: python -m benchmarks.reliability.fuzz --count 100000 --seed 0

A wrong success is a file that is taken up although it is no strict JSON, does not come back from saving as it was read,
or contradicts what else is known of it: a digest, the order of a front, what verifying measures. Of files that people
may edit (plan, table, NNCF's configuration) another value is another plan, and right. `verify` sees the artefact and
the check set twice: with the digest of result.json as it was, and with that of the mutated file.
"""

import argparse
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import nn

import mixbit as mb
from benchmarks.reliability.mutations import (
    Pairs,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_safetensors,
    parsed,
)
from mixbit.app.nncf import read_nncf_config
from mixbit.core import (
    Journal,
    MixbitError,
    Plan,
    Scheme,
    Sensitivity,
    Store,
    find_target,
)
from mixbit.metric_study.folder import SETTINGS, Prediction, StudyFolder, Truth
from mixbit.pipeline import Settings
from mixbit.results import recheck as rechecks
from mixbit.results.check_set import CheckSet
from mixbit.results.recheck import recheck
from mixbit.results.result import Result
from mixbit.searches.front import Front

#: Of one file: seconds, and bytes of memory more than before.
SECONDS, BYTES = 10.0, 2**30
#: Files of one process.
CHUNK = 10_000
#: Parts of a result that nothing measures again.
TOLD = {
    "model", "chosen", "float_", "untrained", "uniform", "pruned", "uncovered", "seconds", "latency_ratio",
    "environment", "task", "command", "settings", "preprocessing", "ports", "problems", "divergences",
    "changed",
}  # fmt: skip
ABOUT = {"target": "packed", "network": "0123456789abcdef"}
STUDY = {"weights": "0123456789abcdef", "calibration": "4567", "evaluation": "89ab", "choices": ["w4a8", "w8a8"]}
NNCF = {
    "target_device": "CPU",
    "compression": {
        "algorithm": "quantization",
        "weights": {"mode": "symmetric", "bits": 8},
        "initializer": {"precision": {"type": "hawq", "bits": [4, 8], "iter_number": 40, "compression_ratio": 1.5}},
        "ignored_scopes": ["Net/NNCFLinear[fc]/linear_0"],
    },
}


class Subject(NamedTuple):
    """A kind of file.

    Attributes:
        content: What is mutated.
        mutate: By what is in it, beside `mutated_bytes`.
        read: (content) -> what the public entry makes of a file of it; raises MixbitError.
        right: (what was read, content) -> whether that success is right.
        share: How often it is taken.
    """

    content: bytes
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], Any]
    right: Callable[[Any, bytes], bool]
    share: int


def strict(content: bytes) -> bool:
    """Whether each key of the JSON stands once, and every number is finite."""

    def holds(value: Any) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        if isinstance(value, Pairs):
            return len({key for key, _ in value}) == len(value) and all(holds(each) for _, each in value)
        return not isinstance(value, list) or all(map(holds, value))

    return holds(parsed(content))


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is one: opening a file on a disk takes most of a case's time."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as place:
        yield Path(place)


def subjects(place: Path, replace: Callable[[Any, str, Any], object] = setattr) -> dict[str, Subject]:  # noqa: PLR0915 a list of kinds
    """Every kind of file, of one small run with target packed in that folder; its network is captured once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    batches = [(images := torch.randn(8, 1, 6, 6), net(images).argmax(1)) for _ in range(4)]
    settings = Settings(choices=["w2a8", "w4a8", "w8a8"], metric="weight_error")
    run = mb.auto_quantize(
        net, batches, target="packed", budget=mb.Budget(mean_bits=5), out=place / "run", settings=settings
    )
    graph = mb.capture(net, batches[0][0])
    capture, inputs = rechecks.capture, CheckSet.load(run.folder).inputs

    def quick(model: nn.Module, example: Any) -> Any:  # a second for each file, else
        return graph if example.describe() == inputs.describe() else capture(model, example)

    replace(rechecks, "capture", quick)
    whole = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    mb.front(run.table).save(place / "front.json")
    journal = Journal(place / "trials.jsonl", ABOUT)
    for number in range(3):
        journal.score_of(["w4a8", f"w{number + 2}a8"], lambda number=number: number / 8)
    part = {"a": torch.randn(4, 4), "b": torch.arange(3)}, {"losses": [1.0, 0.5]}
    Store(place / "store").put("part", {"seed": 0}, *part)
    study = StudyFolder(place / "study", STUDY, force=False)
    truth = Truth(layers=run.plan.layers, accuracy=0.5, kl=0.25, loss=None, judged_by="kl", halves=(0.2, 0.3))
    measured = {name: getattr(run.table, name) for name in ("num_samples", "loss", "standard_error")}
    prediction = Prediction(code="0123456789abcdef", seconds=1.5, peak_mb=None, **measured)
    study.save("plans", "random-0", truth)
    study.save("metrics", "fisher", prediction)
    packed = find_target("packed")
    expected = packed.load(run.folder, graph).run([batches[0][0].numpy()])[0]

    def file(name: str, load: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        def read(content: bytes) -> Any:
            (place / name).write_bytes(content)
            return load(place / name)

        return read

    def verified(name: str, *, repaired: bool) -> Callable[[bytes], Any]:
        """`verify` of the folder with that file, under the digest of the mutated file if that is `repaired`."""

        def read(content: bytes) -> Any:
            for other, original in whole.items():
                (run.folder / other).write_bytes(original)
            (run.folder / name).write_bytes(content)
            if repaired:
                result = json.loads(whole["result.json"])
                result["files"][name] = hashlib.sha256(content).hexdigest()
                (run.folder / "result.json").write_text(json.dumps(result))
            recheck(run.folder, model=net).check()
            return content

        return read

    def same_network(*_: Any) -> bool:
        given = packed.load(run.folder, graph).run([batches[0][0].numpy()])[0]
        return bool(((given - expected) ** 2).mean() ** 0.5 <= 0.1 * expected.std())

    def same_promises(_: Any, content: bytes) -> bool:
        (run.folder / "result.json").write_bytes(content)
        read, original = (part.model_dump(exclude=TOLD) for part in (Result.load(run.folder), run.result))
        for part in (read, original):
            for name in ("max_abs_diff", "at_default_settings", "amplification", "latency_ms", "score", "divergence"):
                part["deployed"].pop(name, None)  # of one machine and one run
            for name in ("divergence", "score"):
                part["simulated"].pop(name, None)
            for row in part["layers"].values():
                row.pop("executed")
            for name in ("sensitivity.json", "README.md", "report.html"):  # which verifying does not need
                part["files"].pop(name, None)
            for name in ("relative_rms", "accuracy", "agreement"):
                part["deployed"][name] = round(part["deployed"][name], 1)
            part["simulated"]["accuracy"] = round(part["simulated"]["accuracy"], 1)
            part["outputs"] = part["outputs"].keys()
        return strict(content) and read == original

    def again(cls: Any) -> Callable[[Any, bytes], bool]:
        form = TypeAdapter(cls)

        def right(value: Any, content: bytes) -> bool:
            value.save(place / "again.json")
            return strict(content) and form.dump_json(cls.load(place / "again.json")) == form.dump_json(value)

        return right

    def load_front(path: Path) -> Front:
        front = Front.load(path)
        for point in (0, len(front) - 1):
            front.plan(point)
        front.within(mb.Budget(**{front.resource: 1e99}))
        return front.thinned(2)

    def right_front(front: Front, content: bytes) -> bool:
        return strict(content) and (front.figures["loss"][:1] >= front.figures["loss"][-1:]).all()

    def right_nncf(config: Any, content: bytes) -> bool:
        return strict(content) and all(map(Scheme.parse, (*config.choices, *config.pins.values())))

    def from_result(load: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        def read(content: bytes) -> Any:
            (place / "apart").mkdir(exist_ok=True)
            for name in ("result.json", "check.safetensors"):
                (place / "apart" / name).write_bytes(content)
            return load(place / "apart")

        return read

    def right_part(given: Any, _: bytes) -> bool:
        tensors, notes = part
        same = given is not None and (given.notes, given.tensors.keys()) == (notes, tensors.keys())
        return given is None or (same and all(torch.equal(given.tensors[name], tensors[name]) for name in tensors))

    def same_settings(_: Any, content: bytes) -> bool:
        return strict(content) and json.loads(content).items() >= STUDY.items()

    store = place / "store" / "part.safetensors"
    texts = {name: (place / name).read_bytes() for name in ("front.json", "trials.jsonl")}
    about_study, of_plan, of_metric = (
        f"study/{name}" for name in (SETTINGS, "plans/random-0.json", "metrics/fisher.json")
    )
    check, artefact = whole["check.safetensors"], whole["model.safetensors"]
    return {
        "plan": Subject(whole["plan.json"], mutated_json, file("plan.json", Plan.load), again(Plan), 12),
        "table": Subject(
            whole["sensitivity.json"], mutated_json, file("table.json", Sensitivity.load), again(Sensitivity), 12
        ),
        "front": Subject(texts["front.json"], mutated_json, file("front.json", load_front), right_front, 12),
        "result": Subject(
            whole["result.json"], mutated_json, from_result(Result.load), lambda _, content: strict(content), 12
        ),
        "NNCF": Subject(
            json.dumps(NNCF).encode(),
            mutated_json,
            file("nncf.json", lambda path: read_nncf_config(path, packed)),
            right_nncf,
            12,
        ),
        "journal": Subject(
            texts["trials.jsonl"],
            mutated_lines,
            file("trials.jsonl", lambda path: Journal(path, ABOUT).scores),
            lambda scores, _: scores.items() <= journal.scores.items(),
            12,
        ),
        "store": Subject(
            store.read_bytes(),
            mutated_safetensors,
            file("store/part.safetensors", lambda path: Store(path.parent).get("part", {"seed": 0})),
            right_part,
            12,
        ),
        "study": Subject(
            (place / about_study).read_bytes(),
            mutated_json,
            file(about_study, lambda path: StudyFolder(path.parent, STUDY, force=False)),
            same_settings,
            4,
        ),
        "study's plan": Subject(
            (place / of_plan).read_bytes(),
            mutated_json,
            file(of_plan, lambda _: study.truth("random-0", run.plan)),
            lambda found, content: strict(content) and found == truth,
            6,
        ),
        "study's metric": Subject(
            (place / of_metric).read_bytes(),
            mutated_json,
            file(of_metric, lambda _: study.prediction("fisher", prediction.code, run.table)),
            lambda found, content: strict(content) and found.model_dump_json() == prediction.model_dump_json(),
            6,
        ),
        "check": Subject(check, mutated_safetensors, from_result(CheckSet.load), lambda *_: True, 10),
        "verify result": Subject(
            whole["result.json"], mutated_json, verified("result.json", repaired=False), same_promises, 2
        ),
        "verify artefact": Subject(
            artefact, mutated_safetensors, verified("model.safetensors", repaired=False), lambda *_: False, 2
        ),
        "verify artefact, digest repaired": Subject(
            artefact, mutated_safetensors, verified("model.safetensors", repaired=True), same_network, 1
        ),
        "verify check set, digest repaired": Subject(
            check, mutated_safetensors, verified("check.safetensors", repaired=True), lambda *_: True, 1
        ),
    }


class _Hang(BaseException):
    """Not an Exception, which code may catch."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def attack(
    kinds: dict[str, Subject], cases: range, seed: int, see: Callable[[int], object] = lambda _: None
) -> tuple[Counter[str], list[str]]:
    """How the cases end: `refused`, `taken`, and `raw`, `hang`, `memory` and `wrong`, each of which is told too."""
    names, shares = [*kinds], [subject.share for subject in kinds.values()]
    ends, told = Counter[str](), list[str]()
    for case in cases:
        see(case)
        rng = random.Random(f"{seed} {case}")
        name = rng.choices(names, shares)[0]
        subject = kinds[name]
        content = subject.content
        while content == subject.content:
            content = (mutated_bytes if rng.random() < 0.4 else subject.mutate)(subject.content, rng)
        reason = ""
        try:
            with _limited(SECONDS), warnings.catch_warnings(action="error"):
                value = subject.read(content)
                end = "taken" if subject.right(value, content) else "wrong"
        except MixbitError:
            end = "refused"
        except _Hang:
            end = "hang"
        except MemoryError:
            end = "memory"
        except Exception as error:  # noqa: BLE001 what is looked for
            end, reason = "raw", f"{type(error).__name__}: {str(error)[:200]}"
        ends[end] += 1
        ends[f"{name}: {end}"] += 1
        if end not in ("refused", "taken"):
            told.append(f"case {case}, {name}: {end} {reason}")
    return ends, told


def _work(first: int, last: int, seed: int, progress: Path) -> None:
    """One process: what it found, in a line of JSON."""
    with quick_folder() as place:
        kinds = subjects(place)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        ends, told = attack(kinds, range(first, last), seed, lambda case: progress.write_text(str(case)))
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(json.dumps({"ends": ends, "told": told, "more": more}))


def _fuzz(count: int, seed: int) -> int:
    """Run all, process after process; return how many ended as they must not."""
    ends, told, first, more, started = Counter[str](), list[str](), 0, 0, time.perf_counter()
    with TemporaryDirectory() as scratch:
        progress = Path(scratch) / "progress"
        while first < count:
            last = min(first + CHUNK, count)
            progress.write_text(str(first))
            words = ["-m", __spec__.name, "--work", str(first), str(last), "--seed", str(seed), "--out", str(progress)]
            try:
                done = subprocess.run(
                    [sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False, timeout=3600
                )
                found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
                end = "crash"
            except subprocess.TimeoutExpired:
                found, end = None, "hang"
            if found is None:  # its earlier cases are counted when it is run up to there
                case = int(progress.read_text())
                ends[end] += 1
                told.append(f"case {case}: {end}")
                first = case + 1
                continue
            ends.update(found["ends"])
            told += found["told"]
            more, first = max(more, found["more"]), last
            print(f"{first:,} of {count:,}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    kinds = sorted({key.partition(": ")[0] for key in ends if ": " in key})
    for kind in kinds:
        print(f"{kind:36}", *(f"{end} {ends[f'{kind}: {end}']:,}" for end in ("refused", "taken")))
    print(*told[:50], sep="\n")
    bad = {end: ends[end] for end in ("raw", "crash", "hang", "memory", "wrong")}
    print(
        f"{count:,} mutated files in {time.perf_counter() - started:.0f} s, seed {seed}: {bad['raw']} raw errors, "
        f"{bad['crash']} crashes, {bad['hang']} hangs, {bad['memory']} over 1 GB "
        f"(most {more / 2**20:.0f} MB above the run itself), {bad['wrong']} wrong successes"
    )
    return sum(bad.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        _work(*given.work, given.seed, given.out)
    else:
        sys.exit(_fuzz(given.count, given.seed) > 0)
