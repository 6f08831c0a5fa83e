"""`mixbit plan export`: its files, messages and exit codes."""

import json

import pytest
import yaml

from mixbit.core import Plan
from mixbit.recipes.recipe import recipe

PLAN = Plan(
    target="openvino", fingerprint="0", layers={"conv.weight": "w4a8", "fc.weight": "w8a8", "head.weight": "float"}
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    PLAN.save(tmp_path / "run" / "plan.json")
    return tmp_path


def test_a_plan_or_the_folder_of_a_run_becomes_a_file(run, folder):
    for source in ("run", "run/plan.json"):
        code, out, err = run("plan", "export", source, "--to", "modelopt", "--out", "recipe.yaml", "--force")
        assert (code, out, err) == (0, "", "written to recipe.yaml\n")
        assert (folder / "recipe.yaml").read_text() == recipe(PLAN, "modelopt")
    assert {path.name for path in folder.iterdir()} == {"run", "recipe.yaml"}


def test_one_json_object_is_printed(run, folder):
    code, out, err = run("plan", "export", "run", "--to", "aimet", "--out", "precisions.json", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"recipe": "precisions.json", "bytes": (folder / "precisions.json").stat().st_size}
    assert json.loads((folder / "precisions.json").read_text()).keys() == {"conv", "fc", "head"}


def test_options_of_a_tool_and_functions_are_taken(run, folder):
    words = ["plan", "export", "run", "--quiet", "--out"]
    assert run(*words, "gptq.yaml", "--to", "llmcompressor:modifier=gptq") == (0, "", "")
    stage = yaml.safe_load((folder / "gptq.yaml").read_text())["default_stage"]
    assert list(stage["linear_modifiers"]) == ["GPTQModifier"]
    (folder / "own.py").write_text(
        "def lines(plan):\n    return ''.join(f'{name} {plan.layers[name]}\\n' for name in plan.layers)\n"
    )
    assert run(*words, "own.txt", "--to", "own.py:lines") == (0, "", "")
    assert (folder / "own.txt").read_text() == "conv.weight w4a8\nfc.weight w8a8\nhead.weight float\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--to", "nncf"],
            "tool 'nncf' is unknown; known: llmcompressor, autoround, modelopt, aimet, ai_edge_quantizer",
        ),
        (["none", "--to", "aimet"], "none: cannot be read"),
        (
            ["narrow.json", "--to", "aimet"],
            "layer fc.weight: AIMET does not take w3a8: weights have 4 or 8 bits there; ",
        ),
        (["run"], "Missing option '--to'; see mixbit plan export --help"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(run, folder, words, message):
    PLAN.model_copy(update={"layers": {"fc.weight": "w3a8"}}).save(folder / "narrow.json")
    code, out, err = run("plan", "export", *words, "--out", "out.json")
    assert (code, out) == (2, "")
    assert err.startswith(f"mixbit: {message}")
    assert {path.name for path in folder.iterdir()} == {"run", "narrow.json"}


def test_a_file_is_replaced_with_force_alone(run, folder):
    (folder / "out.json").write_text("mine")
    words = ["plan", "export", "run", "--to", "aimet", "--out", "out.json"]
    code, _, err = run(*words)
    assert code == 2
    assert "--force" in err
    assert (folder / "out.json").read_text() == "mine"
    assert run(*words, "--force")[0] == 0
    assert (folder / "out.json").read_text() == recipe(PLAN, "aimet")
