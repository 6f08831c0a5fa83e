"""`mixbit apply` and `mixbit plan diff` on a small network."""

import json

import pytest

from mixbit.results.result import Result

CODE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()

def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator))] * 4
"""


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


GIVEN = ["net.py:model", "--data", "net.py:data", "--target", "onnxruntime"]


@pytest.fixture
def first(folder, run):
    """A run of quantize, once."""
    if not (folder / "first").exists():
        words = [*GIVEN, "--budget", "mean_bits=5", "--choices", "w4a8,w6a8", "--out", "first", "--json"]
        code, _, err = run("quantize", *words)
        assert code == 0, err
    return folder / "first"


def edited(first, name, **changes):
    stored = json.loads((first / "plan.json").read_text())
    path = first.parent / name
    path.write_text(json.dumps(stored | changes))
    return path, stored


def test_the_plan_of_a_run_gives_the_same_file(run, folder, first):
    code, out, err = run("apply", "first/plan.json", *GIVEN, "--out", "again", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((folder / "again" / "result.json").read_text())
    assert (folder / "again" / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()
    assert not (folder / "again" / "sensitivity.json").exists()
    result, before = Result.load(folder / "again"), Result.load(first)
    assert result.deployed["accuracy"] == before.deployed["accuracy"]
    assert result.uniform == []
    assert result.command[:3] == ["mixbit", "apply", "first/plan.json"]
    assert "the plan that was given is deployed" in result.chosen
    code, out, _ = run("verify", "again")
    assert (code, "matches" in out) == (0, True)


def test_a_plan_edited_by_hand_is_deployed_and_compared(run, folder, first):
    path, stored = edited(first, "edited.json", made_by="hand")
    layers = stored["layers"] | {"0.weight": "w8a8"}
    path, _ = edited(first, "edited.json", layers=layers, made_by="hand")
    code, _, err = run(
        "apply", path.name, *GIVEN, "--out", "edited", "--eval", "net.py:data", "--rounding", "adaround:iterations=5"
    )
    assert code == 0, err
    assert Result.load(folder / "edited").schemes == layers
    code, out, _ = run("plan", "diff", "first", "edited", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["layers"]["0.weight"]["a"]["scheme"] == stored["layers"]["0.weight"]
    assert told["layers"]["0.weight"]["b"] == {
        "scheme": "w8a8",
        "weight_bytes": Result.load(folder / "edited").predicted_bytes["0.weight"],
        "loss": None,
    }
    code, out, err = run("plan", "diff", "first", "first")
    assert (code, err) == (0, "the plans take the same scheme for every layer\n")


def test_plans_that_do_not_fit_are_refused_by_name(run, first):
    _, stored = edited(first, "ignored.json")
    wrong = {"0.weigth": "w4a8", "3.weight": "w4a8"}
    for changes, message in (
        ({"layers": wrong}, "layer '0.weigth' is not in this model (did you mean 0.weight?)"),
        ({"layers": {"0.weight": "w4a8"}}, "no scheme for 3.weight; add them"),
        ({"target": "openvino"}, "target onnxruntime: the plan is for openvino"),
        ({"version": 9}, "a plan of version 9"),
        ({"layers": stored["layers"] | {"0.weight": "w9"}}, "weights have 2 to 8 bits"),
        ({"layers": stored["layers"] | {"0.weight": "w4a16"}}, "target onnxruntime does not run it"),
    ):
        path, _ = edited(first, "wrong.json", **changes)
        code, out, err = run("apply", path.name, *GIVEN, "--out", "wrong")
        assert (code, out) == (2, ""), err
        assert message in err
        assert not (first.parent / "wrong").exists()


def test_options_that_do_not_fit_are_refused(run, first):
    assert "only --flavour qat trains" in run("apply", "first/plan.json", *GIVEN, "--out", "x", "--epochs", "2")[2]
    code, _, err = run("apply", "first/plan.json", *GIVEN, "--out", "x", "--rounding", "brek")
    assert (code, "did you mean brecq?" in err) == (2, True)
    code, _, err = run("apply", "no.json", *GIVEN, "--out", "x")
    assert (code, "no.json: cannot be read" in err) == (2, True)


@pytest.mark.slow
def test_two_processes_learn_the_file_of_one(run, folder, first):
    edited(first, "coarse.json", layers={"0.weight": "w2a8", "3.weight": "w2a8"}, made_by="hand")
    for processes in ("1", "2"):
        words = [*GIVEN, "--rounding", "adaround:inputs=float,iterations=150", "--out", f"by{processes}"]
        code, _, err = run("apply", "coarse.json", *words, "--processes", processes)
        assert code == 0, err
    one, two = (folder / name for name in ("by1", "by2"))
    assert "weights are rounded by adaround" in Result.load(one).chosen
    assert Result.load(one).chosen == Result.load(two).chosen
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "brecq", "adaround:iterations=5"])
def test_a_rounding_that_is_not_shared_out_is_refused_before_the_network_is_loaded(run, rounding, first):
    words = ["none.py:model", *GIVEN[1:], "--rounding", rounding, "--out", "shared", "--processes", "2"]
    code, _, err = run("apply", "first/plan.json", *words)
    assert code == 2
    assert f"rounding {rounding}: is not shared out, since" in err
    assert "take adaround:inputs=float or brecq:inputs=float, or leave shared out (--processes, --engine)" in err
