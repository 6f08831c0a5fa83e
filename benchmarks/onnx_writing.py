"""What it costs to make the ONNX model of a quantized graph, and how large the file is.

    python -m benchmarks.onnx_writing

CPU seconds of one thread, the first time in the process and the median of the others; nodes and bytes of the file.
Weights are random: they change nothing here. Exits with 1 if ResNet-20 takes more than MOST_SECONDS, first or later.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from torch import Tensor, nn

import mixbit as mb
from benchmarks.gpt import CONTEXT, Network
from benchmarks.resnet20 import ResNet20
from mixbit.graph import Graph
from mixbit.quantization import uniform_plan
from mixbit.targets._onnx import converted

MOST_SECONDS = 0.5
CHARACTERS = 65
#: Network -> how to make it, and a batch of its inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-20": (ResNet20, lambda: torch.randn(8, 3, 32, 32)),
    "GPT": (lambda: Network(CHARACTERS), lambda: torch.randint(CHARACTERS, (8, CONTEXT))),
}


def quantized(name: str, scheme: str) -> Graph:
    """The network with one scheme everywhere, simulated."""
    torch.manual_seed(0)
    make, draw = NETWORKS[name]
    batch = draw()
    graph = mb.capture(make().eval(), batch)
    return mb.quantize(graph, uniform_plan(graph, scheme, target="onnxruntime"), [batch])


def seconds(graph: Graph, count: int) -> list[float]:
    """CPU seconds of each conversion."""
    times = []
    for _ in range(count):
        began = time.process_time()
        converted(graph)
        times.append(time.process_time() - began)
    return times


def size(graph: Graph) -> tuple[int, int]:
    """Nodes and bytes of the file."""
    model = converted(graph)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        return len(model.graph), path.stat().st_size


def main() -> None:
    """Print a row for each network and scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6, help="conversions of each graph, the first among them")
    count = max(parser.parse_args().count, 2)
    torch.set_num_threads(1)
    slowest = 0.0
    print(f"{'network':12}{'scheme':8}{'first s':>9}{'median s':>10}{'nodes':>7}{'bytes':>11}")
    for name in NETWORKS:
        for scheme in ("w4a8", "w8a8"):
            graph = quantized(name, scheme)
            first, *others = seconds(graph, count)
            nodes, file_bytes = size(graph)
            later = statistics.median(others)
            print(f"{name:12}{scheme:8}{first:9.3f}{later:10.3f}{nodes:7}{file_bytes:11,}")
            slowest = max(slowest, first, later) if name == "ResNet-20" else slowest
    print(f"ResNet-20 took at most {slowest:.3f} s; it must take at most {MOST_SECONDS} s")
    sys.exit(int(slowest > MOST_SECONDS))


if __name__ == "__main__":
    main()
