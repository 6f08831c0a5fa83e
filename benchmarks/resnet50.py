"""ResNet-50 for ImageNet shapes with random weights: for speed and size, where accuracy does not matter.

Version 1.5 (the stride is in the 3x3 convolution), with the parameter names that torchvision uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = 4


class Bottleneck(nn.Module):
    """relu(f(x) + shortcut(x)), f three convolutions, 1x1 to `width`, 3x3, 1x1 to 4 x `width`, with batch norm.

    Where shapes change the shortcut is a 1x1 convolution with batch norm.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, 4 x width, H/stride, W/stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """Stages of 3, 4, 6, 3 bottlenecks behind a 7x7 convolution and a max pooling; 25.6 M parameters, 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, stride=1, num_blocks=3)
        self.layer2 = _stage(256, 128, stride=2, num_blocks=4)
        self.layer3 = _stage(512, 256, stride=2, num_blocks=6)
        self.layer4 = _stage(1024, 512, stride=2, num_blocks=3)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, 3, H, W], 224x224 for ImageNet, to logits [N, 1000]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def random_resnet50(seed: int = 0) -> nn.Module:
    """A ResNet-50 in eval mode with random weights; equal seeds give equal networks."""
    return with_statistics(ResNet50, seed)


@torch.no_grad()
def with_statistics(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network with random weights and the batch-norm statistics of a few random images, in eval mode.

    Torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        images = torch.randn(8, 3, 128, 128)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the one batch that follows
    network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def _stage(inputs: int, width: int, *, stride: int, num_blocks: int) -> nn.Sequential:
    blocks = [Bottleneck(inputs, width, stride)]
    blocks += [Bottleneck(EXPANSION * width, width, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)
