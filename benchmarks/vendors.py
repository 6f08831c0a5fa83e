"""8 bits on LiteRT, Ethos-U and ExecuTorch: mixbit's files beside those of the runtimes' own quantizers.

ai-edge-quantizer reads the file of a plan of all float, in an environment of its own; PT2E's XNNPACKQuantizer the
network. All are calibrated on the same images, ranges are static, and weights have a scale a channel. The measure is
accuracy, or agreement with the float network where images have no labels; "agree" counts the numbers of the runtime
that are the simulation's, to the bit:

    python -m benchmarks.vendors resnet20 efficientnet_lite0 --images 2000
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mixbit as mb
from benchmarks import recipes
from benchmarks.networks import Network, load
from mixbit.core.batches import split_batch
from mixbit.core.target import find_target
from mixbit.graph import Graph
from mixbit.quantization import uniform_plan
from mixbit.quantization.calibrate import Calibration, calibrate

Run = Callable[[Tensor], NDArray[Any]]
#: Targets, and who else quantizes for them.
TARGETS = {"litert": "ai-edge-quantizer", "ethosu": "ai-edge-quantizer", "executorch": "PT2E, XNNPACKQuantizer"}
COLUMNS = (
    "network",
    "runtime",
    "quantized by",
    "simulated",
    "in the runtime",
    "agree",
    "file bytes",
    "NPU flash, cycles",
)
#: Images that a file of ExecuTorch takes at once.
MOST_AT_ONCE = 64
#: Run in the tool's environment: the float file, its input, the images, and the file to write.
STATIC = """
import sys
import numpy
from ai_edge_quantizer import quantizer, recipe
before, name, images, after = sys.argv[1:]
tool = quantizer.Quantizer(before, recipe.static_wi8_ai8())
samples = [{name: row[None]} for row in numpy.load(images)]
tool.quantize(tool.calibrate({"serving_default": samples})).export_model(after)
"""


@dataclass(frozen=True)
class Made:
    """A quantized network.

    Attributes:
        simulate: What is expected of the runtime; None where the quantizer simulates nothing.
        run: The file in the runtime.
        file_bytes: Of the file that the device takes.
        figures: Flash in bytes and cycles that Vela reports; "" elsewhere.
    """

    simulate: Run | None
    run: Run
    file_bytes: int
    figures: str = ""


@dataclass(frozen=True)
class Given:
    """A network, captured and calibrated, and the images that judge."""

    network: Network
    graph: Graph
    calibration: Calibration
    images: list[Tensor]

    @classmethod
    def load(cls, name: str) -> "Given":
        """One of `benchmarks.networks`."""
        network = load(name)
        pairs = [split_batch(batch) for batch in network.calibration]
        graph = mb.capture(network.model, pairs[0][0].args)
        return cls(network, graph, calibrate(graph, pairs), [inputs.args[0] for inputs, _ in pairs])


def by_mixbit(given: Given, target: str, folder: Path, scheme: str = "w8a8") -> Made:
    """Uniform 8 bits."""
    plan = uniform_plan(given.graph, scheme, target=target)
    simulated = mb.quantize(given.graph, plan, None if scheme == "float" else given.calibration)
    mb.export(simulated, folder)
    one = find_target(target)
    runner, figures = one.load(folder), one.read_figures(folder)
    told = f"{figures['flash_bytes']:,}, {figures['cycles']:,}" if figures else ""
    file = folder / one.files[1 if figures else 0]  # Vela's, which the device takes
    return Made(lambda x: simulated(x).numpy(), lambda x: runner.run([x.numpy()])[0], file.stat().st_size, told)


def by_ai_edge_quantizer(given: Given, target: str, folder: Path) -> Made:
    """Static int8, compiled by Vela where the target is."""
    from mixbit.targets import _vela
    from mixbit.targets._tflite_file import Model

    folder.mkdir()
    by_mixbit(given, "litert", folder / "float", "float")
    before, after = folder / "float" / "model.tflite", folder / "model.tflite"
    (name,) = find_target("litert").load(folder / "float").names[0]
    np.save(folder / "images.npy", torch.cat(given.images).numpy())
    words = [recipes.environment("ai_edge_quantizer"), "-c", STATIC, before, name, folder / "images.npy", after]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    made = Made(None, interpreted(after.read_bytes()), after.stat().st_size)
    if target != "ethosu":
        return made
    done = _vela.compiled(
        Model(after.read_bytes(), None), "ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"
    )
    return Made(None, made.run, len(done.data), f"{done.flash_bytes:,}, {done.cycles:,}")


def interpreted(data: bytes) -> Run:
    """A file in LiteRT that takes and returns int8, by an interpreter for each batch."""
    from ai_edge_litert.interpreter import Interpreter

    def run(x: Tensor) -> NDArray[Any]:
        interpreter = Interpreter(model_content=data)
        (port,) = interpreter.get_input_details()
        interpreter.resize_tensor_input(port["index"], x.shape)
        interpreter.allocate_tensors()
        scale, zero_point = port["quantization"]
        interpreter.set_tensor(
            port["index"], np.clip(np.rint(x.numpy() / scale) + zero_point, -128, 127).astype(np.int8)
        )
        interpreter.invoke()
        (made,) = interpreter.get_output_details()
        scale, zero_point = made["quantization"]
        return (interpreter.get_tensor(made["index"]).astype(np.float32) - zero_point) * np.float32(scale)

    return run


def by_pt2e(given: Given, _: str, folder: Path) -> Made:
    """ExecuTorch's own quantizer."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings import _C
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example, shapes = (given.images[0],), ({0: torch.export.Dim("batch", min=1, max=MOST_AT_ONCE)},)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(
        torch.export.export(given.network.model, example, dynamic_shapes=shapes).module(), quantizer
    )
    for images in given.images:
        prepared(images)
    converted = convert_pt2e(prepared)
    program = torch.export.export(converted, example, dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    folder.mkdir()
    file = folder / "pt2e.pte"
    file.write_bytes(lowered.buffer)
    module = _C._load_for_executorch(str(file))
    return Made(lambda x: converted(x).numpy(), lambda x: module.forward([x])[0].numpy(), file.stat().st_size)


def batches_of(network: Network, count: int) -> Iterator[tuple[Tensor, Any]]:
    """About so many of the images that judge, evenly spaced, MOST_AT_ONCE at most, with their labels or None."""
    pairs = [split_batch(batch) for batch in network.evaluation]
    step = max(1, sum(inputs.batch_size for inputs, _ in pairs) // count)
    for inputs, labels in pairs:
        images, some = inputs.args[0][::step].contiguous(), None if labels is None else labels[::step]
        for start in range(0, len(images), MOST_AT_ONCE):
            part = slice(start, start + MOST_AT_ONCE)
            yield images[part], None if some is None else some[part]


@torch.no_grad()
def row(given: Given, made: Made, count: int) -> tuple[str, ...]:
    """The measure in the simulation and in the runtime, the numbers that are the same, and bytes."""
    network, values, same, numbers, samples = given.network, np.zeros(2), 0, 0, 0
    for images, labels in batches_of(network, count):
        floats, ran = network.model(images), made.run(images)
        expected = ran if made.simulate is None else made.simulate(images)
        values += [
            network.measure.values(torch.from_numpy(each), floats, labels).sum().item() for each in (expected, ran)
        ]
        same, numbers, samples = same + (expected == ran).sum(), numbers + ran.size, samples + len(images)
    simulated, deployed = (f"{share:.2%}" for share in values / samples)
    if made.simulate is None:
        return "", deployed, "", f"{made.file_bytes:,}", made.figures
    return simulated, deployed, f"{same:,} of {numbers:,}", f"{made.file_bytes:,}", made.figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, once for each row that it gets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet20", "efficientnet_lite0"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--only", default=",".join(TARGETS), help="targets, between commas")
    asked = parser.parse_args(arguments)
    table = Table(*COLUMNS, title=f"8 bits, {asked.images:,} images at most")
    for name in asked.networks:
        given = Given.load(name)
        for target in asked.only.split(","):
            other = by_pt2e if target == "executorch" else by_ai_edge_quantizer
            for who, make in (("mixbit", by_mixbit), (TARGETS[target], other)):
                with TemporaryDirectory() as scratch:
                    made = make(given, target, Path(scratch) / "made")
                    table.add_row(name, target, who, *row(given, made, asked.images))
                Console(width=160).print(table)


if __name__ == "__main__":
    main()
