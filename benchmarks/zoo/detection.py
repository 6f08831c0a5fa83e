"""Detectors: scores and boxes of several sizes from one image."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.blocks import conv, residual
from benchmarks.zoo.data import SIZE, scenes
from benchmarks.zoo.subject import Subject, trained

STRIDES, KINDS, BINS = (4, 8), 2, 8


def _centres() -> tuple[Tensor, Tensor]:
    """Pixels [2, A] at which the anchors of all strides are, and their strides [A]."""
    centres, strides = [], []
    for stride in STRIDES:
        steps = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((centres[-1].shape[1],), float(stride)))
    return torch.cat(centres, dim=1), torch.cat(strides)


def _images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, _, boxes = scenes(count, generator)
    return images, boxes


def _loss(scores: Tensor, boxes: Tensor, wanted: Tensor) -> Tensor:
    """Of probabilities [N, KINDS, A] and boxes [N, 4, A] in pixels: anchors near an object's centre are to find it."""
    offset = _centres()[0].unsqueeze(1) - wanted[:, :, :2].transpose(1, 2).unsqueeze(3)  # [N, 2, KINDS, A]
    near = (offset.abs().amax(1) < 3).float()
    found = functional.binary_cross_entropy(scores.clamp(1e-6, 1 - 1e-6), near)
    distance = (boxes.unsqueeze(1) - wanted.unsqueeze(3)).abs().mean(2)  # [N, KINDS, A]
    return found + 0.2 * (distance * near).sum() / near.sum()


class Stage(nn.Module):
    """Halves of the channels: one passes, the other goes through residual blocks, and all are kept (YOLOv8's C2f)."""

    def __init__(self, inputs: int, outputs: int, *, shortcut: bool) -> None:
        super().__init__()
        half, silu = outputs // 2, nn.SiLU
        self.split, self.join = conv(inputs, outputs, 1, act=silu), conv(3 * half, outputs, 1, act=silu)
        body = (conv(half, half, act=silu), conv(half, half, act=silu))
        self.body = residual(*body) if shortcut else nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W]."""
        a, b = self.split(x).chunk(2, dim=1)
        return self.join(torch.cat([a, b, self.body(b)], dim=1))


class Pyramid(nn.Module):
    """Three poolings in a row, joined (YOLO's SPPF)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.join = conv(width, width // 2, 1, act=nn.SiLU), conv(2 * width, width, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to the same."""
        parts = [self.narrow(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.join(torch.cat(parts, dim=1))


class Yolo(nn.Module):
    """Backbone, a path up and one down, and a head of bins for the sides of boxes beside one of scores (YOLOv8)."""

    def __init__(self) -> None:
        super().__init__()
        down = partial(conv, act=nn.SiLU)
        self.stem = nn.Sequential(down(3, 12, 3, 2), down(12, 24, 3, 2), Stage(24, 24, shortcut=True))
        self.deep = nn.Sequential(down(24, 48, 3, 2), Stage(48, 48, shortcut=True), Pyramid(48))
        self.up, self.again, self.down = (
            Stage(72, 24, shortcut=False),
            Stage(72, 48, shortcut=False),
            down(24, 24, 3, 2),
        )
        self.sides = nn.ModuleList(nn.Sequential(down(c, 24), nn.Conv2d(24, 4 * BINS, 1)) for c in (24, 48))
        self.scores = nn.ModuleList(nn.Sequential(down(c, 24), nn.Conv2d(24, KINDS, 1)) for c in (24, 48))
        centres, strides = _centres()
        self.register_buffer("centres", centres)
        self.register_buffer("strides", strides)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to [N, 4 + KINDS, A]: centre and size of a box in pixels, and the probability of each class."""
        fine = self.stem(x)
        coarse = self.deep(fine)
        fine = self.up(torch.cat([functional.interpolate(coarse, scale_factor=2.0), fine], dim=1))
        coarse = self.again(torch.cat([self.down(fine), coarse], dim=1))
        levels = (fine, coarse)
        sides = torch.cat([head(x).flatten(2) for head, x in zip(self.sides, levels, strict=True)], dim=2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.scores, levels, strict=True)], dim=2)
        chances = sides.view(x.shape[0], 4, BINS, -1).softmax(2)
        left_top, right_bottom = ((chances * self.bins.reshape(1, 1, -1, 1)).sum(2)).chunk(2, dim=1)
        middle, size = (
            self.centres + (right_bottom - left_top) / 2 * self.strides,
            (left_top + right_bottom) * self.strides,
        )
        return torch.cat([middle, size, scores.sigmoid()], dim=1)


def yolo() -> Subject:
    """A detector like YOLOv8, with its decoder in the graph."""

    def loss(found: Tensor, wanted: Tensor) -> Tensor:
        return _loss(found[:, 4:], found[:, :4], wanted)

    return trained(Yolo, _images, loss, "detection", labelled=False, steps=200)


class Retina(nn.Module):
    """A residual backbone, features of two sizes added from above, heads that both sizes share (Lin et al. 2017)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 16, 3, 2), conv(16, 24, 3, 2), residual(conv(24, 24), conv(24, 24, act=None)), nn.ReLU()
        )
        self.deep = nn.Sequential(conv(24, 48, 3, 2), residual(conv(48, 48), conv(48, 48, act=None)), nn.ReLU())
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (24, 48))
        self.after = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.scores, self.boxes = (
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, outputs, 3, padding=1))
            for outputs in (KINDS, 4)
        )
        centres, strides = _centres()
        self.register_buffer("centres", centres)
        self.register_buffer("strides", strides)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits [N, A, KINDS] and boxes [N, A, 4] as centre and size in pixels."""
        fine = self.stem(x)
        coarse = self.lateral[1](self.deep(fine))
        fine = self.lateral[0](fine) + functional.interpolate(coarse, scale_factor=2.0)
        levels = [after(level) for after, level in zip(self.after, (fine, coarse), strict=True)]
        logits, boxes = (
            torch.cat([head(level).flatten(2) for level in levels], dim=2) for head in (self.scores, self.boxes)
        )
        middle, size = self.centres + boxes[:, :2] * self.strides, boxes[:, 2:].exp() * self.strides
        return logits.transpose(1, 2), torch.cat([middle, size], dim=1).transpose(1, 2)


def fpn_detector() -> Subject:
    """RetinaNet: a feature pyramid under shared heads (Lin et al. 2017)."""

    def loss(found: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
        return _loss(found[0].sigmoid().transpose(1, 2), found[1].transpose(1, 2), wanted)

    return trained(Retina, _images, loss, "detection", labelled=False, steps=200)


class Landmarks(nn.Module):
    """One body, four heads: classes, a box, points and whether there is anything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 48, 3, 2), nn.Flatten(), nn.Linear(768, 64), nn.ReLU()
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(64, size) for name, size in (("logits", 3), ("box", 4), ("points", 4), ("size", 1))}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images to the outputs of each head by name."""
        states = self.body(x)
        return {name: head(states) for name, head in self.heads.items()}


def multi_task() -> Subject:
    """A network with several heads: which shape is larger, its box, both centres, the distance between them."""

    def loss(found: dict[str, Tensor], boxes: Tensor) -> Tensor:
        areas = boxes[:, :, 2]
        kind = torch.where((areas[:, 0] - areas[:, 1]).abs() < 1.5, 2, areas.argmax(1))
        box = boxes[torch.arange(len(boxes)), areas.argmax(1)]
        middle = boxes[:, :, :2]
        distance = (middle[:, 0] - middle[:, 1]).norm(dim=1, keepdim=True)
        errors = [(found["box"] - box), found["points"] - middle.flatten(1) / SIZE, found["size"] - distance]
        scales = (SIZE, 1, SIZE)
        squares = [(error / scale).square().mean() for error, scale in zip(errors, scales, strict=True)]
        return functional.cross_entropy(found["logits"], kind) + 10 * sum(squares)

    return trained(Landmarks, _images, loss, "multi:logits=classification", labelled=False, steps=300)
