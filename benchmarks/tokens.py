"""Tokens per second of SmolLM2-135M at batch 1: weights of 4 bits in groups of 32 against weights of 8 bits.

    python -m benchmarks.tokens [--target onnxruntime] [--threads 1]

One step without a cache of keys: it reads every weight once, as each step of a language model does. Both schemes round
inputs to 8 bits in groups of 32 at run time, as the runtimes' own compressed files do. The files run in turn. The exit
code is 1 if 4 bits are less than LEAST times as fast for sure.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import mixbit as mb
from benchmarks.latency import FILES, onnxruntime_run, openvino_run
from mixbit.core import find_target
from mixbit.quantization import uniform_plan
from mixbit.targets.latency import paired_times

#: Of 4 bits, its narrow scheme and the one of 8 bits that the runtime executes best.
SCHEMES = {"openvino": ("w4g32a8dg32", "w8a8dg32"), "onnxruntime": ("w4g32a8dg32", "w8g32a8dg32")}
LEAST = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", action="append", choices=list(FILES), help="may be given twice; both by default")
    parser.add_argument("--threads", type=int, action="append", help="may be given twice; 1 and 2 by default")
    given = parser.parse_args()
    from benchmarks.networks.smollm2 import WORDS, SmolLM2  # noqa: PLC0415 it needs packages of its own

    torch.manual_seed(0)
    failed, graph = False, mb.capture(SmolLM2().eval(), torch.randint(0, WORDS, (2, 3)), dynamic={0: (1,)})
    step = [torch.randint(0, WORDS, (1, 1)).numpy()]
    for target in given.target or FILES:
        with TemporaryDirectory() as scratch:
            files = {}
            for scheme in SCHEMES[target]:
                plan = uniform_plan(graph, scheme, target=target)
                folder = Path(scratch) / scheme
                folder.mkdir()
                find_target(target).write(mb.quantize(graph, plan, None), folder)
                files[scheme] = folder / FILES[target]
            for threads in given.threads or (1, 2):
                load = {"openvino": openvino_run, "onnxruntime": onnxruntime_run}[target]
                runs = {scheme: load(file, step, threads) for scheme, file in files.items()}
                times = paired_times(runs, step, "time")
                narrow, wide = SCHEMES[target]
                ratio = times.ratio(wide, of=narrow)
                failed |= ratio.high < LEAST
                rates = ", ".join(f"{scheme} {1000 / ms:.1f}" for scheme, ms in times.medians.items())
                print(f"{target}, {threads} threads: tokens per second {rates}; ratio {ratio}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
