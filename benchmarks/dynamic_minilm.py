"""all-MiniLM-L6-v2 with ranges taken at run time: bytes, likeness and latency against float; and ResNet-20's answer.

    python -m benchmarks.dynamic_minilm [--sentences 256]

No calibration data: weights take min-max scales, embedding tables too are stored in 8 bits. Needs the extra `text` and
`MIXBIT_TEXT`.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import minilm, paths
from benchmarks.resnet20 import ResNet20
from mixbit.core.batches import Inputs
from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import Scheme
from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph
from mixbit.quantization import uniform_plan
from mixbit.quantization.offers import choices_of, note_on_run_time_ranges, why_not
from mixbit.targets.latency import paired_times

#: Target -> the scheme of every layer that takes it; tables of embeddings do.
SCHEMES = {"onnxruntime": "w8a8d", "openvino": "w8a8dg32"}
BATCH = 8


def main(count: int) -> None:
    """Print the table, and what is said of a network of convolutions."""
    texts = minilm.draw(minilm.sentences(paths.require("MIXBIT_TEXT")), count, 0)
    graph = capture(minilm.load(), minilm.batches(texts[:2], 2)[0])
    batches = minilm.batches(texts, BATCH)
    with torch.no_grad():
        reference = torch.cat([graph(**batch) for batch in batches])
    table = Table("runtime", "scheme", "file, of float32", "mean cosine", "worst cosine", "ms, batch 8", "of float32")
    for target, scheme in SCHEMES.items():
        table.add_row(target, scheme, *_figures(graph, target, scheme, batches, reference))
    Console().print(table)
    print(f"ResNet-20: {resnet20_says()}")


def resnet20_says() -> str:
    """What a network of convolutions is told that asks for ranges at run time."""
    graph = capture(ResNet20().eval(), torch.zeros(2, 3, 32, 32))
    choices = choices_of("dynamic", find_target("onnxruntime"), None)
    return note_on_run_time_ranges(graph.layers, choices) or "nothing"


def _figures(
    graph: Graph, target: str, scheme: str, batches: list[dict[str, torch.Tensor]], reference: torch.Tensor
) -> tuple[str, ...]:
    arrays = [[leaf.numpy() for leaf in graph.leaves(Inputs.of(batch))] for batch in batches]
    with TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("float", "dynamic")}
        for name, folder in folders.items():
            mb.export(_quantized(graph, target, scheme if name == "dynamic" else "float"), folder)
        runners = {name: find_target(target).load(folder, graph) for name, folder in folders.items()}
        found = np.concatenate([runners["dynamic"].run(one)[0] for one in arrays])
        cosine = (found * reference.numpy()).sum(1)
        latency = paired_times({name: one.run for name, one in runners.items()}, arrays[0], "time").medians
        sizes = {
            name: sum((folder / file).stat().st_size for file in find_target(target).files)
            for name, folder in folders.items()
        }
    ratio = latency["dynamic"] / latency["float"]
    figures = (cosine.mean(), cosine.min(), latency["dynamic"])
    return (f"{sizes['dynamic'] / sizes['float']:.4f}", *(f"{one:.4f}" for one in figures), f"{ratio:.2f}")


def _quantized(graph: Graph, target: str, scheme: str) -> Graph:
    layers = graph.layers
    refused = [reason for layer in layers if (reason := why_not(layer, Scheme.parse(scheme)))]
    if refused:
        raise InvalidInput(refused[0])
    return mb.quantize(graph, uniform_plan(graph, scheme, target=target), None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=256, help="how many, drawn with seed 0")
    try:
        main(parser.parse_args().sentences)
    except InvalidInput as error:
        sys.exit(f"{error}")
