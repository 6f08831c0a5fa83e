"""Mistakes in Python: each public function with arguments of wrong types and values must raise a MixbitError.

python -m benchmarks.reliability.python_mistakes [--count N] [--seed N]
"""

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

import mixbit as mb
from benchmarks.reliability import subjects
from mixbit.pipeline import Settings
from mixbit.quantization import calibrate, uniform_plan
from mixbit.training import Training

TARGET = "packed"


# Right arguments, made once, of which each mistake replaces one or two


@cache
def model() -> torch.nn.Module:
    return subjects.model()


@cache
def batches() -> list[Any]:
    return subjects.data()


@cache
def graph() -> Any:
    return mb.capture(model(), batches()[0][0])


@cache
def calibration() -> Any:
    return calibrate(graph(), batches())


@cache
def table() -> Any:
    return mb.measure(graph(), calibration(), target=TARGET, metric="weight_error")


@cache
def plan() -> Any:
    return uniform_plan(graph(), "w8a8", target=TARGET)


@cache
def small() -> Any:
    return mb.quantize(graph(), plan(), calibration())


def auto(**changed: Any) -> Any:
    """`auto_quantize`, right but for what is changed."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": model(), "batches": batches(), "target": TARGET}
        given |= {"budget": mb.Budget(mean_bits=5), "out": Path(folder) / "out"} | changed
        return mb.auto_quantize(given.pop("model"), given.pop("batches"), **given)


def settings(**changed: Any) -> Any:
    """A run with other settings."""
    return auto(settings=Settings(**changed))


def measured(**changed: Any) -> Any:
    """`measure`, right but for what is changed."""
    given = {"graph": graph(), "batches": batches(), "target": TARGET, "metric": "weight_error"} | changed
    return mb.measure(given.pop("graph"), given.pop("batches"), **given)


def under_autocast() -> Any:
    """`measure` where torch rounds to 16 bits."""
    with torch.autocast("cpu"):
        return measured()


def quantized(**changed: Any) -> Any:
    """`quantize`, right but for what is changed."""
    given = {"graph": graph(), "plan": plan(), "batches": calibration()} | changed
    return mb.quantize(given.pop("graph"), given.pop("plan"), given.pop("batches"), **given)


def finetuned(**changed: Any) -> Any:
    """`finetune`, right but for what is changed."""
    given = {"graph": small(), "batches": batches(), "epochs": 1} | changed
    return mb.finetune(given.pop("graph"), given.pop("batches"), **given)


def pruned(**changed: Any) -> Any:
    """`prune_channels`, right but for what is changed."""
    given = {"graph": graph(), "batches": batches(), "share": 0.5} | changed
    return mb.prune_channels(given.pop("graph"), given.pop("batches"), **given)


def studied(**changed: Any) -> Any:
    """`study`, right but for what is changed."""
    with tempfile.TemporaryDirectory() as folder:
        setup = (graph(), batches(), batches())
        given = {"setup": setup, "target": TARGET, "out": folder, "num_plans": 3, "engine": mb.Engine()} | changed
        return mb.study(given.pop("setup"), **given)


def verified(**changed: Any) -> Any:
    """`verify` of a folder that `export` wrote, right but for what is changed."""
    with tempfile.TemporaryDirectory() as folder:
        mb.export(small(), Path(folder) / "out")
        given = {"path": Path(folder) / "out", "graph": graph(), "simulated": small()}
        given |= {"batches": batches()} | changed
        return mb.verify(*[given.pop(name) for name in ("path", "graph", "simulated", "batches")], **given)


def with_labels(labels: Callable[[torch.Tensor], Any]) -> list[Any]:
    """The data with other labels."""
    return [(images, labels(each)) for images, each in batches()]


#: What is written -> a function that does it.
MISTAKES: dict[str, Callable[[], Any]] = {
    "Budget()": mb.Budget,
    "Budget(4)": lambda: mb.Budget(4),
    "Budget(mean_bits='4')": lambda: mb.Budget(mean_bits="4"),
    "Budget(mean_bits=None)": lambda: mb.Budget(mean_bits=None),
    "Budget(mean_bits=True)": lambda: mb.Budget(mean_bits=True),
    "Budget(mean_bits=33)": lambda: mb.Budget(mean_bits=33),
    "Budget(mean_bits=nan)": lambda: mb.Budget(mean_bits=float("nan")),
    "Budget(mean_bit=4)": lambda: mb.Budget(mean_bit=4),
    "Budget(mean_bits=[4])": lambda: mb.Budget(mean_bits=[4]),
    "Budget(max_drop='1%')": lambda: mb.Budget(max_drop="1%"),
    "Budget(max_drop=-1)": lambda: mb.Budget(max_drop=-1),
    "Budget(weight_bytes=10**400)": lambda: mb.Budget(weight_bytes=10**400),
    "Budget(max_drop=0.1, mean_bits=4)": lambda: mb.Budget(max_drop=0.1, mean_bits=4),
    "Task('clasification')": lambda: mb.Task("clasification"),
    "Task.named(None)": lambda: mb.Task.named(None),
    "Task.named('multi:classification')": lambda: mb.Task.named("multi:classification"),
    "Task.multi('boxes')": lambda: mb.Task.multi("boxes"),
    "Task.multi({})": lambda: mb.Task.multi({}),
    "Task.multi({'boxes': 'regression'})": lambda: mb.Task.multi({"boxes": "regression"}),
    "weighted({'boxes': '2'})": lambda: mb.Task.classification().weighted({"boxes": "2"}),
    "weighted({'boxes': nan})": lambda: mb.Task.classification().weighted({"boxes": float("nan")}),
    "weighted(2)": lambda: mb.Task.classification().weighted(2),
    "with_loss('mse')": lambda: mb.Task.classification().with_loss("mse"),
    "Plan()": mb.Plan,
    "Plan(layers=3)": lambda: mb.Plan(target=TARGET, fingerprint="", layers=3),
    "Plan(layers={'conv': 4})": lambda: mb.Plan(target=TARGET, fingerprint="", layers={"conv": 4}),
    "Plan.load(None)": lambda: mb.Plan.load(None),
    "Plan.load('nowhere.json')": lambda: mb.Plan.load("nowhere.json"),
    "Plan.load('.')": lambda: mb.Plan.load("."),
    "plan.save(3)": lambda: plan().save(3),
    "plan.scheme('cov')": lambda: plan().scheme("cov"),
    "Sensitivity.load(3)": lambda: mb.Sensitivity.load(3),
    "Sensitivity(loss=list)": lambda: dataclasses.replace(table(), loss=[[1.0]]),
    "Sensitivity(seed='0')": lambda: dataclasses.replace(table(), seed="0"),
    "table.pinned('conv')": lambda: table().pinned("conv"),
    "table.pinned({'conv.weight': 4})": lambda: table().pinned({"conv.weight": 4}),
    "table.save(None)": lambda: table().save(None),
    "capture(None, x)": lambda: mb.capture(None, torch.zeros(2, 1, 6, 6)),
    "capture(model)": lambda: mb.capture(model()),
    "capture(model, None)": lambda: mb.capture(model(), None),
    "capture(model, 3)": lambda: mb.capture(model(), 3),
    "capture(model, [1, 6, 6])": lambda: mb.capture(model(), [1, 6, 6]),
    "capture(model, float64)": lambda: mb.capture(model(), torch.zeros(2, 1, 6, 6, dtype=torch.float64)),
    "capture(model, x, {0: 2})": lambda: mb.capture(model(), torch.zeros(2, 1, 6, 6), {0: 2}),
    "capture(model, x, {'y': [2]})": lambda: mb.capture(model(), torch.zeros(2, 1, 6, 6), {"y": [2]}),
    "capture(model, x, [2])": lambda: mb.capture(model(), torch.zeros(2, 1, 6, 6), [2]),
    "capture(meta, x)": lambda: mb.capture(subjects.meta(), torch.zeros(2, 1, 6, 6)),
    "capture(half, x)": lambda: mb.capture(subjects.half(), torch.zeros(2, 1, 6, 6).half()),
    "measure(model)": lambda: measured(graph=model()),
    "measure(batches=None)": lambda: measured(batches=None),
    "measure(batches='x')": lambda: measured(batches="x"),
    "measure(batches=[])": lambda: measured(batches=[]),
    "measure(batches=[3])": lambda: measured(batches=[3]),
    "measure(batches=nested)": lambda: measured(batches=subjects.deep_batches()),
    "measure(target=3)": lambda: measured(target=3),
    "measure(target=None)": lambda: measured(target=None),
    "measure(task='classes')": lambda: measured(task="classes"),
    "measure(metric=3)": lambda: measured(metric=3),
    "measure(metric='fischer')": lambda: measured(metric="fischer"),
    "measure(choices='w4a8')": lambda: measured(choices="w4a8"),
    "measure(choices=[4, 8])": lambda: measured(choices=[4, 8]),
    "measure(choices=[])": lambda: measured(choices=[]),
    "measure(seed=None)": lambda: measured(seed=None),
    "measure(seed='0')": lambda: measured(seed="0"),
    "measure(sed=0)": lambda: measured(sed=0),
    "measure under autocast": under_autocast,
    "measure(metric=fails)": lambda: measured(metric=lambda inputs: inputs.no_such_attribute),
    "measure(batches on meta)": lambda: measured(batches=subjects.on_meta()),
    "measure(sparse batches)": lambda: measured(batches=subjects.sparse()),
    "measure(no length)": lambda: measured(batches=subjects.no_length()),
    "measure(a dataset)": lambda: measured(batches=subjects.dataset()),
    "measure(batches without samples)": lambda: measured(batches=subjects.endless_empty()),
    "search(table, 4)": lambda: mb.search(table(), 4),
    "search(None, budget)": lambda: mb.search(None, mb.Budget(mean_bits=4)),
    "search(table, {'mean_bits': 4})": lambda: mb.search(table(), {"mean_bits": 4}),
    "search(method=3)": lambda: mb.search(table(), mb.Budget(mean_bits=4), method=3),
    "search(method=fails)": lambda: mb.search(table(), mb.Budget(mean_bits=5), method=lambda problem: problem.no_such),
    "search(budget of a drop)": lambda: mb.search(table(), mb.Budget(max_drop=0.1)),
    "front(table, 3)": lambda: mb.front(table(), 3),
    "front(None)": lambda: mb.front(None),
    "front(table).thinned('2')": lambda: mb.front(table()).thinned("2"),
    "front(table).within(4)": lambda: mb.front(table()).within(4),
    "front(table).within(drop)": lambda: mb.front(table()).within(mb.Budget(max_drop=0.1)),
    "front(table).plan(99999)": lambda: mb.front(table()).plan(99999),
    "quantize(plan='plan.json')": lambda: quantized(plan="plan.json"),
    "quantize(plan=dict)": lambda: quantized(plan={"conv.weight": "w4a8"}),
    "quantize(batches=3)": lambda: quantized(batches=3),
    "quantize(rounding=3)": lambda: quantized(rounding=3),
    "quantize(rounding=None)": lambda: quantized(rounding=None),
    "quantize(ranges=3)": lambda: quantized(ranges=3, batches=batches()),
    "quantize(bias_correction=True)": lambda: quantized(bias_correction=True),
    "quantize(folder=3)": lambda: quantized(folder=3),
    "quantize(seed=1.5)": lambda: quantized(seed=1.5),
    "finetune(epochs='3')": lambda: finetuned(epochs="3"),
    "finetune(epochs=True)": lambda: finetuned(epochs=True),
    "finetune(epochs=0)": lambda: finetuned(epochs=0),
    "finetune(teacher=model)": lambda: finetuned(teacher=model()),
    "finetune(settings={})": lambda: finetuned(settings={}),
    "finetune(settings of texts)": lambda: finetuned(settings=Training(lr="0.1")),
    "finetune(labels from 1)": lambda: finetuned(batches=subjects.from_one()),
    "finetune(folder=3)": lambda: finetuned(folder=3),
    "prune_channels(share='0.5')": lambda: pruned(share="0.5"),
    "prune_channels(share=50)": lambda: pruned(share=50),
    "prune_channels(graph=None)": lambda: pruned(graph=None),
    "prune_channels(iterations=1.5)": lambda: pruned(iterations=1.5),
    "export(graph in float)": lambda: mb.export(graph(), "nowhere/out"),
    "export(small, None)": lambda: mb.export(small(), None),
    "export(small, 3)": lambda: mb.export(small(), 3),
    "export(small, '/')": lambda: mb.export(small(), "/"),
    "export(small, a long name)": lambda: mb.export(small(), "a" * 300),
    "export(small, NUL)": lambda: mb.export(small(), "a\0b"),
    "export(small, force='yes')": lambda: mb.export(small(), "nowhere/out", force="yes"),
    "verify(None)": lambda: verified(path=None),
    "verify('nowhere')": lambda: verified(path="nowhere"),
    "verify(graph=model)": lambda: verified(graph=model()),
    "verify(simulated=graph)": lambda: verified(simulated=graph()),
    "verify(batches=None)": lambda: verified(batches=None),
    "verify(batches=[])": lambda: verified(batches=[]),
    "verify(task=3)": lambda: verified(task=3),
    "study(setup=None)": lambda: studied(setup=None),
    "study(num_plans='3')": lambda: studied(num_plans="3"),
    "study(num_plans=0)": lambda: studied(num_plans=0),
    "study(num_plans=10**9)": lambda: studied(num_plans=10**9),
    "study(metrics='fisher')": lambda: studied(metrics="fisher"),
    "study(near_budget=4)": lambda: studied(near_budget=4),
    "study(engine=None)": lambda: studied(engine=None),
    "study(out=None)": lambda: studied(out=None),
    "study(seed='x')": lambda: studied(seed="x"),
    "auto_quantize(model=None)": lambda: auto(model=None),
    "auto_quantize(batches='x')": lambda: auto(batches="x"),
    "auto_quantize(batches=None)": lambda: auto(batches=None),
    "auto_quantize(budget=4)": lambda: auto(budget=4),
    "auto_quantize(budget={})": lambda: auto(budget={}),
    "auto_quantize(settings={})": lambda: auto(settings={}),
    "auto_quantize(out=None)": lambda: auto(out=None),
    "auto_quantize(out=3)": lambda: auto(out=3),
    "auto_quantize(target=Path)": lambda: auto(target=Path("packed")),
    "auto_quantize(force='no')": lambda: auto(force="no"),
    "auto_quantize(eval_batches=3)": lambda: auto(eval_batches=3),
    "auto_quantize(float labels)": lambda: auto(batches=with_labels(torch.Tensor.float)),
    "auto_quantize(text labels)": lambda: auto(batches=with_labels(lambda labels: ["cat"] * len(labels))),
    "Settings(task='classes')": lambda: settings(task="classes"),
    "Settings(choices='w4a8')": lambda: settings(choices="w4a8"),
    "Settings(choices=[4])": lambda: settings(choices=[4]),
    "Settings(pins=['conv'])": lambda: settings(pins=["conv"]),
    "Settings(pins={'conv.weight': 4})": lambda: settings(pins={"conv.weight": 4}),
    "Settings(pins={'conv.weight': 'int4'})": lambda: settings(pins={"conv.weight": "int4"}),
    "Settings(score='accuracy')": lambda: settings(score="accuracy"),
    "Settings(eval_subset_ratio='1')": lambda: settings(eval_subset_ratio="1"),
    "Settings(eval_timeout_s='1')": lambda: settings(eval_timeout_s="1"),
    "Settings(equalize='no')": lambda: settings(equalize="no"),
    "Settings(epochs='3')": lambda: settings(flavour="qat", epochs="3"),
    "Settings(training={})": lambda: settings(flavour="qat", training={}),
    "Settings(train_batches=3)": lambda: settings(flavour="qat", train_batches=3),
    "Settings(dynamic=[2])": lambda: settings(dynamic=[2]),
    "Settings(seed='0')": lambda: settings(seed="0"),
    "Settings(seed=-1)": lambda: settings(seed=-1),
    "Settings(model=Path)": lambda: settings(model=Path("net.py")),
    "Settings(rounding=None)": lambda: settings(rounding=None),
    "Settings(prune_channels='0.5')": lambda: settings(prune_channels="0.5"),
}


def outcome(mistake: Callable[[], Any]) -> tuple[str, str]:
    """`refused`, `raw error` or `accepted`, and what was said."""
    try:
        value = mistake()
    except mb.MixbitError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 that is what is looked for
        return "raw error", f"{type(error).__name__}: {error}"
    return "accepted", f"returns a {type(value).__name__}"


def main() -> int:
    """Make the mistakes; 1 where one is not refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=len(MISTAKES), help="at most so many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = random.Random(options.seed).sample(list(MISTAKES), min(options.count, len(MISTAKES)))
    counts = {"refused": 0, "raw error": 0, "accepted": 0}
    for name in chosen:
        kind, said = outcome(MISTAKES[name])
        counts[kind] += 1
        if kind != "refused":
            print(f"{name}: {kind}: {said:.300}", flush=True)
    print(f"{len(chosen)} mistakes in Python: {', '.join(f'{kind} {count}' for kind, count in counts.items())}")
    return int(counts["refused"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
