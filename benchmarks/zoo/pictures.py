"""Networks that return pictures, masks, boxes or text for an image."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.blocks import Join, conv, inverted_residual, residual
from benchmarks.zoo.data import halves, lines, noise, scenes, smooth
from benchmarks.zoo.subject import Subject, trained

_up = partial(nn.Upsample, scale_factor=2, mode="bilinear", align_corners=False)


def _masks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return scenes(count, generator)[:2]


_segmented = partial(trained, draw=_masks, loss=functional.cross_entropy, task="segmentation")


class UNet(nn.Module):
    """Two steps down, two up, each joined with what was there on the way down (Ronneberger et al. 2015)."""

    def __init__(self, up: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._pair(3, 16), self._pair(16, 32), self._pair(32, 48)])
        self.up = nn.ModuleList([up(48, 32), up(32, 16)])
        self.after = nn.ModuleList([self._pair(64, 32), self._pair(32, 16)])
        self.head = nn.Conv2d(16, 3, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits of every pixel."""
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        x = self.down[2](functional.max_pool2d(second, 2))
        x = self.after[0](torch.cat([self.up[0](x), second], dim=1))
        return self.head(self.after[1](torch.cat([self.up[1](x), first], dim=1)))


def unet_transposed() -> Subject:
    """U-Net that grows by transposed convolutions."""
    return _segmented(lambda: UNet(lambda inputs, outputs: nn.ConvTranspose2d(inputs, outputs, 2, 2)))


def unet_upsampling() -> Subject:
    """U-Net that grows by interpolation and convolutions."""
    return _segmented(lambda: UNet(lambda inputs, outputs: nn.Sequential(_up(), conv(inputs, outputs))))


class PooledGlobally(nn.Module):
    """The mean of each channel, convolved, at every position."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        return functional.interpolate(self.body(x), size=x.shape[2:], mode="bilinear", align_corners=False)


class DeepLab(nn.Module):
    """Dilated convolutions of several rates side by side, and a fine branch (Chen et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(3, 16, 3, 2, act=nn.ReLU6), inverted_residual(16, 24, 1, nn.ReLU6))
        self.body = nn.Sequential(inverted_residual(24, 32, 2, nn.ReLU6), inverted_residual(32, 32, 1, nn.ReLU6))
        rates = (self._rate(32, 24, rate) for rate in (1, 2, 3))
        self.pyramid = Join("cat", conv(32, 24, 1), *rates, PooledGlobally(32, 24))
        self.project, self.narrow = conv(120, 32, 1), conv(24, 8, 1)
        self.head = nn.Sequential(conv(40, 32), nn.Conv2d(32, 3, 1))

    @staticmethod
    def _rate(inputs: int, outputs: int, rate: int) -> nn.Module:
        dilated = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False)
        return nn.Sequential(dilated, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits of every pixel."""
        fine = self.fine(x)
        coarse = functional.interpolate(
            self.project(self.pyramid(self.body(fine))), size=fine.shape[2:], mode="bilinear"
        )
        logits = self.head(torch.cat([coarse, self.narrow(fine)], dim=1))
        return functional.interpolate(logits, size=x.shape[2:], mode="bilinear")


def deeplab() -> Subject:
    """DeepLabV3+ over inverted residuals (Chen et al. 2018)."""
    return _segmented(DeepLab)


class Exchange(nn.Module):
    """Residuals at two sizes, then each is added to the other (Wang et al. 2019)."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.keep = nn.ModuleList(
            nn.Sequential(residual(conv(c, c), conv(c, c, act=None)), nn.ReLU()) for c in (fine, coarse)
        )
        self.down, self.up = (
            conv(fine, coarse, 3, 2, act=None),
            nn.Sequential(conv(coarse, fine, 1, act=None), nn.Upsample(scale_factor=2)),
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Map both sizes to both sizes."""
        fine, coarse = self.keep[0](fine), self.keep[1](coarse)
        return torch.relu(fine + self.up(coarse)), torch.relu(coarse + self.down(fine))


class HighResolution(nn.Module):
    """A fine and a coarse stream side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.start = conv(3, 16, 3, 2), conv(16, 32, 3, 2)
        self.exchanges = nn.ModuleList(Exchange(16, 32) for _ in range(3))
        self.head = nn.Sequential(conv(48, 48, 1), nn.Conv2d(48, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits of every pixel."""
        fine = self.stem(x)
        coarse = self.start(fine)
        for exchange in self.exchanges:
            fine, coarse = exchange(fine, coarse)
        coarse = functional.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True)
        logits = self.head(torch.cat([fine, coarse], dim=1))
        return functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)


def hrnet() -> Subject:
    """HRNet with two streams (Wang et al. 2019)."""
    return _segmented(HighResolution)


class Grower(nn.Module):
    """Residual blocks without norms, then pixels from channels, added to the enlarged image (Lim et al. 2017)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        blocks = (
            residual(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(3)
        )
        self.body = residual(*blocks, nn.Conv2d(width, width, 3, padding=1))
        self.grow = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to images of twice the size."""
        return self.grow(self.body(self.first(x))) + functional.interpolate(x, scale_factor=2, mode="bicubic")


def super_resolution() -> Subject:
    """EDSR: super-resolution by pixel shuffle (Lim et al. 2017)."""
    return trained(Grower, halves, functional.l1_loss, "regression", rate=1e-3)


class TiedAutoencoder(nn.Module):
    """One matrix encodes, its transpose decodes."""

    def __init__(self, size: int = 16, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, size * size) / size)
        self.narrow, self.wide = nn.Linear(width, 16), nn.Linear(16, width)
        self.hidden_bias, self.output_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(size * size))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 1, size, size] to images."""
        code = torch.relu(functional.linear(x.flatten(1), self.weight, self.hidden_bias))
        code = torch.relu(self.wide(torch.relu(self.narrow(code))))
        return torch.sigmoid(functional.linear(code, self.weight.t(), self.output_bias)).view_as(x)


def autoencoder() -> Subject:
    """An autoencoder whose decoder is the transposed encoder."""

    def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = smooth(count, generator, 1, 16)
        return drawn, drawn

    return trained(TiedAutoencoder, images, functional.mse_loss, "regression", steps=300, labelled=False)


class Picture(nn.Module):
    """A vector grows to a picture by transposed convolutions, then by interpolation with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 64 * 4 * 4)
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(64, 48, 4, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.ConvTranspose2d(48, 32, 3, 2, 1, 1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 24, 3, padding=1),
            nn.GroupNorm(4, 24),
            nn.SiLU(),
            nn.Conv2d(24, 3, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map vectors [N, 16] to pictures [N, 3, SIZE, SIZE] in 0..1."""
        return torch.sigmoid(self.grow(self.start(z).unflatten(1, (64, 4, 4))))


def vae_decoder() -> Subject:
    """The decoder of a variational autoencoder (Kingma and Welling 2013)."""
    pictures = smooth(16, torch.Generator().manual_seed(7)) - 0.5

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        code = noise(generator, count, 16)
        return code, torch.sigmoid(torch.einsum("nk,kchw->nchw", code, pictures))

    return trained(Picture, draw, functional.mse_loss, "regression", labelled=False)


class TextLine(nn.Module):
    """Convolutions that keep the width, two recurrent layers, logits at every column (Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((2, 1)), conv(32, 48), nn.MaxPool2d((4, 1))
        )
        self.recurrent = nn.LSTM(48, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 11)

    def forward(self, x: Tensor) -> Tensor:
        """Map lines [N, 1, 16, W] to the logarithms of probabilities [N, W / 2, 11]; class 0 is CTC's blank."""
        states, _ = self.recurrent(self.body(x).squeeze(2).transpose(1, 2))
        return functional.log_softmax(self.head(states), dim=-1)


def crnn() -> Subject:
    """CRNN: a reader of text lines, trained by CTC (Shi et al. 2015)."""

    def loss(scores: Tensor, text: Tensor) -> Tensor:
        count, columns, _ = scores.shape
        lengths = torch.full((count,), columns), torch.full((count,), text.shape[1])
        return functional.ctc_loss(scores.transpose(0, 1), text, *lengths)

    return trained(TextLine, lines, loss, "ctc", labelled=False, steps=250, rate=5e-3)
