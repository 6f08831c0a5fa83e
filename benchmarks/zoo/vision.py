"""Networks that classify or embed images and clouds of points."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.blocks import Join, classifier, conv, inverted_residual, residual, squeeze_excite
from benchmarks.zoo.data import CLASSES, SIZE, bodies, stripes
from benchmarks.zoo.subject import Subject, trained

_classified = partial(trained, draw=stripes, loss=functional.cross_entropy, task="classification")


def resnet() -> Subject:
    """ResNet with basic blocks (He et al. 2015)."""
    return _classified(lambda: _residual_network(lambda i, o, s: (conv(i, o, 3, s), conv(o, o, act=None))))


def resnext() -> Subject:
    """ResNeXt: bottlenecks with grouped convolutions (Xie et al. 2016)."""
    return _classified(
        lambda: _residual_network(lambda i, o, s: (conv(i, o, 1), conv(o, o, 3, s, groups=8), conv(o, o, 1, act=None)))
    )


def regnet() -> Subject:
    """RegNetY: bottlenecks with grouped convolutions, squeezed and excited (Radosavovic et al. 2020)."""
    return _classified(
        lambda: _residual_network(
            lambda i, o, s: (conv(i, o, 1), conv(o, o, 3, s, groups=o // 8), squeeze_excite(o), conv(o, o, 1, act=None))
        )
    )


def _residual_network(body: Callable[[int, int, int], tuple[nn.Module, ...]]) -> nn.Module:
    layers, inputs = [conv(3, 16)], 16
    for outputs, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride, act=None)
        layers += [residual(*body(inputs, outputs, stride), shortcut=shortcut), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, classifier(inputs, CLASSES))


def densenet() -> Subject:
    """DenseNet: every layer reads all before it, normalised before each convolution (Huang et al. 2016)."""

    def layer(inputs: int) -> nn.Module:
        narrow = (nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 32, 1, bias=False))
        return Join(
            "cat",
            nn.Identity(),
            nn.Sequential(*narrow, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1, bias=False)),
        )

    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
        for inputs in (16, 20):
            layers += [layer(inputs + 8 * number) for number in range(3)]
            wide = inputs + 24
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 20, 1, bias=False), nn.AvgPool2d(2)]
        return nn.Sequential(*layers, nn.BatchNorm2d(20), nn.ReLU(), classifier(20, CLASSES))

    return _classified(build)


def squeezenet() -> Subject:
    """SqueezeNet: narrow, then 1x1 beside 3x3, without norms (Iandola et al. 2016)."""

    def fire(inputs: int, narrow: int, wide: int) -> nn.Module:
        expand = (nn.Conv2d(narrow, wide, 1), nn.Conv2d(narrow, wide, 3, padding=1))
        return nn.Sequential(nn.Conv2d(inputs, narrow, 1), nn.ReLU(), Join("cat", *expand), nn.ReLU())

    def build() -> nn.Module:
        pool = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
        fires = (fire(16, 8, 16), fire(32, 8, 16), pool(), fire(32, 16, 32), fire(64, 16, 32))
        last = (nn.Conv2d(64, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *fires, *last)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # without norms, torch's own weights let the values fade
                nn.init.kaiming_uniform_(parameter)
        return network

    return _classified(build, rate=2e-3, steps=200)


def inception() -> Subject:
    """GoogLeNet with norms: four branches, of which one pools with padding (Szegedy et al. 2014)."""

    def block(inputs: int) -> nn.Module:
        return Join(
            "cat",
            conv(inputs, 16, 1),
            nn.Sequential(conv(inputs, 12, 1), conv(12, 16)),
            nn.Sequential(conv(inputs, 8, 1), conv(8, 8), conv(8, 8)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, 8, 1)),
        )

    return _classified(
        lambda: nn.Sequential(
            conv(3, 24, 3, 2), block(24), block(48), nn.MaxPool2d(3, 2, 1), block(48), classifier(48, CLASSES)
        )
    )


def mobilenet_v2() -> Subject:
    """MobileNetV2 (Sandler et al. 2018)."""
    return _classified(lambda: _mobile(lambda i, o, s, _: inverted_residual(i, o, s, nn.ReLU6), nn.ReLU6))


def mobilenet_v3() -> Subject:
    """MobileNetV3: hard functions, squeezed and excited in places, kernels of 5 (Howard et al. 2019)."""

    def block(inputs: int, outputs: int, stride: int, number: int) -> nn.Module:
        excite = squeeze_excite(4 * inputs, nn.Hardsigmoid) if number % 2 else None
        return inverted_residual(
            inputs, outputs, stride, nn.ReLU if number < 2 else nn.Hardswish, excite, 5 if number % 2 else 3
        )

    return _classified(lambda: _mobile(block, nn.Hardswish))


def efficientnet() -> Subject:
    """EfficientNet: SiLU, all blocks squeezed and excited (Tan and Le 2019)."""
    return _classified(
        lambda: _mobile(
            lambda i, o, s, _: inverted_residual(i, o, s, nn.SiLU, squeeze_excite(4 * i, act=nn.SiLU)), nn.SiLU
        )
    )


def _mobile(block: Callable[[int, int, int, int], nn.Module], act: type[nn.Module]) -> nn.Module:
    widths = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1))
    body = [block(*width, number) for number, width in enumerate(widths)]
    return nn.Sequential(conv(3, 16, 3, 2, act=act), *body, conv(40, 96, 1, act=act), classifier(96, CLASSES))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the other half are convolved; then channels are shuffled (Ma et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, read = outputs // 2, inputs if stride > 1 else inputs // 2
        self.stride = stride
        self.left = (
            nn.Sequential(conv(read, read, 3, stride, read, None), conv(read, half, 1)) if stride > 1 else nn.Identity()
        )
        self.right = nn.Sequential(conv(read, half, 1), conv(half, half, 3, stride, half, None), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        left, right = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        joined = torch.cat([self.left(left), self.right(right)], dim=1)
        n, c, h, w = joined.shape
        return joined.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> Subject:
    """ShuffleNetV2 (Ma et al. 2018)."""
    widths = ((24, 48, 2), (48, 48, 1), (48, 48, 1), (48, 96, 2), (96, 96, 1), (96, 96, 1))
    return _classified(
        lambda: nn.Sequential(
            conv(3, 24), *(ShuffleUnit(*width) for width in widths), conv(96, 128, 1), classifier(128, CLASSES)
        )
    )


def ghostnet() -> Subject:
    """GhostNet: half of the channels are cheap depthwise images of the others (Han et al. 2020)."""

    def ghost(inputs: int, outputs: int, act: type[nn.Module] | None) -> nn.Module:
        half = outputs // 2
        return nn.Sequential(
            conv(inputs, half, 1, act=act), Join("cat", nn.Identity(), conv(half, half, 3, groups=half, act=act))
        )

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        wide = 3 * inputs
        down = [conv(wide, wide, 3, stride, wide, None)] if stride > 1 else []
        body = (ghost(inputs, wide, nn.ReLU), *down, squeeze_excite(wide, nn.Hardsigmoid), ghost(wide, outputs, None))
        through = nn.Sequential(conv(inputs, inputs, 3, stride, inputs, None), conv(inputs, outputs, 1, act=None))
        return residual(*body, shortcut=None if inputs == outputs else through)

    widths = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1))
    return _classified(
        lambda: nn.Sequential(
            conv(3, 16, 3, 2), *(block(*width) for width in widths), conv(40, 96, 1), classifier(96, CLASSES)
        )
    )


def repvgg() -> Subject:
    """RepVGG as it is trained: 3x3, 1x1 and the input itself, each with a norm (Ding et al. 2021)."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        branches = [conv(inputs, outputs, 3, stride, act=None), conv(inputs, outputs, 1, stride, act=None)]
        branches += [nn.BatchNorm2d(inputs)] if (inputs, stride) == (outputs, 1) else []
        return nn.Sequential(Join("add", *branches), nn.ReLU())

    widths = ((3, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
    return _classified(lambda: nn.Sequential(*(block(*width) for width in widths), classifier(64, CLASSES)))


class Mixer(nn.Module):
    """Two layers along the patches, two along the channels, each added to what it read."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.along = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size)) for size in (patches, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, patches, width] to the same."""
        x = x + self.along[0](self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.along[1](self.norms[1](x))


class MlpMixer(nn.Module):
    """Patches, mixers, a norm, the mean (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.mixers = nn.Sequential(*(Mixer((SIZE // 4) ** 2, width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.norm(self.mixers(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def mlp_mixer() -> Subject:
    """MLP-Mixer (Tolstikhin et al. 2021)."""
    return _classified(MlpMixer, steps=200)


class Siamese(nn.Module):
    """One network embeds both images as vectors of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 64, 3, 2), classifier(64, 32))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Map two batches of images to their embeddings [N, 32]."""
        return functional.normalize(self.body(a)), functional.normalize(self.body(b))


def siamese() -> Subject:
    """A network that compares two images (Koch et al. 2015)."""

    def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        (a, of_a), (b, of_b) = stripes(count, generator), stripes(count, generator)
        return a, b, (of_a == of_b).float()

    def loss(embeddings: tuple[Tensor, Tensor], same: Tensor) -> Tensor:
        likeness = (embeddings[0] * embeddings[1]).sum(1)
        return functional.binary_cross_entropy_with_logits(5 * likeness - 2, same)

    return trained(Siamese, pairs, loss, "regression", labelled=False)


class PointNet(nn.Module):
    """Points turned by a matrix that they choose, the same layers for each, the largest of all (Qi et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(self._layers(3, 32, 64), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(64, 9))
        self.body = self._layers(3, 32, 64, 128)
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))

    @staticmethod
    def _layers(*widths: int) -> nn.Sequential:
        pairs = pairwise(widths)
        return nn.Sequential(
            *(nn.Sequential(nn.Conv1d(*pair, 1), nn.BatchNorm1d(pair[1]), nn.ReLU()) for pair in pairs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map points [N, 3, P] to logits [N, 4]."""
        matrix = self.turn(x).reshape(-1, 3, 3) + torch.eye(3)
        return self.head(self.body(torch.bmm(matrix, x)).amax(2))


def pointnet() -> Subject:
    """PointNet (Qi et al. 2017)."""
    return trained(PointNet, bodies, functional.cross_entropy, "classification", steps=200)
