"""Small networks with labels, and what their operators do in the plain model, for slow references in float64."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mixbit.core.scheme import Scheme
from mixbit.core.task import Task
from mixbit.graph.capture import capture
from mixbit.graph.graph import Graph, Layer
from mixbit.metrics import MetricInput
from mixbit.quantization.calibrate import Calibration, calibrate
from mixbit.quantization.scales import weight_quantizer
from tests.networks import Attention, BentPositions, Net, batches_of

SCHEMES = tuple(Scheme.parse(text) for text in ("w2", "w3a3", "w4a8", "w3@50%", "float"))


def convolutional() -> nn.Module:
    """Strided, grouped and transposed convolutions, a skip, and a tensor that two layers and an addition read."""
    return Net(
        lambda net, x: net.e((net.d(F.relu(net.a(x) + x)) + net.c(net.b(F.relu(net.a(x) + x)))).mean((2, 3))),
        a=nn.Conv2d(2, 2, 3, padding=1),
        b=nn.Conv2d(2, 4, 3, stride=2, groups=2),
        c=nn.ConvTranspose2d(4, 4, 4, stride=2, groups=2),
        d=nn.Conv2d(2, 4, 1, bias=False),
        e=nn.Linear(4, 3),
    )


NETWORKS = {
    "convolutions": (convolutional, lambda: torch.randn(10, 2, 6, 6)),
    "shared": (
        lambda: Net(lambda net, x: net.a(net.a(x).tanh())[:, :3], a=nn.Linear(4, 4)),
        lambda: torch.randn(10, 4),
    ),
    "attention": (Attention, lambda: torch.randint(0, 6, (10, 5))),
    "bent positions": (BentPositions, lambda: torch.randint(0, 6, (10, 5))),
    "two heads": (
        lambda: Net(lambda net, x: (net.a(x), net.b(x)), a=nn.Linear(4, 3), b=nn.Linear(4, 2)),
        lambda: torch.randn(10, 4),
    ),
}


#: The independent truths are about the first output; tests/metrics/test_outputs.py is about the others.
FIRST_OUTPUT = Task.classification().weighted({"1": 0.0})


class Setting(NamedTuple):
    """A plain model in float64, its data with labels, and its graph."""

    model: nn.Module
    x: Tensor
    labels: Tensor
    graph: Graph
    layers: tuple[Layer, ...]
    calibration: Calibration

    def inputs(self, size=4, *, labelled=True, task=None, schemes=SCHEMES) -> MetricInput:
        """In batches of that size, the last one smaller where it does not divide 10."""
        labels = self.labels.split(size) if labelled else [None] * len(self.x.split(size))
        pairs = list(zip(batches_of(self.x, size), labels, strict=True))
        task = task or FIRST_OUTPUT
        return MetricInput(self.graph, schemes, self.calibration, pairs, task, 0)

    def parameter(self, layer: Layer) -> nn.Parameter:
        return self.model.get_parameter(layer.name)

    def weight_error(self, layer: Layer, scheme: Scheme) -> Tensor:
        weight = self.parameter(layer).detach()
        return weight_quantizer(self.graph, layer, scheme.weight, self.calibration)(weight) - weight

    def input_quantizer(self, name: str, scheme: Scheme):
        return self.calibration.quantizer(name, scheme.input, torch.device("cpu"))


@functools.cache
def setting_of(name: str) -> Setting:
    torch.manual_seed(3)
    make, data = NETWORKS[name]
    model, x = make().eval().double(), data()
    x = x.double() if x.is_floating_point() else x
    graph = capture(model, x[:2])
    layers = graph.layers
    labels = torch.arange(10) % 3
    return Setting(model, x, labels, graph, layers, calibrate(graph, batches_of(x, 4)))


class Call(NamedTuple):
    """One call of an operator with the weight: `run(x, weight)` repeats it without the bias."""

    function: Any
    x: Tensor
    rest: tuple[Any, ...]
    zeros: Tensor | None
    output: Tensor

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        rest = self.rest if self.function is F.embedding else (None, *self.rest[1:])
        return self.function(x, weight, *rest)

    def channels_last(self, output: Tensor) -> Tensor:
        return output if self.function in (F.linear, F.embedding) else output.movedim(1, -1)


class Calls(TorchFunctionMode):
    """Records the calls with a weight; with an error and means, rounds it and takes the means off, call by call.

    Each call reads its own x + zeros, so that the gradient by these zeros is that through this call alone.
    """

    def __init__(self, weight: Tensor, error: Tensor | None = None, means: list[Tensor | None] | None = None) -> None:
        super().__init__()
        self.weight, self.error, self.means = weight, error, means
        self.calls: list[Call] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if len(args) < 2 or args[1] is not self.weight:
            return func(*args, **(kwargs or {}))
        x, weight, *rest = args
        zeros = torch.zeros_like(x, requires_grad=True) if x.is_floating_point() else None
        read = x if zeros is None else x + zeros
        output = func(read, weight if self.error is None else weight + self.error, *rest, **(kwargs or {}))
        call = Call(func, x.detach(), tuple(rest), zeros, output)
        mean = self.means[len(self.calls)] if self.means else None
        self.calls.append(call)
        if mean is None:
            return output
        return output - mean if func is F.linear else output - mean.reshape(-1, *[1] * (output.ndim - 2))


def calls_of(setting: Setting, layer: Layer, x: Tensor) -> tuple[Any, list[Call]]:
    """What the plain model returns and the calls with the layer's weight."""
    with Calls(setting.parameter(layer)) as mode:
        returned = setting.model(x)
    return returned, mode.calls


@torch.no_grad()
def mean_errors(setting: Setting, layer: Layer, error: Tensor) -> list[Tensor | None]:
    """Of each call, the mean by channel over all data of its output for the error; None where there is no bias."""
    _, calls = calls_of(setting, layer, setting.x)
    means = []
    for call in calls:
        mean = call.channels_last(call.run(call.x, error)).flatten(0, -2).mean(0)
        means.append(None if call.function is F.embedding else mean)
    return means


@torch.no_grad()
def rounded_output(setting: Setting, layer: Layer, scheme: Scheme) -> Tensor:
    """The plain model's first output on all data, with this weight rounded and the biases corrected."""
    error = setting.weight_error(layer, scheme)
    with Calls(setting.parameter(layer), error, mean_errors(setting, layer, error)):
        return Task.classification().outputs(setting.model(setting.x))


def assert_agrees(got, wanted) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-12 * np.abs(wanted).max())
