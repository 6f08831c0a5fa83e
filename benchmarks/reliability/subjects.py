"""Models, data and functions of users, most of them wrong, for the lists of mistakes."""

import sys

import torch
from torch import nn


class Image(nn.Module):
    """[N, 1, 6, 6] -> [N, 3]."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


class Branching(Image):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class UnknownOperator(Image):
    """No runtime knows its operator."""

    def forward(self, x):
        return super().forward(torch.special.bessel_j0(x))


class TwoOutputs(Image):
    def forward(self, x):
        logits = super().forward(x)
        return {"logits": logits, "boxes": logits.repeat(1, 2)}


def model():
    torch.manual_seed(0)
    return Image().eval()


def branching():
    return Branching().eval()


def unknown_operator():
    return UnknownOperator().eval()


def two_outputs():
    return TwoOutputs().eval()


def no_layers():
    return nn.ReLU()


def meta():
    with torch.device("meta"):
        return Image()


def double():
    return model().double()


def half():
    return model().half()


def not_a_number():
    net = model()
    net.conv.weight.data[0] = torch.nan
    return net


def of_class():
    return Image


def training_state():
    return model().state_dict()


def renamed():
    """A layer's name holds markup and a terminal's code."""
    net = nn.Sequential()
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    for name, layer in zip(("[red]\x1b[31mconv", "act", "flat", "head"), layers, strict=True):
        net.add_module(name, layer)
    return net.eval()


def not_utf8():
    net = nn.Sequential(nn.Flatten())
    net.add_module("caf\udce9", nn.Linear(36, 3))
    return net.eval()


def too_deep():
    return too_deep()


def deep_batches():
    batch = []
    for _ in range(100_000):
        batch = [batch]
    return [batch]


def exits():
    sys.exit(0)


def fails():
    raise ValueError("the user's own error")


def data(count=8):
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(8, 1, 6, 6, generator=generator) for _ in range(count)]
    return [(each, torch.randint(0, 3, (8,), generator=generator)) for each in images]


def unlabelled():
    return [images for images, _ in data()]


def changed(number, image=None, label=None):
    """The data with another batch at that place, or everywhere where that is None."""
    return [
        (image(images) if image else images, label(labels) if label else labels)
        if number in (None, place)
        else (images, labels)
        for place, (images, labels) in enumerate(data())
    ]


def soft():
    return changed(None, label=lambda labels: nn.functional.one_hot(labels, 3).float())


def float_labels():
    return changed(None, label=lambda labels: labels.float())


def from_one():
    return changed(None, label=lambda labels: labels + 1)


def late_label():
    return changed(6, label=lambda labels: labels + 1)


def few_labels():
    return changed(2, label=lambda labels: labels[:5])


def column_labels():
    return changed(None, label=lambda labels: labels[:, None])


def label_list():
    return changed(None, label=lambda labels: labels.tolist())


def texts():
    return changed(None, label=lambda labels: ["cat"] * 8)


def doubles():
    return changed(None, lambda images: images.double())


def integers():
    return changed(None, lambda images: (images * 50).to(torch.uint8))


def three_channels():
    return changed(None, lambda images: images.repeat(1, 3, 1, 1))


def late_shape():
    return changed(6, lambda images: images[..., :5])


def late_nan():
    return changed(6, lambda images: images * torch.nan)


def arrays():
    return [images.numpy() for images in unlabelled()]


def unnamed():
    return [{"image": images, "labels": labels} for images, labels in data()]


def half_labelled():
    return [*data(4), *unlabelled()[4:]]


def no_samples():
    return [images[:0] for images in unlabelled()]


def empty():
    return []


def single():
    return unlabelled()[0]


def mapping():
    return {"x": unlabelled()}


def endless():
    while True:
        yield from data()


def stops():
    yield from data(2)
    raise ValueError("the disk is gone")


def endless_empty():
    while True:
        yield torch.zeros(0, 1, 6, 6)


def on_meta():
    return [*data(2), (torch.empty(8, 1, 6, 6, device="meta"), torch.zeros(8, dtype=torch.long))]


def sparse():
    return [(images.to_sparse(), labels) for images, labels in data()]


def no_length():
    return Unsized()


class Unsized:
    def __iter__(self):
        return iter(data())

    def __len__(self):
        raise KeyError("no length")


class Samples:
    def __getitem__(self, number):
        return torch.zeros(1, 6, 6), 0

    def __len__(self):
        return 8


def dataset():
    return Samples()


def once():
    yield from data()


class Fails(torch.utils.data.Dataset):
    def __getitem__(self, number):
        raise LookupError("picture 7 is gone")

    def __len__(self):
        return 8


def failing_workers():
    return torch.utils.data.DataLoader(Fails(), num_workers=1)


def loss(output, labels):
    return nn.functional.cross_entropy(output, labels)


def loss_number(output, labels):
    return loss(output, labels).item()


def loss_rows(output, labels):
    return nn.functional.cross_entropy(output, labels, reduction="none")


def loss_detached(output, labels):
    return loss(output.detach(), labels)


def loss_one(output):
    return output.sum()


def loss_none(output, labels):
    return None


def loss_nan(output, labels):
    return output.sum() * torch.nan


def score(net, batches):
    return sum(float((net(images).argmax(1) == labels).float().mean()) for images, labels in batches)


def score_fails(net, batches):
    return net.no_such_attribute


def score_none(net, batches):
    return None


def score_text(net, batches):
    return "good"


def score_nan(net, batches):
    return float("nan")


def score_rows(net, batches):
    return net(batches[0][0])


def score_one(net):
    return 1.0


def metric(inputs):
    return 3


constant = 3
