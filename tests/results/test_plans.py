"""How two plans differ."""

import dataclasses

import numpy as np
import pytest

from mixbit.core import InvalidInput
from mixbit.results.plans import Cost, compare_plans
from tests.searches.test_front import random_table


@pytest.fixture
def table():
    return random_table(5, 3, seed=2)


def test_layers_that_differ_with_bytes_and_loss_from_the_table_beside(tmp_path, table):
    first = table.plan(np.array([0, 1, 2, 0, 1]), "one")
    second = table.plan(np.array([0, 2, 2, 1, 1]), "two")
    (tmp_path / "run").mkdir()
    first.save(tmp_path / "run" / "plan.json")
    table.save(tmp_path / "run" / "sensitivity.json")
    second.save(tmp_path / "second.json")
    difference = compare_plans(tmp_path / "run", tmp_path / "second.json")
    assert difference.layers == (table.layers[1], table.layers[3])
    assert difference.notes == []
    told = difference.to_json()
    for row, (a, b) in {1: (1, 2), 3: (0, 1)}.items():
        for side, column in (("a", a), ("b", b)):
            assert told["layers"][table.layers[row]][side] == {
                "scheme": table.choices[column],
                "weight_bytes": int(table.usage["weight_bytes"][row, column]),
                "loss": pytest.approx(table.loss[row, column]),
            }
    assert told["predicted"]["loss"] == {"a": first.predicted["loss"], "b": second.predicted["loss"]}


def test_other_networks_targets_and_layers_are_told(tmp_path, table):
    first = table.plan_like(0, "one")
    layers = dict(list(first.layers.items())[1:]) | {"new.weight": "w8a8"}
    second = first.model_copy(update={"layers": layers, "target": "onnxruntime", "fingerprint": "0" * 16})
    first.save(tmp_path / "a.json")
    second.save(tmp_path / "b.json")
    difference = compare_plans(tmp_path / "a.json", tmp_path / "b.json")
    assert difference.layers == (table.layers[0], "new.weight")
    assert difference.to_json()["layers"]["new.weight"] == {
        "a": None, "b": {"scheme": "w8a8", "weight_bytes": None, "loss": None},
    }  # fmt: skip
    assert [note.split()[0] for note in difference.notes] == ["targets", "the"]


def test_a_table_of_another_network_tells_nothing(tmp_path, table):
    table.plan_like(0, "one").save(tmp_path / "plan.json")
    dataclasses.replace(table, fingerprint="f" * 16).save(tmp_path / "sensitivity.json")
    assert compare_plans(tmp_path, tmp_path).sides[0].costs == {}
    table.save(tmp_path / "sensitivity.json")
    assert compare_plans(tmp_path, tmp_path).sides[0].costs[table.layers[0]] == Cost(
        int(table.usage["weight_bytes"][0, 0]), table.loss[0, 0]
    )


def test_what_is_no_plan_is_refused(tmp_path, table):
    with pytest.raises(InvalidInput, match=r"plan\.json: cannot be read"):
        compare_plans(tmp_path, tmp_path)
    table.save(tmp_path / "plan.json")
    with pytest.raises(InvalidInput, match="not a plan"):
        compare_plans(tmp_path, tmp_path)
