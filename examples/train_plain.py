"""Your own training loop in plain torch: the demo's network at two and a half bits.

python -m examples.train_plain OUT
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import mixbit as mb
from mixbit.demo import data
from mixbit.demo.network import trained
from mixbit.graph import Graph
from mixbit.quantization import calibrate
from mixbit.training import learnable, settled


def quantized(target: str) -> tuple[Graph, Graph]:
    """The float graph, and its simulation under the best plan of 2.5 bits."""
    images = [images for images, _ in data.calibration_batches()]
    graph = mb.capture(trained(), images[0])
    calibration = calibrate(graph, images)
    plan = mb.search(mb.measure(graph, calibration, target=target), mb.Budget(mean_bits=2.5))
    return graph, mb.quantize(graph, plan, calibration)


def main(out: Path, *, target: str = "onnxruntime", epochs: int = 3) -> None:
    """Train, export, run the file and compare."""
    graph, simulated = quantized(target)
    training = learnable(simulated)  # a copy; training.module holds weights, biases and scales as parameters
    optimizer = torch.optim.AdamW(training.module.parameters(), lr=2e-4, weight_decay=0.0)
    for epoch in range(epochs):
        for images, labels in data.train_batches():
            loss = F.cross_entropy(training(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    done = settled(training)  # scales fixed, biases whole multiples of their steps
    for name, quantized_graph in (("before", simulated), ("after", done)):
        mb.export(quantized_graph, out / name)
        print(f"{name}: {mb.verify(out / name, graph, quantized_graph, data.test_batches())}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage, from the folder that holds examples/: python -m examples.train_plain OUT")
    main(Path(sys.argv[1]))
