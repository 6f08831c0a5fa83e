"""Arithmetic on sizes that only a run knows: files compute it as torch does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixbit.core.target import find_target
from mixbit.graph.capture import capture
from mixbit.quantization import uniform_plan
from mixbit.roundings.quantize import quantize
from tests.networks import Net

CASES = {
    "half, rounded down": lambda x: x[:, : x.shape[1] // 2],
    "half, rounded up": lambda x: x[:, : -(-x.shape[1] // 2)],
    "a third, rounded up, and one": lambda x: x[:, : 1 - (-x.shape[1] // 3)],
    "samples and positions in one": lambda x: x.transpose(0, 1).reshape(-1, 4)[: x.shape[1]],
    "resized": lambda x: F.interpolate(x.transpose(1, 2), size=-(-x.shape[1] // 2)).transpose(1, 2),
}
#: What OpenVINO's converter does not take.
ONNX_ALONE = {
    "what is left": lambda x: x[:, : -x.shape[1] % 3 + 1],
    "padded to a multiple": lambda x: F.pad(x, (0, 0, 0, -x.shape[1] % 4)),
    "at least two": lambda x: x[:, : max(x.shape[1] - 8, 2)],
}


@pytest.mark.parametrize(
    ("target", "name"),
    [*(("openvino", name) for name in CASES), *(("onnxruntime", name) for name in CASES | ONNX_ALONE)],
)
def test_sizes_are_computed_as_torch_does(target, name, tmp_path):
    take = (CASES | ONNX_ALONE)[name]
    net = Net(lambda net, x: net.a(take(x)), a=nn.Linear(4, 4)).eval()
    graph = capture(net, torch.randn(3, 12, 4), {0: [1]})
    simulated = quantize(graph, uniform_plan(graph, "w8", target=target), [torch.randn(3, 12, 4)])
    find_target(target).write(simulated, tmp_path)
    runner = find_target(target).load(tmp_path, graph)
    for count, length in ((3, 12), (2, 7), (1, 10), (4, 11)):
        x = torch.randn(count, length, 4)
        (found,) = runner.run([x.numpy()])
        torch.testing.assert_close(torch.from_numpy(found), simulated(x).detach())
