"""Files of other quantizers beside a folder's artefact."""

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core.errors import InvalidInput, TargetMismatch
from mixbit.graph.capture import capture
from mixbit.graph.graph import without_torchs_warnings
from mixbit.pipeline.auto import auto_quantize
from mixbit.quantization import uniform_plan
from mixbit.results.against import compare_with
from mixbit.results.check_set import CheckSet
from mixbit.results.result import Result

onnxruntime = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, pictures):
        return self.head(self.conv(pictures).relu().flatten(1))


def written(net, x, path, **options):
    """By torch's own exporter."""
    with without_torchs_warnings():
        torch.onnx.export(net, (x,), path, dynamo=True, external_data=False, verbose=False, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run in onnxruntime, and the network in float as torch writes it, of one sample and of any number."""
    place = tmp_path_factory.mktemp("against")
    torch.manual_seed(0)
    net = Net().eval()
    batches = [(torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))) for _ in range(4)]
    plan = uniform_plan(capture(net, batches[0][0]), "w4a8", target="onnxruntime")
    auto_quantize(net, batches, target="onnxruntime", plan=plan, out=place / "out", eval_batches=batches)
    written(net, batches[0][0][:1], place / "one.onnx", input_names=["x.1"], output_names=["y"])
    written(net, batches[0][0], place / "any.onnx", dynamic_shapes={"pictures": {0: torch.export.Dim("count")}})
    return place


def quantized_by_the_vendor(folder, check):
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(check.inputs.tensors[0].split(1))

        def get_next(self):
            sample = next(self.left, None)
            return None if sample is None else {"x.1": sample.numpy()}

    quantization.quantize_static(folder / "one.onnx", folder / "vendor.onnx", Reader())
    return folder / "vendor.onnx"


@pytest.mark.parametrize("name", ["vendor", "any"])
def test_accuracy_and_agreement_are_those_of_the_runtime_itself(folder, name):
    check = CheckSet.load(folder / "out")
    file = quantized_by_the_vendor(folder, check) if name == "vendor" else folder / "any.onnx"
    found = compare_with(folder / "out", file)

    def answers(path):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        port = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {port: row.numpy()})[0] for row in check.inputs.tensors[0].split(1)])

    theirs, own = answers(file), answers(folder / "out" / "model.onnx")
    assert found.num_samples == len(theirs) == 32
    assert found.accuracy == np.mean(theirs.argmax(1) == check.labels.numpy())
    assert found.own_accuracy == np.mean(own.argmax(1) == check.labels.numpy())
    assert found.agreement == np.mean(theirs.argmax(1) == own.argmax(1))
    assert 0 < found.relative_rms < 0.5
    assert found.file_bytes == file.stat().st_size
    assert found.own_file_bytes == (folder / "out" / "model.onnx").stat().st_size
    assert found.latency_ratio.low <= found.latency_ratio.value <= found.latency_ratio.high
    assert str(found).startswith(f"{file} (onnxruntime), 32 samples: accuracy ")


def test_a_folders_own_file_is_equal_to_itself(folder):
    found = compare_with(folder / "out", folder / "out" / "model.onnx")
    assert (found.agreement, found.relative_rms) == (1, 0)
    assert found.accuracy == found.own_accuracy == Result.load(folder / "out").deployed["accuracy"]
    assert 0.5 < found.latency_ratio.value < 1.5


def test_a_network_in_pytorch_runs_beside_a_file(folder, tmp_path):
    torch.manual_seed(0)
    net, batches = Net().eval(), [torch.randn(8, 1, 6, 6) for _ in range(8)]
    plan = uniform_plan(capture(net, batches[0]), "w8", target="packed")
    auto_quantize(net, batches, target="packed", plan=plan, out=tmp_path / "out")
    found = compare_with(tmp_path / "out", folder / "any.onnx", net)
    assert (found.accuracy, found.own_accuracy) == (None, None)
    assert 0 < found.relative_rms < 0.05
    assert "accuracy" not in str(found)


def test_inputs_go_by_name_where_a_file_has_them_in_another_order(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, first, second):
            return self.a(first) - self.b(second) * 2

    class Swapped(nn.Module):
        def __init__(self, pair):
            super().__init__()
            self.pair = pair

        def forward(self, second, first):
            return self.pair(first, second)

    torch.manual_seed(0)
    net = Pair().eval()
    batches = [{"first": torch.randn(16, 4), "second": torch.randn(16, 4)} for _ in range(4)]
    plan = uniform_plan(capture(net, batches[0]), "w8", target="packed")
    auto_quantize(net, batches, target="packed", plan=plan, out=tmp_path / "out")
    with without_torchs_warnings():
        given = {"dynamo": True, "external_data": False, "verbose": False}
        torch.onnx.export(Swapped(net).eval(), (torch.randn(1, 4), torch.randn(1, 4)), tmp_path / "other.onnx", **given)
    assert compare_with(tmp_path / "out", tmp_path / "other.onnx", net).relative_rms < 0.05


def test_what_is_no_such_file_is_named(folder, tmp_path):
    for name, reason in (("none.onnx", "no such file"), ("model.pt", r"ends with \.onnx, \.xml, \.tflite")):
        if name == "model.pt":
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InvalidInput, match=reason):
            compare_with(folder / "out", tmp_path / name)
    (tmp_path / "half.onnx").write_bytes((folder / "any.onnx").read_bytes()[:100])
    with pytest.raises(TargetMismatch, match=r"half\.onnx"):
        compare_with(folder / "out", tmp_path / "half.onnx")


def test_weights_beside_openvinos_file_are_asked_for(folder, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "net.xml").write_text("<net/>")
    with pytest.raises(InvalidInput, match=r"net\.bin is not beside it"):
        compare_with(folder / "out", tmp_path / "net.xml")


def test_another_network_is_refused(folder, tmp_path):
    written(nn.Linear(4, 2).eval(), torch.randn(1, 4), tmp_path / "other.onnx")
    with pytest.raises(TargetMismatch, match=r"other\.onnx"):
        compare_with(folder / "out", tmp_path / "other.onnx")
