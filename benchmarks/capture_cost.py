"""CPU seconds of capturing a network and of making files of it, in one thread: ResNet-20 and a small transformer.

Run as `python -m benchmarks.capture_cost`. With random weights. Prints the median of `--count` runs of `capture` and of
the conversion to OpenVINO, and how often one `auto_quantize` calls torch.export. Exits with 1 where that is more than
once.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import mixbit as mb
from benchmarks.resnet20 import ResNet20
from mixbit.graph import model_fingerprint
from mixbit.graph.capture import capture
from mixbit.targets._openvino import converted
from mixbit.targets.openvino import TYPES


class Transformer(nn.Module):
    """As MiniLM: 6 layers of width 384 with 12 heads, of 512 words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(512, 384)
        layer = nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.classes = nn.Linear(384, 4)

    def forward(self, words: Tensor) -> Tensor:
        """Map words [N, T] to logits [N, 4]."""
        return self.classes(self.encoder(self.words(words)).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5)
    count = parser.parse_args().count
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks: dict[str, tuple[nn.Module, Tensor]] = {
        "ResNet-20": (ResNet20().eval(), torch.randn(8, 3, 32, 32)),
        "transformer": (Transformer().eval(), torch.randint(512, (8, 32))),
    }
    print("| network | capture | to OpenVINO | exports, openvino | exports, onnxruntime |")
    print("|---|---|---|---|---|")
    right = True
    for name, (network, x) in networks.items():
        graph = capture(network, x)
        layers = dict.fromkeys((layer.name for layer in graph.layers), "w8a8")
        plan = mb.Plan(target="openvino", fingerprint=model_fingerprint(graph.layers), layers=layers)
        simulated = mb.quantize(graph, plan, [x])
        seconds = [
            cpu_seconds(partial(capture, network, x), count),
            cpu_seconds(partial(converted, simulated, TYPES), count),
        ]
        exports = [num_exports(network, x, target) for target in ("openvino", "onnxruntime")]
        right = right and exports == [1, 1]
        print(f"| {name} | {' | '.join(f'{each:.2f} s' for each in seconds)} | {exports[0]} | {exports[1]} |")
    raise SystemExit(0 if right else 1)


def cpu_seconds(run: Callable[[], Any], count: int) -> float:
    """The median of several runs."""
    seconds = []
    for _ in range(count):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def num_exports(network: nn.Module, x: Tensor, target: str) -> int:
    """How often one `auto_quantize` calls torch.export."""
    counting = mock.patch("torch.export.export", wraps=torch.export.export)
    with tempfile.TemporaryDirectory() as folder, counting as export:
        mb.auto_quantize(network, [x, x], target=target, budget=mb.Budget(mean_bits=6), out=f"{folder}/out")
    return export.call_count


if __name__ == "__main__":
    main()
