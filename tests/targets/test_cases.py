"""Networks of the kinds that users report: every output of the file is the model's, at one sample, three and all."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import mixbit as mb
from mixbit.core.batches import Inputs
from mixbit.core.target import find_target
from mixbit.core.task import outputs_of
from mixbit.quantization import uniform_plan
from tests.networks import Net, overflows

COUNT = 24
#: Largest root mean square difference of an output from the model's at 8 bits, and of the file from the simulation,
#: over the spread of the output; a tie that rounds the other way in a recurrence goes through all later steps.
FROM_MODEL, FROM_SIMULATION = 0.08, 0.02


class AnyArguments(nn.Module):
    """A wrapper of another network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.inner(*args, **kwargs)


@dataclass
class Fields(OrderedDict):
    """As libraries of language models return them: a dataclass that is a dict too, some of whose fields are None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "logits", "hidden"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


class Returning(nn.Module):
    """It returns such fields, and takes options that it can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 5)

    def forward(self, values: Tensor | None = None, labels: Tensor | None = None, return_hidden: bool = True) -> Fields:
        kept, x = [], values
        for layer in self.layers:
            x = layer(x).relu()
            kept.append(x)
        loss = None if labels is None else F.cross_entropy(self.head(x), labels)
        return Fields(loss, self.head(x), tuple(kept) if return_hidden else None)


def without_heads():
    def run(net, ids):
        x = net.tokens(ids)
        for _ in range(2):  # one block twice
            q, k, v = net.qkv(net.norm(x)).chunk(3, -1)
            x = x + net.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            x = x + net.down(F.silu(net.gate(x)) * net.up(x))
        return net.head(x)

    sizes = {"qkv": (16, 48), "out": (16, 16), "gate": (16, 24), "up": (16, 24), "down": (24, 16), "head": (16, 20)}
    parts = {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
    return Net(run, tokens=nn.Embedding(20, 16), norm=nn.LayerNorm(16), **parts)


def convolutions_then_lstm():
    def run(net, x):
        x = net.conv(x).relu().permute(3, 0, 1, 2).flatten(2)
        x, (hidden, _) = net.lstm(x)
        return net.head(x.transpose(0, 1).flatten(1)), hidden.transpose(0, 1)

    lstm = nn.LSTM(16, 8, bidirectional=True)
    return Net(run, conv=nn.Conv2d(1, 4, (3, 5), stride=2), lstm=lstm, head=nn.Linear(16 * 5, 6))


def decoder():
    """What one layer makes small, channel by channel, the next makes large again."""
    up = [nn.ConvTranspose2d(8, 8, 2, stride=2) for _ in range(2)]
    gains = torch.logspace(-2, 0, 8).reshape(1, 8, 1, 1)
    with torch.no_grad():
        up[0].weight *= gains
        up[0].bias *= gains.flatten()
        up[1].weight /= gains.reshape(8, 1, 1, 1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), up[0], nn.ReLU(), up[1], nn.ReLU(), nn.Conv2d(8, 4, 1))


def both_ways():
    matrix = nn.Parameter(torch.randn(32, 32) * torch.logspace(-1, 1, 32) / 6)

    def run(net, x):
        return net.head(((x @ net.matrix).tanh() @ net.matrix.t()).tanh())

    return Net(run, matrix=matrix, head=nn.Linear(32, 4))


def padded_pool():
    pool = nn.AvgPool2d(3, stride=1, padding=1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), pool, nn.Conv2d(8, 4, 1))


def some_weight_norm():
    norm = parametrizations.weight_norm
    up = norm(nn.ConvTranspose1d(12, 10, 4, stride=2, padding=1))
    layers = [norm(nn.Conv1d(8, 12, 5, padding=2)), up, nn.Conv1d(10, 6, 3), norm(nn.Conv1d(6, 2, 3, padding=1))]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(0.1))))


def two_heads():
    def run(net, x):
        x = net.body(x).relu()
        return net.kinds(x).mean((2, 3)), net.boxes(x).mean((2, 3)) * 50

    return Net(run, body=nn.Conv2d(3, 12, 3, 2), kinds=nn.Conv2d(12, 5, 3), boxes=nn.Conv2d(12, 4, 3))


CASES = {
    "any arguments": (AnyArguments, lambda: torch.randn(COUNT, 8)),
    "fields": (Returning, lambda: {"values": torch.randn(COUNT, 12)}),
    "attention without heads": (without_heads, lambda: torch.randint(0, 20, (COUNT, 7))),
    "convolutions, then LSTM": (convolutions_then_lstm, lambda: torch.randn(COUNT, 1, 9, 13)),
    "decoder": (decoder, lambda: torch.randn(COUNT, 3, 8, 8)),
    "a matrix both ways": (both_ways, lambda: torch.randn(COUNT, 32)),
    "padded average pool": (padded_pool, lambda: torch.randn(COUNT, 3, 8, 8)),
    "some weight norm": (some_weight_norm, lambda: torch.randn(COUNT, 8, 10)),
    "two heads": (two_heads, lambda: torch.randn(COUNT, 3, 9, 9) + torch.randn(COUNT, 3, 1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_output_of_every_file_is_the_models(name, tmp_path):
    torch.manual_seed(0)
    make, data = CASES[name]
    model, inputs = make().eval(), Inputs.of(data())
    graph = mb.capture(model, inputs)
    with torch.no_grad():
        whole = outputs_of(inputs.call(model))
    assert sum(layer.numel for layer in graph.layers) >= 0.97 * sum(
        parameter.numel() for parameter in model.parameters() if parameter.ndim > 1
    )
    for target in ("openvino", "onnxruntime", "packed", "litert"):
        pytest.importorskip(target) if target != "packed" else None
        scheme = "w6a8" if overflows(target) else "w8a8"
        simulated = mb.quantize(graph, uniform_plan(graph, scheme, target=target), [inputs])
        mb.export(simulated, tmp_path / target)
        runner = find_target(target).load(tmp_path / target, graph)
        for count in (1, 3, COUNT):
            some = inputs.rows(slice(count))
            got = [torch.from_numpy(each) for each in runner.run([leaf.numpy() for leaf in some.tensors])]
            with torch.no_grad():
                wanted, expected = (outputs_of(some.call(network)) for network in (model, simulated))
            assert len(got) == len(wanted) == len(expected)
            for one, key, other in zip(got, wanted, expected.values(), strict=True):
                where = f"{target}, output {key}, {count} samples"
                spread = float(whole[key].std())
                assert one.shape == wanted[key].shape, where
                assert float((one - wanted[key]).square().mean().sqrt()) < FROM_MODEL * spread, where
                assert float((one - other).square().mean().sqrt()) < FROM_SIMULATION * spread, where
