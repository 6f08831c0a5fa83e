"""Mistakes on the command line: each must end at once, in words that say the way out, and leave nothing behind.

A mistake is told late where a loop over data or layers began that takes long (calibrate, measure, ...): each such loop
goes through `track`, whose labels are watched. A mistake is endless where it runs for longer than --seconds.

    python -m benchmarks.reliability.mistakes [--count N] [--seed N]
"""

import argparse
import contextlib
import io
import os
import random
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixbit.app import main as cli
from mixbit.core.io import terminal
from mixbit.pipeline import auto  # noqa: F401 so that no mistake's time counts the loading of torch

NET = Path(__file__).with_name("subjects.py").absolute()
#: Labels of loops before the work: data is looked at, and nothing is measured.
EARLY = ("read data", "look at outputs")


@dataclass(frozen=True)
class Mistake:
    """Words of the command line; the exit code, and words of which one part must each stand on standard error."""

    words: str
    way_out: str
    code: int = 2


def quantize(
    words: str, way_out: str, code: int = 2, *, model: str = "model", data: str = "data", budget: str = "mean_bits=5",
    target: str = "packed",
) -> Mistake:  # fmt: skip
    """`mixbit quantize` on small networks, right but for these words."""
    limits = f"--budget {budget} " if budget else ""
    given = f"quantize NET:{model} --data NET:{data} --target {target} --out OUT {limits}"
    return Mistake(given + words, way_out, code)


def measure(words: str, way_out: str, *, model: str = "model", data: str = "data") -> Mistake:
    """`mixbit measure`, right but for these words."""
    return Mistake(f"measure NET:{model} --data NET:{data} --target packed --out OUT {words}", way_out)


def study(words: str, way_out: str, *, data: str = "data", evaluate: str = "data") -> Mistake:
    """`mixbit study`, right but for these words."""
    given = f"study NET:model --data NET:{data} --eval NET:{evaluate} --target packed --processes 1 --out OUT "
    return Mistake(given + words, way_out)


#: Of usage and names: no network is loaded.
OF_WORDS = [
    Mistake("", "command"),
    Mistake("quantise", "quantize"),
    Mistake("quantize", "MODEL"),
    Mistake("quantize NET:model --dat NET:data", "--data"),
    Mistake("quantize NET:model", "--data"),
    Mistake("list metric", "metrics"),
    Mistake("list", "targets"),
    Mistake("verify NOWHERE", "NOWHERE"),
    Mistake("bench NOWHERE", "NOWHERE"),
    Mistake("bench NOWHERE --batch 0", "batch"),
    Mistake("search NOWHERE --budget mean_bits=4 --out OUT", "NOWHERE"),
    Mistake("search NET --budget mean_bits=4 --out OUT", "JSON"),
    Mistake("search NET --out OUT", "--budget"),
    Mistake("front NET --out OUT --points 1", "points"),
    Mistake("front NOWHERE --out OUT", "NOWHERE"),
    quantize("--budgets mean_bits=4", "--budget"),
    quantize("--seed -1", "seed"),
    quantize("--seed x", "seed"),
    quantize("", "mean_bits=4", budget="4"),
    quantize("", "mean_bits=4", budget="mean_bits"),
    quantize("", "mean_bits", budget="mean_bit=4"),
    quantize("", "number", budget="mean_bits=four"),
    quantize("", "2 to 32", budget="mean_bits=33"),
    quantize("", "positive", budget="mean_bits=0"),
    quantize("", "positive", budget="mean_bits=-4"),
    quantize("", "positive", budget="mean_bits=nan"),
    quantize("", "positive", budget="mean_bits=1e400"),
    quantize("", "0.25", budget="weight_ratio=25%"),
    quantize("", "0.15", budget="weight_ratio=1.5"),
    quantize("", "twice", budget="mean_bits=4 --budget mean_bits=5"),
    quantize("", "--budget", budget="mean_bits=4,weight_ratio=0.1"),
    quantize("", "--budget", budget=""),
    quantize("--max-drop 1%", "one of the two"),
    quantize("--max-drop much", "1%", budget=""),
    quantize("--max-drop 100%", "1%", budget=""),
    quantize("--max-drop -1%", "1%", budget=""),
    quantize("", "onnxruntime", target="onnx"),
    quantize("", "openvino", target="OpenVINO"),
    quantize("--metric fischer", "fisher"),
    quantize("--metric hawq:vector=2", "vectors"),
    quantize("--metric hawq:vectors=0", "at least 2"),
    quantize("--metric hawq:vectors=many", "whole number"),
    quantize("--search ilpp", "ilp"),
    quantize("--rounding breqc", "brecq"),
    quantize("--rounding brecq:iterations=-1", "at least"),
    quantize("--rounding brecq:iteration=5", "iterations"),
    quantize("--ranges percentil", "percentile"),
    quantize("--ranges percentile:share=2", "at most"),
    quantize("--bias-correction on", "at_once"),
    quantize("--importance fischer --choices w8a8@2:4", "fisher"),
    quantize("--flavour QAT", "qat"),
    quantize("--flavour qat --epochs 0", "epochs"),
    quantize("--epochs 3", "qat"),
    quantize("--flavour qat --lr 0", "positive"),
    quantize("--prune-channels 1.5", "between 0 and 1"),
    quantize("--eval-subset-ratio 0", "between 0 and 1"),
    quantize("--eval-timeout 0", "positive"),
    quantize("--choices int4", "w4a8"),
    quantize("--choices w4a9", "2 to 8"),
    quantize("--choices w4a8,w4a8", "once"),
    quantize("--choices ''", "w4a8"),
    quantize("--pin conv", "NAME=SCHEME"),
    quantize("--pin conv.weight=4", "w4a8"),
    quantize("--task clasification", "classification"),
    quantize("--task multi:classification", "OUTPUT=TASK"),
    quantize("--task multi:output=clasification", "classification"),
    quantize("--output-weight boxes", "NAME=NUMBER"),
    quantize("--output-weight output=-1", "positive"),
    quantize("--dynamic x", "INPUT:DIMENSION"),
    quantize("--nncf-config NOWHERE", "NOWHERE", budget=""),
    quantize("--score NET:scores", "score"),
    quantize("--loss NET:losss", "loss"),
    quantize("--metric NET:metrc", "metric"),
    quantize("--loss NET", "file.py:function"),
    quantize("--loss ../net:loss", "file.py:function"),
    Mistake("front NET --out OUT --resource mean_bit", "JSON"),
    Mistake("front NET --out OUT.json --picture OUT.jpg", ".png"),
    Mistake("search NET --budget mean_bits=4 --out /", "folder"),
    Mistake(f"search NET --budget mean_bits=4 --out {'x' * 300}", "name"),
    study("--metrics fischer", "fisher"),
    study("--plans 2", "plans"),
    study("--processes 0", "processes"),
    study("--near-budget mean_bits", "mean_bits=4"),
    measure("--metric fischer", "fisher"),
    measure("--ranges percentil", "percentile"),
    Mistake("quantize NOWHERE.py:model --data NET:data --target packed --out OUT --budget mean_bits=4", "NOWHERE"),
    Mistake("quantize NET --data NET:data --target packed --out OUT --budget mean_bits=4", "file.py:function"),
    Mistake("quantize '\x1b[31m.py:model' --data NET:data --target packed --out OUT --budget mean_bits=4", "\\x1b[31m"),
    Mistake("quantize caf\udce9.py:model --data NET:data --target packed --out OUT --budget mean_bits=4", "caf"),
]
#: Of the network, its data and its functions.
OF_NETWORKS = [
    quantize("", "did you mean model", model="modle"),
    quantize("", "constant", model="constant"),
    quantize("", "nn.Module", model="of_class"),
    quantize("", "nn.Module", model="training_state"),
    quantize("", "not initialised", model="meta"),
    quantize("", "float()", model="double"),
    quantize("", "float()", model="half"),
    quantize("", "train or load", model="not_a_number"),
    quantize("", "no layer", model="no_layers"),
    quantize("", "torch.where", model="branching"),
    quantize("", "another target", model="unknown_operator", target="onnxruntime"),
    quantize("", "another target", model="unknown_operator", target="openvino"),
    quantize("", "rename", model="not_utf8"),
    quantize("", "calls itself", model="too_deep"),
    quantize("", "the user's own error", model="fails"),
    quantize("", "SystemExit", model="exits"),
    quantize("--device gpu", "cuda"),
    quantize("--device cuda:9", "cpu"),
    quantize("--device cud", "cuda"),
    quantize("--pin conv.weigth=w4a8", "did you mean conv.weight"),
    quantize("--pin nothing.*=w4a8", "conv.weight"),
    quantize("--pin conv.weight=w4g7a8", "group 7"),
    quantize("--pin conv.weight=w4a8d", "static"),
    quantize("--task language", "classification"),
    quantize("--task segmentation", "classification"),
    quantize("--task multi:logit=classification", "did you mean logits", model="two_outputs"),
    quantize("--output-weight boxs=2", "did you mean boxes", model="two_outputs"),
    quantize("--output-weight boxes=2", "output"),
    quantize("--output-weight output=0", "weight 0"),
    quantize("--dynamic 0:1", "the model"),
    quantize("--dynamic 0:9", "dimension"),
    quantize("--dynamic 0:0", "dimension"),
    quantize("--dynamic 0:2", "the model"),
    quantize("--dynamic y:2", "x"),
    quantize("", "whole class numbers", data="soft"),
    quantize("", "whole class numbers", data="float_labels"),
    quantize("", "0..2", data="from_one"),
    quantize("", "batch 6", data="late_label"),
    quantize("", "one entry a sample", data="few_labels"),
    quantize("", "one a position", data="column_labels"),
    quantize("", "tensor", data="label_list"),
    quantize("", "tensor", data="texts"),
    quantize("", "float()", data="doubles"),
    quantize("", "float()", data="integers"),
    quantize("", "channels", data="three_channels"),
    quantize("", "batch 6", data="late_shape"),
    quantize("", "NaN", data="late_nan"),
    quantize("", "torch.from_numpy", data="arrays"),
    quantize("", "image", data="unnamed"),
    quantize("", "at least one", data="empty"),
    quantize("", "no sample", data="no_samples"),
    quantize("", "list", data="single"),
    quantize("", "list", data="mapping"),
    quantize("", "the disk is gone", data="stops"),
    quantize("", "nested", data="deep_batches"),
    quantize("", "samples", data="endless"),
    quantize("", "no sample", data="endless_empty"),
    quantize("", "meta", data="on_meta"),
    quantize("", "to_dense", data="sparse"),
    quantize("", "no length", data="no_length"),
    quantize("", "DataLoader(dataset", data="dataset"),
    quantize("", "picture 7 is gone", data="failing_workers"),
    quantize("--flavour qat --train NET:once", "start again"),
    quantize("--eval NET:on_meta", "meta"),
    quantize("--loss NET:loss", "labels", data="unlabelled"),
    quantize("--loss NET:loss", "labels", data="half_labelled"),
    quantize("--metric fit:labels=true --loss NET:loss", "labels", data="unlabelled"),
    quantize("--loss NET:loss_number", ".item()"),
    quantize("--loss NET:loss_rows", "mean of the batch"),
    quantize("--loss NET:loss_detached", "differentiated"),
    quantize("--loss NET:loss_one", "the loss fails"),
    quantize("--loss NET:loss_none", "return a tensor"),
    quantize("--loss NET:loss_nan", "finite"),
    quantize("--score NET:score_fails --search mixquant", "no_such_attribute"),
    quantize("--score NET:score_none --max-drop 0.1", "number", budget=""),
    quantize("--score NET:score_text --max-drop 0.1", "number", budget=""),
    quantize("--score NET:score_nan --max-drop 0.1", "finite", budget=""),
    quantize("--score NET:score_rows --max-drop 0.1", "number", budget=""),
    quantize("--score NET:score_one --max-drop 0.1", "evaluation function", budget=""),
    quantize("--score NET:score --max-drop 1%", "give a number", budget=""),
    quantize("--max-drop 1%", "give a number", data="unlabelled", budget=""),
    quantize("--max-drop 2", "less than 1", budget=""),
    quantize("--eval NET:empty", "at least one"),
    quantize("--eval NET:from_one", "0..2"),
    quantize("--eval NET:late_shape", "batch 6"),
    quantize("--flavour qat --train NET:three_channels", "to train on"),
    quantize("--flavour qat --train NET:from_one", "0..2"),
    quantize("--flavour dynamic --prune-channels 0.5", "layer", model="no_layers"),
    quantize("", "reachable", 3, budget="weight_bytes=1"),
    quantize("", "reachable", 3, budget="mean_bits=1"),
    quantize("", "reachable", 3, budget="file_bytes=1"),
    quantize("", "reachable", 3, budget="bit_ops=1"),
    quantize("", "reachable", 3, budget="bit_ops_ratio=1000"),
    quantize("", "reachable", 3, budget="activation_bytes=1"),
    measure("--metric hawq", "0..2", data="from_one"),
    measure("", "batch 6", data="late_shape"),
    measure("--metric hawq", "labels", data="unlabelled"),
    measure("--loss NET:loss_rows", "mean of the batch"),
    measure("--task multi:boxes=regression", "output"),
    measure("", "float()", model="double"),
    study("--near-budget latency_ms=1", "mean_bits"),
    study("--near-budget max_drop=1", "mean_bits"),
    study("", "0..2", evaluate="from_one"),
    study("", "0..2", data="from_one"),
    study("--loss NET:loss_rows", "mean of the batch"),
]
ALL = (*OF_WORDS, *OF_NETWORKS)


class Stopped(BaseException):
    """The time is up; a BaseException, since the command may catch every Exception."""


def stop(*_: object) -> None:
    raise Stopped


def outcome(mistake: Mistake, seconds: int = 60) -> list[str]:
    """What is wrong with the command's answer, if anything, and last the answer."""
    labels: list[str] = []

    class Watched(terminal.Progress):
        def add_task(self, description: str, *args, **options):
            labels.append(description)
            return super().add_task(description, *args, **options)

    said, faults = io.StringIO(), []
    with tempfile.TemporaryDirectory() as folder, watched(Watched):
        before, streams = os.getcwd(), (sys.stdout, sys.stderr)
        os.chdir(folder)
        words = [word.replace("NET", str(NET)).replace("OUT", "out") for word in shlex.split(mistake.words)]
        sys.argv = ["mixbit", *words]
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again, in case it was caught
        status: object = None
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                cli.main()
        except SystemExit as end:
            status = end.code
        except Stopped:
            faults.append("endless")
        except BaseException:  # noqa: BLE001 that is what is looked for
            faults.append("traceback")
            said.write(traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.chdir(before)
            sys.stdout, sys.stderr = streams  # code that was stopped may have left its own
        if left := sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()):
            faults.append(f"left behind {left}")
    late = [label for label in labels if not label.startswith(EARLY)]
    if late:
        faults.append(f"late ({late[0]})")
    if not faults and status != mistake.code:
        faults.append(f"code {status}")
    if "traceback" not in faults and mistake.way_out.lower() not in said.getvalue().lower():
        faults.append("no way out")
    if any(ord(char) < 32 and char != "\n" for char in said.getvalue()):
        faults.append("terminal codes")
    return [*faults, said.getvalue().strip()] if faults else []


@contextlib.contextmanager
def watched(progress: type) -> Iterator[None]:
    original = terminal.Progress
    terminal.Progress = progress
    try:
        yield
    finally:
        terminal.Progress = original


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=len(ALL), help="at most so many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60, help="longest time of one")
    parser.add_argument("--only", default="", help="those whose words hold this text")
    options = parser.parse_args()
    chosen = [mistake for mistake in ALL if options.only in mistake.words]
    chosen = random.Random(options.seed).sample(chosen, min(options.count, len(chosen)))
    counts = dict.fromkeys(("traceback", "late", "endless", "no way out", "code", "left behind", "terminal codes"), 0)
    for mistake in sorted(chosen, key=ALL.index):
        faults = outcome(mistake, options.seconds)
        if faults:
            print(
                f"mixbit {mistake.words!r}: {', '.join(faults[:-1])}; wanted {mistake.way_out!r}\n    {faults[-1]}",
                flush=True,
            )
        for kind in counts:
            counts[kind] += any(fault.startswith(kind) for fault in faults[:-1])
    print(f"{len(chosen)} mistakes on the command line: {', '.join(f'{kind} {n}' for kind, n in counts.items())}")
    return int(any(counts.values()))


if __name__ == "__main__":
    sys.exit(main())
