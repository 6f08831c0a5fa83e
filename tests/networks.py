"""Small networks for tests: one for each operator that holds a weight, and a few whole ones."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixbit.core import Plan, find_target
from mixbit.core.batches import Inputs
from mixbit.core.target import TARGETS, Target
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer, model_fingerprint
from mixbit.quantization.quantizer import Quantizer, quantizers_of

#: Targets of models of transformers alone, which most networks of tests are not; `tests/targets` has a file for each.
OF_HUGGINGFACE = ("compressed_tensors",)
FOR_ANY_NETWORK = [name for name in TARGETS if name not in OF_HUGGINGFACE]


def crude_scales():
    """A context in which scales of weights are min-max: rounded to nearest, a network is far from its float self."""
    return mock.patch("mixbit.quantization.scales.shares", return_value=torch.ones(1))


def overflows(target: str) -> bool:
    """Whether sums with 8-bit weights overflow in the target's runtime on this processor."""
    return find_target(target).overflows()


def scheme_of_bytes(target: str) -> str:
    """The widest scheme whose sums do not overflow on this processor."""
    return "w6a8" if target == "openvino" and overflows(target) else "w8a8"


def skip_if_sums_overflow(target: str, plan: Plan) -> None:
    """Skip a test of a file whose 8-bit weights this processor does not multiply exactly."""
    schemes = [plan.scheme(name) for name in plan.layers]
    of_bytes = any(scheme.weight_bits == 8 and scheme.input is not None for scheme in schemes)
    if target == "openvino" and of_bytes and overflows(target):
        pytest.skip(f"without VNNI, sums of products with 8-bit weights overflow in {target}")


def _nothing(*_: Any, **__: Any) -> Any:
    """For what no test asks of the target."""
    raise NotImplementedError


#: A target that runs everything, and nothing between layers in integers; the fixture `anything` gives it its name.
ANYTHING = TARGET = Target(
    name="anything",
    files=("file",),
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    input_bits=(2, 3, 4, 5, 6, 7, 8),
    default_choices=("w4a8", "w8a8"),
    note="for tests",
    lacks=lambda scheme: "nothing but weights and static ranges" if "@" in str(scheme) or "d" in str(scheme) else None,
    weight_bytes=lambda shape, axis, fmt: 1,
    require=lambda: None,
    write=_nothing,
    load=_nothing,
    stored=_nothing,
)


class Net(nn.Module):
    """Parts by name, and the function of one input that runs them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def by_tensor(graph: Graph) -> dict[str, Quantizer]:
    """Name of the quantized tensor -> its quantizer, in networks whose parameters and nodes share no name."""
    return {one.tensor: one for one in quantizers_of(graph)}


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 2)


#: Name -> how to make the network, with one layer called a.weight or w, and the shape of one sample of its input.
OPERATORS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Net(lambda net, x: net.a(x), a=nn.Linear(5, 4)), (5,)),
    "linear, no bias": (lambda: Net(lambda net, x: net.a(x), a=nn.Linear(5, 4, bias=False)), (5,)),
    "linear, 3 dimensions": (lambda: Net(lambda net, x: net.a(x), a=nn.Linear(5, 4)), (3, 5)),
    "linear, samples second": (
        lambda: Net(lambda net, x: net.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(5, 4)),
        (3, 5),
    ),
    "linear, rows first": (
        lambda: Net(lambda net, x: net.a(x.transpose(0, 1).reshape(-1, 5)).view(3, -1, 4).sum(0), a=nn.Linear(5, 4)),
        (3, 5),
    ),
    "functional": (lambda: Net(lambda net, x: F.linear(x, net.w), w=matrix(4, 5)), (5,)),
    "conv1d": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv1d(3, 4, 3)), (3, 8)),
    "conv2d": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 3, stride=2, padding=1)), (3, 8, 6)),
    "conv3d": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv3d(2, 3, 2)), (2, 4, 4, 3)),
    "conv2d, no bias": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 3, bias=False)), (3, 6, 6)),
    "grouped": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(4, 6, 3, groups=2)), (4, 6, 6)),
    "depthwise": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(4, 4, 3, groups=4)), (4, 6, 6)),
    "same padding": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 3, padding="same")), (3, 6, 6)),
    "dilated": (lambda: Net(lambda net, x: net.a(x), a=nn.Conv1d(3, 4, 3, dilation=2)), (3, 9)),
    "conv_transpose1d": (lambda: Net(lambda net, x: net.a(x), a=nn.ConvTranspose1d(3, 4, 3, stride=2)), (3, 5)),
    "conv_transpose2d": (
        lambda: Net(lambda net, x: net.a(x), a=nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)),
        (3, 4, 4),
    ),
    "conv_transpose3d": (lambda: Net(lambda net, x: net.a(x), a=nn.ConvTranspose3d(2, 3, 2)), (2, 3, 3, 2)),
    "conv_transpose2d, grouped": (
        lambda: Net(lambda net, x: net.a(x), a=nn.ConvTranspose2d(4, 6, 3, groups=2)),
        (4, 4, 4),
    ),
    "embedding": (lambda: Net(lambda net, x: net.a(x.abs().mul(3).long().clamp(max=6)), a=nn.Embedding(7, 4)), (5,)),
    "embedding, samples second": (
        lambda: Net(
            lambda net, x: net.a(x.abs().mul(3).long().clamp(max=6).transpose(0, 1)).transpose(0, 1),
            a=nn.Embedding(7, 4),
        ),
        (5,),
    ),
    "addmm": (lambda: Net(lambda net, x: torch.addmm(net.b, x, net.w), b=matrix(4), w=matrix(5, 4)), (5,)),
    "mm": (lambda: Net(lambda net, x: torch.mm(x, net.w), w=matrix(5, 4)), (5,)),
    "matmul": (lambda: Net(lambda net, x: x @ net.w, w=matrix(5, 4)), (3, 5)),
    "matmul, transposed": (lambda: Net(lambda net, x: x @ net.w.T, w=matrix(4, 5)), (3, 5)),
    "matmul, permuted": (lambda: Net(lambda net, x: x @ net.w.permute(1, 0), w=matrix(4, 4)), (3, 4)),
    "matmul, on the left": (lambda: Net(lambda net, x: (net.w @ x).transpose(1, 2), w=matrix(4, 5)), (5, 3)),
    "matmul, a matrix for each head": (
        lambda: Net(lambda net, x: (x @ net.w).transpose(2, 3).flatten(1, 2), w=matrix(2, 5, 4)),
        (2, 3, 5),
    ),
    "embedding, bags": (
        lambda: Net(lambda net, x: net.a(x.abs().mul(3).long().clamp(max=6)), a=nn.EmbeddingBag(7, 4, mode="sum")),
        (5,),
    ),
    "matmul, permuted to itself": (lambda: Net(lambda net, x: x @ net.w.permute(0, 1), w=matrix(4, 4)), (3, 4)),
}


#: Networks of one layer, convolutions of 8 channels and products of 9 numbers a row, an odd one.
ONE_LAYER: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(8, 16, 3),
    "padded": lambda: nn.Conv2d(8, 16, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(8, 16, 3, dilation=2, padding=2),
    "pointwise": lambda: nn.Conv2d(8, 16, 1, bias=False),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "depthwise, two each": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "groups": lambda: nn.Conv2d(8, 16, 3, groups=2),
    "then clipped": lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU()),
    "then clipped at 6": lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU6()),
    "then clipped at both ends": lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.Hardtanh(-0.5, 0.5)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(8 * 81, 16)),
    "rows": lambda: nn.Linear(9, 16),
    "line": lambda: Net(lambda net, x: net.line(x.flatten(2)), line=nn.Conv1d(8, 16, 5, padding=2, stride=2)),
}


def as_in_model(kind: str, weight: Tensor) -> Tensor:
    """A layer's weight in the model's shape: a matrix for each head becomes channels of one convolution."""
    return weight.reshape(2, 4, 5).transpose(1, 2) if "each head" in kind else weight


def operator_network(kind: str, num_samples: int = 3) -> tuple[nn.Module, Tensor]:
    """The network of that operator and inputs for it, always the same."""
    torch.manual_seed(0)
    make, shape = OPERATORS[kind]
    return make(), torch.randn(num_samples, *shape) + 0.5


@functools.cache
def captured_operator(kind: str) -> tuple[nn.Module, Tensor, Graph]:
    """The network of that operator, inputs, and its graph, all in float64; no test changes them."""
    model, x = operator_network(kind)
    return model.double(), x.double(), capture(model.double(), x.double())


class Residual(nn.Module):
    """Convolutions with batch norms, an addition, poolings, a zero-padded shortcut and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(0.5, 2)
            self.norm.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x)))
        y = F.relu(self.second(y) + F.pad(x, (0, 0, 0, 0, 1, 1)))
        return self.last(F.max_pool2d(y, 2).mean((2, 3)))


class Attention(nn.Module):
    """Token and position embeddings, attention with separate q, k and v, and a head tied to the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 4)
        self.positions = nn.Embedding(5, 4)
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("numbers", torch.arange(5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(self.numbers)
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.head((x + y).mean(1))


class BentPositions(Attention):
    """More than arithmetic reads the embedding of positions, which all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.bent, self.positions = self.positions, nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        return self.attend(self.tokens(ids) + self.bent(self.numbers).tanh())


def batches_of(x: Tensor, size: int) -> list[Inputs]:
    return [Inputs.of(part) for part in x.split(size)]


def plan_of(layers: tuple[Layer, ...], schemes: str | dict[str, str], target: str = "anything") -> Plan:
    """The same scheme for all layers, or one for each."""
    chosen = schemes if isinstance(schemes, dict) else {layer.name: schemes for layer in layers}
    return Plan(target=target, fingerprint=model_fingerprint(layers), layers=chosen)


def state_of(module: nn.Module) -> dict[str, Any]:
    """A copy of all that a call may not change: tensors, training flags, requires_grad."""
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict(keep_vars=True).items()}
    return {
        "tensors": tensors,
        "training": {name: part.training for name, part in module.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "gradients": [name for name, parameter in module.named_parameters() if parameter.grad is not None],
        "identities": {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()},
    }


def assert_state_is(module: nn.Module, state: dict[str, Any]) -> None:
    now = state_of(module)
    for name in ("training", "requires_grad", "gradients", "identities"):
        assert now[name] == state[name], name
    assert now["tensors"].keys() == state["tensors"].keys()
    for name, tensor in state["tensors"].items():
        assert torch.equal(now["tensors"][name], tensor), name
