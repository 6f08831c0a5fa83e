"""Networks that read sounds and spectrograms."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.zoo.blocks import classifier, conv, residual
from benchmarks.zoo.data import CLASSES, levels, noise, sweeps, tones
from benchmarks.zoo.subject import Subject, trained

_swept = partial(trained, draw=sweeps, loss=functional.cross_entropy, task="classification")
#: Classes of `sweeps`.
PAIRS = 16


def ds_cnn() -> Subject:
    """DS-CNN: a keyword spotter of depthwise separable convolutions (Zhang et al. 2017)."""

    def build() -> nn.Module:
        blocks = [nn.Sequential(conv(32, 32, groups=32), conv(32, 32, 1)) for _ in range(4)]
        first = nn.Sequential(nn.Conv2d(1, 32, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU())
        return nn.Sequential(nn.Unflatten(1, (1, -1)), first, *blocks, classifier(32, PAIRS))

    return _swept(build, steps=300, rate=5e-3)


class Recurrent(nn.Module):
    """Two recurrent layers over the frames, then two layers for the last state."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.recurrent = cell(32, 48, num_layers=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, PAIRS))

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms [N, bands, frames] to logits."""
        return self.head(self.recurrent(x.transpose(1, 2))[0][:, -1])


def lstm() -> Subject:
    """An LSTM that spots keywords (Hochreiter and Schmidhuber 1997)."""
    return _swept(lambda: Recurrent(nn.LSTM), steps=200, rate=5e-3)


def gru() -> Subject:
    """A GRU that spots keywords (Cho et al. 2014)."""
    return _swept(lambda: Recurrent(nn.GRU), steps=200, rate=5e-3)


class Causal(nn.Module):
    """A dilated convolution that sees the past alone, its weight normalised."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.conv = weight_norm(nn.Conv1d(inputs, outputs, 3, padding=self.past, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, T] to [N, outputs, T]."""
        return torch.relu(self.conv(x)[:, :, : -self.past])


def tcn() -> Subject:
    """A temporal convolutional network with weight norm (Bai et al. 2018)."""

    def block(inputs: int, outputs: int, dilation: int) -> nn.Module:
        shortcut = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)
        return nn.Sequential(
            residual(Causal(inputs, outputs, dilation), Causal(outputs, outputs, dilation), shortcut=shortcut),
            nn.ReLU(),
        )

    def build() -> nn.Module:
        widths = ((1, 24, 1), (24, 24, 4), (24, 32, 16))
        return nn.Sequential(
            *(block(*width) for width in widths), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES)
        )

    return trained(build, tones, functional.cross_entropy, "classification")


class WaveNet(nn.Module):
    """Gated dilated convolutions whose outputs are added up from all depths (van den Oord et al. 2016)."""

    def __init__(self, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**number) for number in range(depth))
        self.skip, self.onward = (nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth)) for _ in range(2))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 48, 1), nn.ReLU(), nn.Conv1d(48, 32, 1))

    def forward(self, numbers: Tensor) -> Tensor:
        """Map levels [N, T] to logits of the next ones [N, 32, T]."""
        x = self.embed(numbers).transpose(1, 2)
        total = torch.zeros_like(x)
        for gated, skip, onward in zip(self.gated, self.skip, self.onward, strict=True):
            a, b = gated(functional.pad(x, (gated.dilation[0], 0))).chunk(2, dim=1)
            state = a.tanh() * b.sigmoid()
            total, x = total + skip(state), x + onward(state)
        return self.head(total)


def wavenet() -> Subject:
    """WaveNet (van den Oord et al. 2016)."""
    return trained(WaveNet, levels, functional.cross_entropy, "segmentation")


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, the other half (Gulati et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.convolve = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            nn.Conv1d(width, width, 7, padding=3, groups=width),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map states [N, T, width] to states."""
        x = x + 0.5 * self.forwards[0](self.norms[0](x))
        states = self.norms[1](x)
        x = x + self.attention(states, states, states, need_weights=False)[0]
        x = x + self.convolve(self.norms[2](x).transpose(1, 2)).transpose(1, 2)
        return self.norms[4](x + 0.5 * self.forwards[1](self.norms[3](x)))


class Conformer(nn.Module):
    """Convolutions that shorten a spectrogram, blocks, the mean."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.shorten = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(12 * 8, width)
        self.blocks = nn.Sequential(*(ConformerBlock(width) for _ in range(2)))
        self.head = nn.Linear(width, PAIRS)

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms [N, bands, frames] to logits."""
        states = self.project(self.shorten(x.unsqueeze(1)).permute(0, 3, 1, 2).flatten(2))
        return self.head(self.blocks(states).mean(1))


def conformer() -> Subject:
    """A Conformer that spots keywords (Gulati et al. 2020)."""
    return _swept(Conformer, rate=2e-3)


class Separator(nn.Module):
    """A learned transform, a mask from dilated convolutions, the transform back (Luo and Mesgarani 2018)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, width, 16, 8, bias=False)
        blocks = (
            residual(
                nn.Conv1d(width, 48, 1),
                nn.PReLU(),
                nn.GroupNorm(1, 48),
                nn.Conv1d(48, 48, 3, padding=2**number, dilation=2**number, groups=48),
                nn.PReLU(),
                nn.GroupNorm(1, 48),
                nn.Conv1d(48, width, 1),
            )
            for number in range(3)
        )
        self.mask = nn.Sequential(nn.GroupNorm(1, width), *blocks, nn.PReLU(), nn.Conv1d(width, width, 1), nn.Sigmoid())
        self.decode = nn.ConvTranspose1d(width, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map noisy sounds [N, 1, T] to clean ones."""
        states = self.encode(x)
        return self.decode(states * self.mask(states))


def denoiser() -> Subject:
    """Conv-TasNet as a remover of noise (Luo and Mesgarani 2018)."""

    def sounds(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        clean, _ = tones(count, generator)
        return clean + 0.4 * noise(generator, *clean.shape), clean

    return trained(Separator, sounds, functional.mse_loss, "regression", labelled=False)
