"""A run whose artefact takes a second file: it is digested, counted, named, checked, and replaced."""

import json
import os
import re
import shutil
from unittest import mock

import pytest
import torch

from mixbit.core import InvalidInput, Plan, TargetMismatch, sha256
from mixbit.pipeline.auto import auto_quantize
from mixbit.report.report import rewrite_report
from mixbit.results.against import compare_with
from mixbit.results.check_set import CheckSet
from mixbit.results.recheck import bench, recheck
from mixbit.results.result import Result
from mixbit.targets import onnxruntime as target_file
from tests.results.test_folder import Net, assert_as_in_the_check_set, made, programs

pytest.importorskip("onnxruntime")

FILE, DATA = "model.onnx", "model.onnx.data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("beside") / "out"
    with mock.patch.multiple(target_file, MOST_INSIDE=0, FEW_BYTES=40):
        made("onnxruntime", place)
    return place


def test_the_second_file_counts_as_the_first_does(folder):
    result = Result.load(folder)
    assert result.files[DATA] == sha256(folder / DATA)
    both = sum((folder / name).stat().st_size for name in (FILE, DATA))
    assert result.deployed["file_bytes"] == both
    floats = sum(weight.numel() for name, weight in Net().named_parameters() if name.endswith("weight"))
    assert result.float_["file_bytes"] > 4 * floats > (folder / DATA).stat().st_size > floats / 2
    text = (folder / "README.md").read_text()
    assert f"your program needs `{FILE}` and `{DATA}` alone" in text
    assert f"{both:,}" in text
    assert result.files[DATA] in (folder / "report.html").read_text()


@pytest.mark.usefixtures("apart")
def test_the_folder_verifies_and_runs_wherever_it_is(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    recheck(tmp_path / "elsewhere", layers=True).check()
    assert bench(tmp_path / "elsewhere", (1,))["layers"]["head.weight"]["executed"].endswith("int8")
    rewrite_report(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    ((_, code),) = [each for each in programs(folder) if each[0] == "python"]
    check = CheckSet.load(folder)
    space = {"given": check.inputs.tensors[0].numpy()}
    exec(re.sub(r"^inputs = .*$", "inputs = {'pixel_values': given}", code, flags=re.MULTILINE), space)
    assert_as_in_the_check_set(space["outputs"], check)


def test_the_files_stand_beside_those_of_another_folder(folder):
    found = compare_with(folder, folder / FILE)
    assert (found.agreement, found.relative_rms) == (1, 0)
    assert found.file_bytes == found.own_file_bytes == sum((folder / name).stat().st_size for name in (FILE, DATA))


def test_a_second_file_that_is_missing_changed_or_not_noted_is_told(folder, tmp_path):
    def copied(name):
        return shutil.copytree(folder, tmp_path / name)

    (copied("missing") / DATA).unlink()
    with pytest.raises(InvalidInput, match=f"{DATA}: cannot be read"):
        recheck(tmp_path / "missing")
    content = bytearray((folder / DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (copied("changed") / DATA).write_bytes(content)
    (copied("longer") / DATA).write_bytes(bytes(10**6))
    for name, text in {"changed": f"{DATA} is not the file verified then", "longer": f"{DATA} takes 1,000,000"}.items():
        with pytest.raises(TargetMismatch, match=text):
            recheck(tmp_path / name)
        with pytest.raises(TargetMismatch, match=text):
            rewrite_report(tmp_path / name)
    noted = json.loads((folder / "result.json").read_text())
    del noted["files"][DATA]
    (copied("not noted") / "result.json").write_text(json.dumps(noted))
    with pytest.raises(TargetMismatch, match=f"files lacks {DATA}"):
        recheck(tmp_path / "not noted")


def test_a_later_run_in_one_file_takes_the_second_away(folder, tmp_path):
    out, batches = tmp_path / "out", [torch.randn(8, 1, 6, 6) for _ in range(4)]
    shutil.copytree(folder, out)
    (out / DATA).write_bytes(b"changed since")
    plan = Plan.load(folder / "plan.json")
    auto_quantize(Net().eval(), batches, target="onnxruntime", plan=plan, out=out, force=True)
    assert DATA not in os.listdir(out)
    assert DATA not in Result.load(out).files
    recheck(out).check()
