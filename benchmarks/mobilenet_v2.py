"""MobileNetV2 for ImageNet shapes with random weights: for speed and size, where accuracy does not matter."""

from torch import Tensor, nn

from benchmarks.networks.efficientnet_lite0 import Block, Unit
from benchmarks.resnet50 import with_statistics

#: Stride, expansion, output channels and number of blocks of each stage.
STAGES = (
    (1, 1, 16, 1), (2, 6, 24, 2), (2, 6, 32, 3), (2, 6, 64, 4), (1, 6, 96, 3), (2, 6, 160, 3), (1, 6, 320, 1),
)  # fmt: skip


class MobileNetV2(nn.Module):
    """Inverted bottlenecks with ReLU6; 3.5 M parameters, 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Unit(3, 32, 3, stride=2)]
        width = 32
        for stride, expansion, outputs, repeats in STAGES:
            for number in range(repeats):
                layers.append(Block(width, outputs, 3, stride if number == 0 else 1, expansion))
                width = outputs
        self.features = nn.Sequential(*layers, Unit(width, 1280))
        self.fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, 3, H, W], 224x224 for ImageNet, to logits [N, 1000]."""
        return self.fc(self.features(images).mean((2, 3)))


def random_mobilenet_v2(seed: int = 0) -> nn.Module:
    """A MobileNetV2 in eval mode with random weights; equal seeds give equal networks."""
    return with_statistics(MobileNetV2, seed)
