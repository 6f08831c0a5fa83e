import json

import pytest
from pydantic import ValidationError

from mixbit.core import Plan
from mixbit.core.errors import InvalidInput

STORED = {
    "target": "openvino",
    "fingerprint": "0123456789abcdef",
    "layers": {"first.weight": "w8a8", "last.weight": "w4a8"},
}


def written(path, **changes):
    path.write_text(json.dumps({**STORED, **changes}))
    return path


def test_round_trip(tmp_path):
    plan = Plan(**STORED, budget={"mean_bits": 6}, predicted={"loss": 0.1 + 0.2}, made_by="fisher + ilp")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert list(plan.layers) == ["first.weight", "last.weight"]
    assert plan.scheme("last.weight").weight_bits == 4


def test_a_plan_by_hand_needs_no_budget_and_no_prediction(tmp_path):
    plan = Plan.load(written(tmp_path / "plan.json"))
    assert (plan.budget, plan.predicted, plan.made_by) == ({}, {}, "hand")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 4}, "bits: Extra inputs are not permitted"),
        ({"layers": {"last.weight": "w9"}}, "layers: layer last.weight: scheme 'w9': weights have 2 to 8 bits"),
        ({"layers": {"last.weight": 4}}, "layers.last.weight: .*string.* \\(found 4\\)"),
        ({"layers": {}}, "layers: .*at least 1 item"),
        ({"version": 0}, "version: Input should be 1"),
        ({"target": None}, "target: .*valid string"),
        ({"budget": {"mean_bits": "four"}}, "budget.mean_bits: "),
        ({"budget": {"mean_bits": float("inf")}}, "budget.mean_bits: .*finite number"),
        ({"predicted": {"loss": float("nan")}}, "predicted.loss: .*finite number"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_what_is_wrong(tmp_path, changes, message):
    path = written(tmp_path / "plan.json", **changes)
    with pytest.raises(InvalidInput, match=rf"plan\.json: not a plan: {message}"):
        Plan.load(path)


def test_files_that_are_no_json(tmp_path):
    path = tmp_path / "plan.json"
    with pytest.raises(InvalidInput, match=r"plan\.json: cannot be read \(No such file"):
        Plan.load(path)
    path.write_text('{"target": ')
    with pytest.raises(InvalidInput, match=r"plan\.json: not valid JSON .*line 1"):
        Plan.load(path)
    path.write_text("[]")
    with pytest.raises(InvalidInput, match=r"plan\.json: not a plan"):
        Plan.load(path)


def test_a_plan_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Plan(**STORED).target = "onnxruntime"


def test_check_model():
    plan = Plan(**STORED)
    plan.check_model(["last.weight", "first.weight"], "0123456789abcdef")
    with pytest.raises(
        InvalidInput,
        match=r"layer 'last.weight' is not in this model \(did you mean first.weight\?\); it has first.weight, new",
    ):
        plan.check_model(["first.weight", "new.weight"], "0123456789abcdef")
    with pytest.raises(InvalidInput, match=r"no scheme for new.weight"):
        plan.check_model(["first.weight", "last.weight", "new.weight"], "0123456789abcdef")
    with pytest.raises(InvalidInput, match="made for another model"):
        plan.check_model(["first.weight", "last.weight"], "fedcba9876543210")


def test_long_lists_of_layers_are_shortened():
    names = [f"layer{i}.weight" for i in range(9)]
    with pytest.raises(InvalidInput, match=r"layer4.weight and 4 more; add them"):
        Plan(**{**STORED, "layers": {"layer8.weight": "w4"}}).check_model([*names, "layer9.weight"], "")
