"""Files of both runtimes call inputs and outputs as users do, whatever tensors inside are called."""

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core import find_target
from mixbit.graph.capture import capture
from mixbit.quantization import uniform_plan
from mixbit.roundings.quantize import quantize
from mixbit.targets.export import export


class Clashing(nn.Module):
    """Parameters called as outputs are; the same tensor twice; an input that is returned as it is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.logits, self.x = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x, mask):
        y = self.linear(x)
        return {"logits": y * self.logits + self.x, "hidden": (y, y.relu()), "last": y, "mask": mask, "x": mask * 2}


NAMES = ["logits", "hidden_0", "hidden_1", "last", "mask_output", "x_output"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net, x = Clashing().eval(), {"x": torch.randn(8, 4), "mask": torch.randn(8, 5)}
    graph = capture(net, x, {"mask": [1]})
    folders = {}
    for target in ("onnxruntime", "openvino"):
        folders[target] = tmp_path_factory.mktemp(target)
        simulated = quantize(graph, uniform_plan(graph, "w6a8", target=target), [x])
        export(simulated, folders[target] / "out")
        folders[target] = folders[target] / "out", simulated
    return x, folders


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_each_output_is_found_by_its_name(exported, target):
    x, folders = exported
    folder, simulated = folders[target]
    given = {name: value.numpy() for name, value in x.items()}
    runner = find_target(target).load(folder)
    assert runner.names == (["x", "mask"], NAMES)
    if target == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        shapes = {port.name: port.shape for port in (*session.get_inputs(), *session.get_outputs())}
        assert shapes["x"] == ["batch", 4]
        assert shapes["mask"] == shapes["mask_output"] == ["batch", "mask_dim1"]
        found = dict(zip(NAMES, session.run(NAMES, given), strict=True))
    else:
        import openvino

        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
        assert [port.names for port in (*compiled.inputs, *compiled.outputs)] == [
            {name} for name in ("x", "mask", *NAMES)
        ]
        results = compiled(given)
        found = {name: results[name] for name in NAMES}
    with torch.no_grad():
        wanted = simulated(**x)
    y, relu = wanted["hidden"]
    expected = [wanted["logits"], y, relu, wanted["last"], wanted["mask"], wanted["x"]]
    for name, tensor in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-5)


def test_no_tensor_inside_has_a_name_of_a_port(exported):
    import onnx

    _, folders = exported
    graph = onnx.load(folders["onnxruntime"][0] / "model.onnx").graph
    made = [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]
    assert len(set(made)) == len(made)
    assert [port.name for port in graph.output] == NAMES
    assert not {"x", "mask"} & set(made)
    text = (folders["openvino"][0] / "model.xml").read_text()
    assert "quantize_dequantize" not in text.replace("mixbit_quantizers", "")
