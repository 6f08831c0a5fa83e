"""Synthetic data with something to learn in it; every function draws from the generator that it is given."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

CLASSES, SIZE, TOKENS = 8, 32, 64


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Numbers between both, of that shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def noise(generator: Generator, *shape: int) -> Tensor:
    """Standard normal numbers of that shape."""
    return torch.randn(shape, generator=generator)


def stripes(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images [N, 3, SIZE, SIZE] of stripes of any colour in noise, and their direction [N], one of CLASSES."""
    direction = torch.randint(CLASSES, (count,), generator=generator)
    angle = (direction * math.pi / CLASSES).reshape(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    phase = uniform(generator, 0, 2 * math.pi, count, 1, 1)
    wave = torch.sin(0.8 * (x * angle.cos() + y * angle.sin()) + phase).unsqueeze(1)
    return wave * uniform(generator, 0.5, 1.5, count, 3, 1, 1) + 0.3 * noise(generator, count, 3, SIZE, SIZE), direction


def smooth(count: int, generator: Generator, channels: int = 3, size: int = SIZE) -> Tensor:
    """Images [N, channels, size, size] in 0..1 without fine detail."""
    coarse = noise(generator, count, channels, size // 8 + 1, size // 8 + 1)
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).sigmoid()


def scenes(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A disc and a square on a smooth ground.

    Images [N, 3, SIZE, SIZE]; the class of every pixel [N, SIZE, SIZE], 1 in the disc, 2 in the square, else 0; and
    the boxes [N, 2, 4] of both as centre and size, in pixels.
    """
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = uniform(generator, 6, SIZE - 6, count, 2, 2, 1, 1)
    radius = uniform(generator, 3, 7, count, 2, 1, 1)
    across, down = (x - centre[:, :, 0]).abs(), (y - centre[:, :, 1]).abs()
    disc = across[:, 0].square() + down[:, 0].square() < radius[:, 0].square()
    square = torch.maximum(across[:, 1], down[:, 1]) < radius[:, 1]
    mask = torch.where(square, 2, disc.long())
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.5, -0.5, 0.5], [-0.5, 1.0, 1.5]])
    images = smooth(count, generator) + colours[mask].movedim(-1, 1) + 0.2 * noise(generator, count, 3, SIZE, SIZE)
    boxes = torch.cat([centre.flatten(2), 2 * radius.flatten(2).expand(-1, -1, 2)], dim=2)
    return images, mask, boxes


def halves(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Images [N, 3, SIZE / 2, SIZE / 2], and the ones of twice the size that they are means of."""
    whole = smooth(count, generator) + 0.3 * (scenes(count, generator)[1] > 0).unsqueeze(1)
    return functional.avg_pool2d(whole, 2), whole


def tones(count: int, generator: Generator, length: int = 512) -> tuple[Tensor, Tensor]:
    """Sounds [N, 1, length] of a tone in noise, and which of CLASSES pitches it has [N]."""
    pitch = torch.randint(CLASSES, (count,), generator=generator)
    step = (0.1 * 1.3**pitch).reshape(-1, 1, 1) * (1 + 0.02 * noise(generator, count, 1, 1))
    phase = uniform(generator, 0, 2 * math.pi, count, 1, 1)
    envelope = uniform(generator, 0.3, 1, count, 1, 1)
    return envelope * torch.sin(step * torch.arange(length) + phase) + 0.1 * noise(generator, count, 1, length), pitch


def sweeps(count: int, generator: Generator, bands: int = 32, frames: int = 32) -> tuple[Tensor, Tensor]:
    """Spectrograms [N, bands, frames] of a ridge that goes from one quarter to another, and the pair of them [N]."""
    quarters = torch.randint(4, (count, 2), generator=generator)
    ends = (quarters + uniform(generator, 0.1, 0.9, count, 2)) * bands / 4
    ridge = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.linspace(0, 1, frames)
    distance = torch.arange(bands).reshape(1, -1, 1) - ridge.unsqueeze(1)
    return 3 * torch.exp(-0.3 * distance.square()) + 0.3 * noise(
        generator, count, bands, frames
    ), quarters @ torch.tensor([4, 1])


def levels(count: int, generator: Generator, length: int = 128) -> tuple[Tensor, Tensor]:
    """Sums of two tones, cut into 32 levels: [N, length] integers, and the ones that follow them."""
    step = uniform(generator, 0.05, 0.4, count, 2, 1)
    phase = uniform(generator, 0, 2 * math.pi, count, 2, 1)
    wave = torch.sin(step * torch.arange(length + 1) + phase).mean(1)
    numbers = ((wave + 1) * 16).long().clamp(0, 31)
    return numbers[:, :-1], numbers[:, 1:]


def sentences(count: int, generator: Generator, length: int = 24) -> Tensor:
    """Tokens [N, length] of 1..TOKENS - 1, each one of four that may follow the one before."""
    following = torch.randint(1, TOKENS, (TOKENS, 4), generator=torch.Generator().manual_seed(7))
    tokens = [torch.randint(1, TOKENS, (count,), generator=generator)]
    for _ in range(length - 1):
        pick = (4 * torch.rand(count, generator=generator).square()).long()
        tokens.append(following[tokens[-1], pick])
    return torch.stack(tokens, dim=1)


def next_tokens(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Tokens [N, T], and the ones that follow them."""
    tokens = sentences(count, generator)
    return tokens[:, :-1], tokens[:, 1:]


def topics(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Tokens [N, T], some replaced by those of one topic, and which of CLASSES topics that is [N]."""
    tokens, topic = sentences(count, generator), torch.randint(CLASSES, (count,), generator=generator)
    own = 1 + topic.unsqueeze(1) * 7 + torch.randint(7, tokens.shape, generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.3, own, tokens), topic


def lines(count: int, generator: Generator, letters: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures [N, 1, 16, 8 * letters] of letters, and their numbers [N, letters] in 1..10."""
    shapes = (noise(torch.Generator().manual_seed(7), 11, 1, 4, 4) > 0).float()
    shapes = functional.interpolate(shapes, scale_factor=(3, 1.5))
    text = torch.randint(1, 11, (count, letters), generator=generator)
    page = torch.zeros(count, 1, 16, 8 * letters)
    for place in range(letters):
        page[:, :, 2:14, 8 * place + 1 : 8 * place + 7] = shapes[text[:, place]]
    return page + 0.2 * noise(generator, *page.shape), text


def clicks(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers [N, 8], bags of three items [N, 3] out of 100 and of 200, and whether the user clicked [N, 1]."""
    hidden = torch.Generator().manual_seed(7)
    tastes, first, second = noise(hidden, 8, 4), noise(hidden, 100, 4), noise(hidden, 200, 4)
    numbers = noise(generator, count, 8)
    bags = [torch.randint(size, (count, 3), generator=generator) for size in (100, 200)]
    one, other = first[bags[0]].mean(1), second[bags[1]].mean(1)
    score = numbers[:, 0] + 2 * (one + other)[:, 0] + (numbers @ tastes * one / 2).sum(1)
    return numbers, *bags, (score > 0).float().unsqueeze(1)


def ratings(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Users [N] of 200, items [N] of 300, and how well they fit [N, 1]."""
    hidden = torch.Generator().manual_seed(7)
    users, items = noise(hidden, 200, 3), noise(hidden, 300, 3)
    user, item = (torch.randint(size, (count,), generator=generator) for size in (200, 300))
    together = users[user, :1] + items[item, :1] + (users[user] * items[item]).sum(1, keepdim=True) / 2
    return user, item, together.tanh()


def communities(count: int, generator: Generator, nodes: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Graphs of four communities: features [N, V, 16], adjacency scaled by degrees [N, V, V], community [N, V]."""
    member = torch.randint(4, (count, nodes), generator=generator)
    alike = member.unsqueeze(1) == member.unsqueeze(2)
    edges = torch.rand(count, nodes, nodes, generator=generator) < torch.where(alike, 0.5, 0.05)
    adjacency = (edges | edges.transpose(1, 2) | torch.eye(nodes, dtype=torch.bool)).float()
    scale = adjacency.sum(2).rsqrt()
    own = functional.one_hot(member, 16) * (torch.rand(count, nodes, 1, generator=generator) < 0.4)
    features = own + 0.3 * noise(generator, count, nodes, 16)
    return features, scale.unsqueeze(1) * adjacency * scale.unsqueeze(2), member


def bodies(count: int, generator: Generator, points: int = 64) -> tuple[Tensor, Tensor]:
    """Points [N, 3, P] on a sphere, a cube, a cylinder or a cone, turned and scaled, and which [N]."""
    kind = torch.randint(4, (count,), generator=generator)
    sphere = functional.normalize(noise(generator, count, 3, points), dim=1)
    cube = sphere / sphere.abs().amax(1, keepdim=True)
    height = uniform(generator, -1, 1, count, 1, points)
    ring = functional.normalize(noise(generator, count, 2, points), dim=1)
    cylinder, cone = torch.cat([ring, height], 1), torch.cat([ring * (1 - height) / 2, height], 1)
    chosen = torch.stack([sphere, cube, cylinder, cone], 1)[torch.arange(count), kind]
    turned = torch.linalg.qr(noise(generator, count, 3, 3)).Q @ chosen
    return turned * uniform(generator, 0.7, 1.3, count, 1, 1), kind
