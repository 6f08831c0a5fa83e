"""`mixbit measure` and `apply` with --memory: weights stay in their files."""

import json

import pytest

from mixbit.core import Plan

CODE = """
import torch
from torch import nn
from safetensors.torch import save_file
from mixbit.graph import parameters_on_meta

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()

def whole():
    model = make()
    save_file(model.state_dict(), "net.safetensors")
    return model

def on_meta():
    with parameters_on_meta():
        return make(), "net.safetensors"

def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 8, generator=generator), torch.randint(0, 3, (8,), generator=generator))] * 4
"""
REST = ["--data", "net.py:data", "--target", "packed"]
FILES = ["net.py:on_meta", *REST, "--memory", "2GB"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    (path / "net.py").write_text(CODE)
    return path


@pytest.fixture
def run(folder, monkeypatch, run):
    """As everywhere, in the folder of the network."""
    monkeypatch.chdir(folder)
    return run


@pytest.fixture
def table(folder, run):
    """The table of the network in memory, which is saved for the other, and a plan of it, once."""
    if not (folder / "plan.json").exists():
        code, _, err = run("measure", "net.py:whole", *REST, "--out", "whole.json")
        assert code == 0, err
        assert run("search", "whole.json", "--budget", "mean_bits=5", "--out", "plan.json")[0] == 0
    return json.loads((folder / "whole.json").read_text())


def test_measure_writes_the_table_of_the_network_in_memory(run, table):
    code, out, err = run("measure", *FILES, "--scratch", ".", "--out", "files.json", "--json")
    assert code == 0, err
    assert json.loads(out) == table


def test_apply_writes_the_file_of_the_network_in_memory(run, folder, table):
    code, _, err = run("apply", "plan.json", "net.py:whole", *REST, "--out", "whole")
    assert code == 0, err
    code, out, err = run("apply", "plan.json", *FILES, "--out", "files", "--json")
    assert code == 0, err
    assert json.loads(out) == {"folder": str(folder / "files")}
    assert (folder / "files" / "model.safetensors").read_bytes() == (
        folder / "whole" / "model.safetensors"
    ).read_bytes()
    assert Plan.load(folder / "files" / "plan.json").layers == Plan.load(folder / "plan.json").layers


MISTAKES = {
    "no bytes": (["measure", *FILES[:-1], "much", "--out", "t.json"], "--memory much: give bytes, as 4GB"),
    "scratch alone": (
        ["measure", "net.py:whole", *REST, "--scratch", ".", "--out", "t.json"],
        "--scratch .: is for --memory",
    ),
    "no scratch": (["measure", *FILES, "--scratch", "nowhere", "--out", "t.json"], "--scratch nowhere: no such folder"),
    "too little": (["measure", *FILES[:-1], "100MB", "--out", "t.json"], "memory 0.1GB: 0.weight [16, 8] takes 0.70GB"),
    "latency": (["measure", *FILES, "--latency", "--out", "t.json"], "--latency True: with --memory no file is run"),
    "held whole": (["measure", "net.py:whole", *FILES[1:], "--out", "t.json"], "parameters_on_meta()"),
    "a form": (["measure", "net.onnx", *FILES[1:], "--out", "t.json"], "its weights cannot stay in files"),
    "a target": (
        ["apply", "litert.json", *FILES[:3], "--target", "litert", "--memory", "2GB", "--out", "x"],
        "take one of onnxruntime, openvino, packed",
    ),
    "evaluation": (
        ["apply", "plan.json", *FILES, "--eval", "net.py:data", "--out", "x"],
        "--eval net.py:data: with --memory the file is written, and not run",
    ),
    "a flag": (["apply", "plan.json", *FILES, "--equalize", "--out", "x"], "--equalize True: with --memory"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case, run, folder, table):
    words, message = MISTAKES[case]
    (folder / "net.onnx").write_bytes(b"")
    Plan.load(folder / "plan.json").model_copy(update={"target": "litert"}).save(folder / "litert.json")
    code, _, err = run(*words)
    assert code == 2, err
    assert message in err
    assert not (folder / "t.json").exists()
    assert not (folder / "x").exists()
