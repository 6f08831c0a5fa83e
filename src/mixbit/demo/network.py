"""DigitsNet: a small residual network for 8x8 grey images of digits."""

from importlib.resources import files

import safetensors.torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10


class Block(nn.Module):
    """A basic residual block (He et al. 2016): relu(f(x) + shortcut(x)), f two 3x3 convolutions with batch norm.

    Where the number of channels changes, the stride is 2 and the shortcut a 1x1 convolution with batch norm:
    [N, inputs, H, W] becomes [N, outputs, H/2, W/2]. Elsewhere the shortcut is the input itself.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Three residual blocks of 16, 32 and 48 channels behind a 3x3 convolution; 56,250 parameters, ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block1 = Block(16, 16)
        self.block2 = Block(16, 32)
        self.block3 = Block(32, 48)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(48, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, 1, 8, 8] to logits [N, 10]."""
        x = F.relu(self.norm(self.conv(images)))
        x = self.block3(self.block2(self.block1(x)))
        return self.linear(self.pool(x).flatten(1))


def trained() -> DigitsNet:
    """The network with the shipped weights, in eval mode; `benchmarks.train_digits` made them."""
    network = DigitsNet()
    shipped = files("mixbit.demo").joinpath("digits_net.safetensors").read_bytes()
    network.load_state_dict(safetensors.torch.load(shipped))
    return network.eval()
