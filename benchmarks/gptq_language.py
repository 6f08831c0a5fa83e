"""GPTQ beside nearest rounding on a causal language model of characters: loss on held-out text.

    python -m benchmarks.gptq_language                           # w4g32, and w4, w3g32, w2g32 for comparison
    python -m benchmarks.gptq_language --schemes w4g32 --windows 64

The network is the one of benchmarks.gpt (`MIXBIT_GPT`, which `python -m benchmarks.gpt` writes), calibrated on windows
of the text that it was trained on (`MIXBIT_TEXT`); the loss is that of 512 windows of the held-out tenth. Every layer
takes the same scheme, the embedding too, whose weights are rounded to the nearest; "all but the embedding" leaves that
one in float. Inputs of layers stay in float.
"""

import argparse
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import mixbit as mb
from benchmarks import gpt, paths
from mixbit.core.batches import Inputs
from mixbit.graph.graph import Graph, model_fingerprint

ROUNDINGS = ("nearest", "gptq")
EMBEDDING = "characters.weight"


def held_out_loss(graph: Graph) -> float:
    """Nats a character of held-out text."""
    with torch.no_grad():
        losses = [
            functional.cross_entropy(graph(x).flatten(0, 1), y.flatten())
            for x, y in gpt.held_out_batches(paths.require("MIXBIT_TEXT"), 512, 64)
        ]
    return float(torch.stack(losses).mean())


def plan_of(graph: Graph, scheme: str, *, embedding: bool) -> mb.Plan:
    """That scheme for every layer, or for all but the embedding."""
    layers = graph.layers
    schemes = {layer.name: scheme if embedding or layer.name != EMBEDDING else "float" for layer in layers}
    return mb.Plan(target="packed", fingerprint=model_fingerprint(layers), layers=schemes)


def row(graph: Graph, batches: list[Inputs], scheme: str, *, embedding: bool) -> tuple[str, ...]:
    """Loss and seconds of each rounding."""
    cells = []
    for rounding in ROUNDINGS:
        began = time.perf_counter()
        small = mb.quantize(graph, plan_of(graph, scheme, embedding=embedding), batches, rounding=rounding)
        cells += [f"{held_out_loss(small):.4f}", f"{time.perf_counter() - began:.0f}"]
    return (scheme, "all" if embedding else "all but the embedding", *cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["w4g32", "w4", "w3g32", "w2g32"])
    parser.add_argument("--windows", type=int, default=128)
    given = parser.parse_args(arguments)
    source = paths.require("MIXBIT_TEXT")
    windows, _ = gpt.windows(gpt.encoded(source)[0], given.windows, torch.Generator().manual_seed(0))
    batches = [Inputs.of(part) for part in windows.split(32)]
    graph = mb.capture(gpt.load(paths.require("MIXBIT_GPT"), source), windows[:2])
    columns = [text for rounding in ROUNDINGS for text in (rounding, "seconds")]
    table = Table("scheme", "layers", *columns, title=f"held-out nats a character; float {held_out_loss(graph):.4f}")
    for scheme in given.schemes:
        for embedding in (True, False):
            table.add_row(*row(graph, batches, scheme, embedding=embedding))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
