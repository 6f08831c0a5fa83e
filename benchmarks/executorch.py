"""ResNet-20 on CIFAR-10 in ExecuTorch's runtime: accuracy against the simulation, and PT2E's XNNPACKQuantizer's file.

Both are calibrated on the same 512 training images; accuracy is on the 10,000 test images, or as many as are asked for:

    python -m benchmarks.executorch --images 10000
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import mixbit as mb
from benchmarks import cifar, paths, resnet20
from mixbit.core.batches import split_batch
from mixbit.core.target import find_target
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import calibrate

NUM_CALIBRATION, BATCH = 512, 64
Run = Callable[[torch.Tensor], NDArray[Any]]


def by_mixbit(model: torch.nn.Module, batches: list[Any], folder: Path) -> tuple[Run, Run, Path]:
    """The simulation of uniform 8 bits, its file in the runtime, and the file."""
    pairs = [split_batch(batch) for batch in batches]
    graph = mb.capture(model, pairs[0][0].args)
    simulated = mb.quantize(graph, uniform_plan(graph, "w8a8", target="executorch"), calibrate(graph, pairs))
    mb.export(simulated, folder)
    target = find_target("executorch")
    runner = target.load(folder)
    return lambda x: simulated(x).numpy(), lambda x: runner.run([x.numpy()])[0], folder / target.files[0]


def by_pt2e(model: torch.nn.Module, batches: list[Any], folder: Path) -> tuple[Run, Run, Path]:
    """The same of ExecuTorch's own quantizer: symmetric, a scale per channel, static ranges."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import _C
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example, shapes = (batches[0][0],), ({0: torch.export.Dim("batch", min=1, max=BATCH)},)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, example, dynamic_shapes=shapes).module(), quantizer)
    for images, _ in batches:
        prepared(images)
    converted = convert_pt2e(prepared)
    program = torch.export.export(converted, example, dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    file = folder / "pt2e.pte"
    file.write_bytes(lowered.buffer)
    module = _C._load_for_executorch(str(file))
    return lambda x: converted(x).numpy(), lambda x: module.forward([x])[0].numpy(), file


def row(name: str, made: tuple[Run, Run, Path], test: list[Any]) -> tuple[str, ...]:
    """What is simulated, what runs, and how many of its numbers are the same."""
    simulate, run, file = made
    right, same, samples, numbers = np.zeros(2), 0, 0, 0
    for images, labels in test:
        with torch.no_grad():
            pair = [simulate(images), run(images)]
        right += [(outputs.argmax(1) == labels.numpy()).sum() for outputs in pair]
        same, numbers = same + (pair[0] == pair[1]).sum(), numbers + pair[0].size
        samples += len(labels)
    accuracies = [f"{share:.2%}" for share in right / samples]
    return name, *accuracies, f"{same:,} of {numbers:,}", f"{file.stat().st_size:,}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    given = parser.parse_args(arguments)
    source = paths.require("MIXBIT_CIFAR10")
    model = resnet20.load(paths.require("MIXBIT_RESNET20"))
    batches = cifar.batches(*cifar.load_images(source, "train", NUM_CALIBRATION, 0), BATCH)
    test = cifar.batches(*cifar.load_images(source, "test", given.images), BATCH)
    columns = "quantized by", "simulated", "in the runtime", "numbers that agree", "file bytes"
    table = Table(*columns, title=f"ResNet-20, 8 bits, {given.images:,} test images")
    with TemporaryDirectory() as scratch:
        for name, make in (("mixbit", by_mixbit), ("PT2E, XNNPACKQuantizer", by_pt2e)):
            folder = Path(scratch) / name
            folder.mkdir()
            table.add_row(*row(name, make(model, batches, folder), test))
            Console(width=110).print(table)


if __name__ == "__main__":
    main()
