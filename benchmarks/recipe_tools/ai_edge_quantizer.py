"""ai-edge-quantizer on a small convolutional network of litert-torch: the types in its `.tflite` are the bits."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.recipe_tools._read import TORCH, Read, levels

REQUIREMENTS, ALONE = (TORCH, "ai-edge-quantizer==0.10.0", "litert-torch==0.10.0"), ()
FLOAT = "float32"
#: No two weights have as many numbers, by which they are told apart in the file.
PLAN = {
    "stem.conv1.weight": "w8a8",
    "stem.depthwise.weight": "w8a8",
    "blocks.0.conv1.weight": "w4a8",
    "blocks.1.conv1.weight": "float",
    "lists.0.conv1.weight": "w4a8",
    "fc1.weight": "w4g32a8dr",
    "fc10.weight": "w2a8dr",
    "wide_fc1.weight": "w8z",
    "fc2.weight": "w4",
    "fc3.weight": "w8a16",
    "head.weight": "w8ta8dr",
}
TYPES = {"INT2": 2, "INT4": 4, "INT8": 8, "INT16": 16, "FLOAT32": FLOAT, "FLOAT16": "float16"}


def apply(recipe: Path) -> dict[str, Read]:
    """Convert the network, quantize by the file, and read the operators back."""
    import numpy as np
    from ai_edge_quantizer.quantizer import Quantizer

    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.tflite", Path(folder) / "quantized.tflite"
        sizes = _convert(before)
        tool = Quantizer(str(before), str(recipe))
        generator = np.random.default_rng(0)
        samples = [{"args_0": generator.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
        done = tool.quantize(tool.calibrate({"serving_default": samples}) if tool.need_calibration else None)
        after.write_bytes(done.quantized_model)
        return _read(after, sizes)


def _convert(path: Path) -> dict[int, str]:
    """Write the network, and return how many numbers a weight has -> its layer."""
    import litert_torch
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, out: int, *, depthwise: bool = False) -> None:
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
            if depthwise:
                self.depthwise = nn.Conv2d(out, out, 3, padding=1, groups=out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv1(x)).relu()
            return self.depthwise(x).relu() if hasattr(self, "depthwise") else x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Block(3, 32, depthwise=True)
            self.blocks = nn.Sequential(Block(32, 48), Block(48, 40))
            self.lists = nn.ModuleList([Block(40, 64)])
            self.fc1, self.fc10, self.wide_fc1 = nn.Linear(64, 256), nn.Linear(256, 320), nn.Linear(320, 192)
            self.fc2, self.fc3, self.head = nn.Linear(192, 160), nn.Linear(160, 128), nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks(self.stem(x))
            for block in self.lists:
                x = block(x)
            for layer in (self.fc1, self.fc10, self.wide_fc1, self.fc2, self.fc3):
                x = layer(x.mean((2, 3)) if x.ndim == 4 else x).relu()
            return self.head(x)

    torch.manual_seed(0)
    model = Net().eval()
    litert_torch.convert(model, (torch.randn(1, 3, 16, 16),)).export(str(path))
    sizes = {model.get_parameter(layer).numel(): layer for layer in PLAN}
    if len(sizes) < len(PLAN):
        raise RuntimeError("two weights have as many numbers")
    return sizes


def _read(path: Path, sizes: dict[int, str]) -> dict[str, Read]:
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    tensors, operators = model.subgraphs[0].tensors, model.subgraphs[0].operators
    types = {number: name for name, number in vars(flatbuffer_utils.TensorType).items() if isinstance(number, int)}
    names = {operator.outputs[0]: operator for operator in operators}
    read = {}
    for operator in operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        if kind not in {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"}:
            continue
        index = operator.inputs[1]
        layer = sizes[math.prod(tensors[index].shape)]
        unpacked = index in names  # a float operator, before which the weight is made float again
        held = tensors[names[index].inputs[0]] if unpacked else tensors[index]
        bits, taken = TYPES[types[held.type]], TYPES[types[tensors[operator.inputs[0]].type]]
        if taken == FLOAT and isinstance(bits, int) and not unpacked:
            taken = 8  # the kernel takes the range of every row at run time
        read[layer] = Read(bits, taken, _levels(model, held, bits))
    return read


def _levels(model: Any, tensor: Any, bits: int | str) -> tuple[int, int]:
    import numpy as np

    data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
    if not isinstance(bits, int):
        return levels(data.view(np.float32 if bits == FLOAT else np.float16)[None])
    if bits < 8:
        shifts = np.arange(0, 8, bits)
        data = (data[:, None] >> shifts & (1 << bits) - 1).reshape(-1)
    return levels(data[None])
