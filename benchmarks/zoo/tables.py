"""Networks that read numbers, items, tokens and graphs."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.data import CLASSES, TOKENS, clicks, communities, next_tokens, ratings, topics
from benchmarks.zoo.subject import Subject, trained


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    pairs = pairwise(widths)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Dlrm(nn.Module):
    """Numbers and bags of items as vectors, the products of all pairs, layers (Naumov et al. 2019)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.bottom = nn.Sequential(_layers(8, 32, width), nn.ReLU())
        self.bags = nn.ModuleList(nn.EmbeddingBag(size, width, mode="sum") for size in (100, 200))
        self.top = _layers(width + 3, 32, 16, 1)
        self.register_buffer("pairs", torch.tril_indices(3, 3, -1), persistent=False)

    def forward(self, numbers: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Map numbers [N, 8] and two bags [N, 3] to the probability of a click [N, 1]."""
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, self.bags[0](first), self.bags[1](second)], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([dense, products], dim=1)))


def dlrm() -> Subject:
    """DLRM: a recommender with embedding bags (Naumov et al. 2019)."""
    return trained(Dlrm, clicks, functional.binary_cross_entropy, "multilabel", labelled=False, steps=400, rate=1e-2)


class Ncf(nn.Module):
    """The product of two vectors beside layers over two others (He et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.users, self.items = (nn.ModuleList(nn.Embedding(size, width) for _ in range(2)) for size in (200, 300))
        self.body, self.head = nn.Sequential(_layers(2 * width, 32, width), nn.ReLU()), nn.Linear(2 * width, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Map users [N] and items [N] to how well they fit [N, 1]."""
        product = self.users[0](user) * self.items[0](item)
        deep = self.body(torch.cat([self.users[1](user), self.items[1](item)], dim=1))
        return self.head(torch.cat([product, deep], dim=1))


def ncf() -> Subject:
    """Neural collaborative filtering (He et al. 2017)."""
    return trained(Ncf, ratings, functional.mse_loss, "regression", labelled=False, steps=600, rate=2e-2)


class Gcn(nn.Module):
    """Layers that average over neighbours (Kipf and Welling 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*widths) for widths in ((16, 32), (32, 32), (32, 4)))

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        """Map features [N, V, 16] and adjacency [N, V, V] to logits of every node [N, V, 4]."""
        states = features
        for layer in self.layers[:-1]:
            states = torch.relu(adjacency @ layer(states))
        return adjacency @ self.layers[-1](states)


def gcn() -> Subject:
    """A graph convolutional network on dense adjacency (Kipf and Welling 2016)."""
    return trained(Gcn, communities, _of_tokens, "language", rate=1e-2)


def _of_tokens(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


class Experts(nn.Module):
    """Four experts in two three-dimensional parameters; the two best ones of each token count (Shazeer et al. 2017)."""

    def __init__(self, width: int, hidden: int, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map states [N, T, width] to states."""
        best, chosen = self.gate(x).topk(2, dim=-1)
        shares = torch.zeros_like(self.gate(x)).scatter(-1, chosen, best.softmax(-1))
        tokens = x.flatten(0, 1)
        outputs = torch.bmm(torch.relu(torch.matmul(tokens, self.up)), self.down)  # [experts, tokens, width]
        return (outputs * shares.flatten(0, 1).t().unsqueeze(2)).sum(0).view_as(x)


class MixtureOfExperts(nn.Module):
    """Causal attention and experts under a head of the embedding's matrix."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.experts = Experts(width, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T] to logits of the next ones [N, T, TOKENS]."""
        x = self.tokens(tokens)
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, dim=2))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.experts(self.norms[1](x))
        return self.norms[2](x) @ self.tokens.weight.t()


def mixture_of_experts() -> Subject:
    """A language model whose feed-forward layers are experts (Shazeer et al. 2017)."""
    return trained(MixtureOfExperts, next_tokens, _of_tokens, "language", steps=300, rate=5e-3)


class TextCnn(nn.Module):
    """Convolutions of three widths over embedded tokens, the largest of each (Kim 2014)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, width, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(width, 24, size) for size in (2, 3, 4))
        self.head = nn.Linear(72, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [N, T] to logits."""
        x = self.tokens(tokens).transpose(1, 2)
        return self.head(torch.cat([torch.relu(conv(x)).amax(2) for conv in self.convs], dim=1))


def text_cnn() -> Subject:
    """A convolutional classifier of sentences (Kim 2014)."""
    return trained(TextCnn, topics, functional.cross_entropy, "classification")
