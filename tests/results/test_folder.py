"""README.md of a folder: its programs run and return what the check set holds; folders of version 1 verify still."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixbit.core import Budget, InvalidInput, Plan, find_target
from mixbit.core.errors import TargetMismatch
from mixbit.graph.capture import capture
from mixbit.pipeline.auto import auto_quantize
from mixbit.pipeline.settings import Settings
from mixbit.quantization import uniform_plan
from mixbit.results.check_set import CheckSet
from mixbit.results.recheck import bench, recheck
from mixbit.results.result import Result

OLD = Path(__file__).parent / "folder_of_version_1"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head, self.boxes = nn.Conv2d(1, 4, 3), nn.Linear(64, 3), nn.Linear(64, 4)

    def forward(self, pixel_values):
        x = self.conv(pixel_values).relu().flatten(1)
        return {"logits": self.head(x), "boxes": self.boxes(x)}


def made(target, out, scheme="w6a8", **settings):
    torch.manual_seed(0)
    net, batches = Net().eval(), [torch.randn(8, 1, 6, 6) for _ in range(4)]
    plan = uniform_plan(capture(net, batches[0]), scheme, target=target)
    auto_quantize(net, batches, target=target, plan=plan, out=out, settings=Settings(**settings))
    return net


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    places = {}

    def of(target):
        if target not in places:
            places[target] = tmp_path_factory.mktemp(target) / "out", None
            places[target] = places[target][0], made(target, places[target][0])
        return places[target]

    return of


def programs(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```(python|cpp)\n(.*?)^```$", text.partition("## Inputs")[0], flags=re.DOTALL | re.MULTILINE)


def assert_as_in_the_check_set(outputs, check):
    assert [*outputs] == ["logits", "boxes"]
    for name, wanted in check.outputs.items():
        np.testing.assert_allclose(outputs[name], wanted.numpy(), atol=2e-3 * float(wanted.std()))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "litert", "qonnx"])
def test_the_python_program_runs_as_it_stands_and_returns_what_was_checked(folders, monkeypatch, target):
    pytest.importorskip("ai_edge_litert" if target == "litert" else target)
    folder, _ = folders(target)
    monkeypatch.chdir(folder)
    (code,) = [code for language, code in programs(folder) if language == "python"]
    assert len([line for line in code.splitlines() if line]) <= 10
    space = {}
    exec(compile(code, "README.md", "exec"), space)
    assert {name: array.shape for name, array in space["outputs"].items()} == {"logits": (1, 3), "boxes": (1, 4)}
    check = CheckSet.load(folder)
    filled, count = re.subn(r"^inputs = .*$", "inputs = {'pixel_values': given}", code, flags=re.MULTILINE)
    assert count == 1
    space = {"given": check.inputs.tensors[0].numpy()}
    exec(compile(filled, "README.md", "exec"), space)
    assert_as_in_the_check_set(space["outputs"], check)


@pytest.mark.usefixtures("apart")
def test_a_folder_says_that_images_are_channels_last(folders, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    folder, _ = folders("litert:inputs=channels_last")
    recheck(folder, layers=True).check()
    assert bench(folder, (1, 3))["layers"]["conv.weight"]["executed"] == "CONV_2D int8 (XNNPACK)"
    ports = Result.load(folder).ports
    assert ports is not None
    assert [port.shape for port in ports.inputs] == [("batch", 6, 6, 1)]
    assert "| input | `pixel_values` | float32 | `[batch, 6, 6, 1]` |" in (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    ((_, code),) = programs(folder)
    assert "np.zeros([1, 6, 6, 1], 'float32')" in code
    check = CheckSet.load(folder)
    space = {"given": check.inputs.tensors[0].numpy().transpose(0, 2, 3, 1)}
    filled = re.sub(r"^inputs = .*$", "inputs = {'pixel_values': given}", code, flags=re.MULTILINE)
    exec(compile(filled, "README.md", "exec"), space)
    assert_as_in_the_check_set(space["outputs"], check)


@pytest.mark.parametrize(
    "scheme", ["w6a8dg32", *(pytest.param(each, marks=pytest.mark.slow) for each in ("w6a8", "w4"))]
)
def test_the_program_for_openvino_has_the_settings_that_were_verified(tmp_path, monkeypatch, scheme):
    pytest.importorskip("openvino")
    made("openvino", tmp_path / "out", scheme)
    monkeypatch.chdir(tmp_path / "out")
    (code,) = [code for language, code in programs(tmp_path / "out") if language == "python"]
    space = {}
    exec(compile(code, "README.md", "exec"), space)
    verified = Result.load(tmp_path / "out").environment
    assert verified["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == ("32" if "dg32" in scheme else "0")
    for name in ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT"):
        value = space["model"].get_property(name)
        assert (value.get_type_name() if name.endswith("HINT") else str(value)) == verified[name]


def test_no_module_of_the_current_folder_is_imported(folders, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    shutil.copytree(folders("onnxruntime")[0], tmp_path / "copy")
    for name in ("numpy", "onnxruntime"):
        (tmp_path / "copy" / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path / "copy")
    recheck(tmp_path / "copy").check()
    assert not (tmp_path / "run").exists()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.middle(self.middle(x).relu()).relu())


@pytest.mark.parametrize("scheme", ["w8a8", "w6a8"])
def test_a_file_that_onnxruntime_cannot_add_exactly_is_told(tmp_path, caplog, scheme):
    pytest.importorskip("onnxruntime")
    net, batches = Twice().eval(), [torch.randn(8, 8) / 8 for _ in range(4)]
    plan = uniform_plan(capture(net, batches[0]), scheme, target="onnxruntime")
    result = auto_quantize(net, batches, target="onnxruntime", plan=plan, out=tmp_path / "out").result
    is_exact = "session.x64quantprecision" in result.environment
    assert is_exact == (scheme == "w6a8")
    for text in (result.chosen, caplog.text, (tmp_path / "out" / "README.md").read_text()):
        assert ("keep sums of 8-bit weights exact" in text) != is_exact


def test_the_programs_for_packed_tensors_run(folders, monkeypatch):
    folder, model = folders("packed")
    monkeypatch.chdir(folder)
    (read, run) = [code for _, code in programs(folder)]
    space = {}
    exec(compile(read, "README.md", "exec"), space)
    assert space["tensors"]["conv.weight::0"].dtype == np.uint8
    check = CheckSet.load(folder)
    space = {"model": model, "batch": check.inputs.tensors[0]}
    exec(compile(run, "README.md", "exec"), space)
    assert_as_in_the_check_set(dict(zip(["logits", "boxes"], space["outputs"], strict=True)), check)


def test_the_cpp_program_for_openvino_compiles_and_returns_what_was_checked(folders, tmp_path):
    """The wheel holds the headers and the library; onnxruntime's holds no headers."""
    openvino, compiler = pytest.importorskip("openvino"), shutil.which("g++")
    package = Path(openvino.__file__).parent
    libraries = sorted(package.glob("libs/libopenvino.so*"))
    if compiler is None or not (package / "include").is_dir() or not libraries:
        pytest.skip("no compiler, or no headers of OpenVINO")
    folder, _ = folders("openvino")
    (code,) = [code for language, code in programs(folder) if language == "cpp"]
    assert len([line for line in code.splitlines() if line]) <= 10
    include, _, body = code.partition("\n")
    sample = CheckSet.load(folder).inputs.tensors[0][0].numpy().ravel()
    fill = f"float given[] = {{{','.join(f'{value!r}f' for value in sample.tolist())}}};\n"
    fill += 'std::copy(given, given + 36, request.get_tensor("pixel_values").data<float>());\nrequest.infer();'
    body = body.replace("request.infer();", fill)
    show = "for (int i = 0; i < 3; i++) std::cout << output.data<float>()[i] << ' ';"
    source = f"{include}\n#include <algorithm>\n#include <iostream>\nint main() {{\n{body}\n{show}\n}}\n"
    (tmp_path / "run.cpp").write_text(source)
    words = [compiler, "-std=c++17", "-O0", "run.cpp", "-o", "run", f"-I{package / 'include'}", str(libraries[0])]
    words.append(f"-Wl,-rpath,{package / 'libs'}")
    built = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    run = subprocess.run([tmp_path / "run"], cwd=folder, capture_output=True, text=True, check=True)
    wanted = CheckSet.load(folder).outputs["logits"]
    np.testing.assert_allclose(np.array(run.stdout.split(), float), wanted[0], atol=2e-3 * float(wanted.std()) + 1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "packed", "litert"])
def test_figures_and_ports_are_those_of_result_json(folders, target):
    folder, _ = folders(target)
    text, stored = (folder / "README.md").read_text(encoding="utf-8"), json.loads((folder / "result.json").read_text())
    assert stored["files"].keys() == {path.name for path in folder.iterdir()} - {"result.json"}
    assert "sensitivity.json" not in stored["files"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    (head,) = [row for row in rows if row[0] == "network"]
    (deployed,) = [row for row in rows if row[0] == "deployed"]
    cells = dict(zip(head, deployed, strict=True))
    assert cells["weights, bytes"] == f"{stored['deployed']['weight_bytes']:,.0f}"
    assert cells["files, bytes"] == f"{stored['deployed']['file_bytes']:,.0f}"
    assert cells["latency of one sample, ms"] == f"{stored['deployed']['latency_ms']:.3f}"
    (simulated,) = [row for row in rows if row[0] == "simulated"]
    divergence = dict(zip(head, simulated, strict=True))["divergence, nats"]
    assert divergence == f"{stored['simulated']['divergence']:.4g}"
    ports = [row for row in rows if row[0] in ("input", "output")]
    assert ports == [
        [kind, f"`{port['name']}`", port["dtype"], f"`[{', '.join(map(str, port['shape']))}]`"]
        for kind in ("input", "output")
        for port in stored["ports"][f"{kind}s"]
    ]
    assert stored["ports"]["inputs"] == [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 6, 6]}]
    (needs,) = re.findall(r"your program needs (.*) alone;", text)
    assert needs.split("`")[1::2] == [*find_target(target).files]


@pytest.mark.parametrize(
    ("settings", "is_given"),
    [
        ({}, True),
        ({"task": "multi:logits=classification,boxes=regression", "ranges": "min_max"}, False),
        pytest.param({}, False, marks=pytest.mark.slow),
    ],
)
def test_the_code_that_made_it_makes_it_again(tmp_path, monkeypatch, settings, is_given):
    torch.manual_seed(0)
    net, batches = Net().eval(), [torch.randn(8, 1, 6, 6) for _ in range(4)]
    graph = capture(net, batches[0])
    plan = uniform_plan(graph, "w6a8", target="packed")
    mixed = dict(reversed((plan.layers | {"conv.weight": "w8a8"}).items()))
    goal = {"plan": plan.model_copy(update={"layers": mixed})} if is_given else {"budget": Budget(weight_bytes=1500.25)}
    made = auto_quantize(net, batches, target="packed", out=tmp_path / "first", settings=Settings(**settings), **goal)
    assert [*made.result.layers] == [layer.name for layer in graph.layers]
    monkeypatch.chdir(tmp_path / "first")
    text = Path("README.md").read_text(encoding="utf-8").partition("## How it was made")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert code.strip() in html.unescape(Path("report.html").read_text(encoding="utf-8"))
    assert "1500.25" in code or is_given
    exec(compile(code, "README.md", "exec"), {"model": net, "batches": batches})
    for name in ("plan.json", "model.safetensors"):
        assert Path("out", name).read_bytes() == Path(name).read_bytes()


def test_names_in_the_file_that_are_not_those_of_result_json_do_not_match(folders, tmp_path):
    folder, _ = folders("onnxruntime")
    shutil.copytree(folder, tmp_path / "copy")
    stored = json.loads((folder / "result.json").read_text())
    stored["ports"]["outputs"][0]["name"] = "scores"
    (tmp_path / "copy" / "result.json").write_text(json.dumps(stored))
    with pytest.raises(TargetMismatch, match="the outputs are scores, boxes; in the file logits, boxes"):
        recheck(tmp_path / "copy").check()


def test_a_folder_of_version_1_is_lifted_and_verifies(tmp_path):
    pytest.importorskip("onnxruntime")
    stored = json.loads((OLD / "result.json").read_text())
    assert stored["version"] == 1
    assert "ports" not in stored
    result = Result.load(OLD)
    assert result.version == 2
    assert result.ports is None
    assert result.command == []
    assert result.deployed == stored["deployed"]
    recheck(OLD).check()
    (tmp_path / "result.json").write_text(json.dumps(stored | {"version": 3}))
    with pytest.raises(InvalidInput, match=r"result\.json: a result of version 3; mixbit .* reads versions up to 2"):
        Result.load(tmp_path)


def test_a_plan_and_settings_that_choose_one_are_refused_before_the_work(tmp_path):
    plan = Plan.load(OLD / "plan.json")
    given = {"target": "onnxruntime", "out": tmp_path / "out"}
    for settings, message in (
        (Settings(prune_channels=0.5), "prune_channels=0.5: the plan is given"),
        (Settings(pins={"conv.weight": "w8a8"}), "pins=.*: the plan is given"),
        (Settings(flavour="dynamic"), "flavour dynamic: the plan says"),
    ):
        with pytest.raises(InvalidInput, match=message):
            auto_quantize(Net(), [], plan=plan, settings=settings, **given)
    with pytest.raises(InvalidInput, match="target openvino: the plan is for onnxruntime; give that target"):
        auto_quantize(Net(), [], plan=plan, target="openvino", out=tmp_path / "out")
    with pytest.raises(InvalidInput, match="neither of budget and plan"):
        auto_quantize(Net(), [], **given)
