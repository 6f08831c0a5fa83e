import json
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from mixbit.core.errors import InvalidInput
from mixbit.core.table import LARGEST, Sensitivity
from tests.searches.fixtures import small_table


def assert_same_table(one, other):
    for field in fields(Sensitivity):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def edited(tmp_path, edit):
    """The file of the small table after `edit` changed its JSON."""
    path = tmp_path / "sensitivity.json"
    small_table(input_ties=((1, 2),)).save(path)
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))
    return path


def test_round_trip(tmp_path):
    table = small_table(input_ties=((1, 2), (0, 2)))
    table.save(tmp_path / "sensitivity.json")
    assert_same_table(Sensitivity.load(tmp_path / "sensitivity.json"), table)


def test_conversions_are_a_part_of_latencies(tmp_path):
    usage = small_table().usage | {"latency_ms": np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])}
    conversions = np.array([[0.1, 0.2], [0.4, 0.8]])
    table = small_table(choices=("w8a8", "w4", "float"), usage=usage, conversions=conversions)
    table.save(tmp_path / "sensitivity.json")
    assert_same_table(Sensitivity.load(tmp_path / "sensitivity.json"), table)
    for choice, more in (
        ([0, 0, 0], 0),
        ([1, 2, 1], 0),
        ([0, 1, 2], 0.1),
        ([2, 0, 1], 0.2 + 0.4),
        ([0, 2, 0], 0.1 + 0.8),
    ):
        figures = table.figures(np.array([choice, choice]))
        latency = usage["latency_ms"][range(3), choice].sum() + more
        np.testing.assert_allclose(figures["latency_ms"], [latency, latency])
    with pytest.raises(InvalidInput, match=r"conversions has shape \(3, 2\), expected \(2, 2\)"):
        small_table(conversions=np.zeros((3, 2)))
    with pytest.raises(InvalidInput, match=r"conversions of first\.weight is -1\.0"):
        small_table(conversions=np.array([[0, -1.0], [0, 0]]))


def test_a_plan_like_a_choice_keeps_to_what_is_offered_and_to_ties():
    loss = np.array([[0.1, 0.2, 0.3], [0.1, np.inf, 0.3], [np.inf, 0.2, np.inf]])
    table = small_table(
        choices=("w8a8", "w4", "w4a8"),
        loss=loss,
        standard_error=np.where(np.isinf(loss), np.inf, 0),
        input_ties=((0, 1),),
    )
    assert [*table.plan_like(1, "one").layers.values()] == ["w8a8", "w8a8", "w4"], "the second is offered no w4"
    assert [*table.plan_like(2, "one").layers.values()] == ["w4a8", "w4a8", "w4"]
    assert [*table.plan_like(np.array([2, 0, 1]), "one").layers.values()] == ["w4a8", "w8a8", "w4"]


@given(arrays.arrays(float, (3, 3), elements=st.floats(-LARGEST, LARGEST)))
def test_round_trip_to_the_last_bit(loss):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sensitivity.json"
        small_table(loss=loss, standard_error=np.zeros((3, 3))).save(path)
        np.testing.assert_array_equal(Sensitivity.load(path).loss, loss)


def test_what_is_not_offered_is_null(tmp_path):
    path = edited(tmp_path, lambda stored: None)
    stored = json.loads(path.read_text())
    assert stored["loss"][2] == [0.01, 0.2, None]
    assert np.isposinf(Sensitivity.load(path).loss[2, 2])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda stored: stored.update(note="x"), "note: Unexpected keyword argument"),
        (lambda stored: stored.pop("metric"), "metric: Field required"),
        (lambda stored: stored.update(version=2), "a sensitivity table of version 2; mixbit .* reads versions up to 1"),
        (lambda stored: stored["loss"][0].__setitem__(0, float("nan")), r"loss\.0\.0.* finite number"),
        (lambda stored: stored["loss"][0].__setitem__(0, float("inf")), r"loss\.0\.0.* finite number"),
        (lambda stored: stored["loss"][0].pop(), "rows of different lengths"),
        (lambda stored: stored["loss"].pop(), r"loss has shape \(2, 3\), expected \(3, 3\)"),
        (lambda stored: stored["usage"]["bit_ops"].pop(), r"bit_ops has shape \(2, 3\)"),
        (lambda stored: stored["loss"].__setitem__(1, [None] * 3), "no choice of second.weight can run"),
        (lambda stored: stored["input_ties"].append([0, 3]), r"input tie \[0, 3\]: expected layers 0 to 2"),
        (
            lambda stored: stored["ties"].append([0, 1]),
            r"ties of layers to one scheme are not supported",
        ),
        (lambda stored: stored["input_ties"].append([0, -1]), r"input tie \[0, -1\]"),
        (lambda stored: stored["input_ties"].append([]), r"input tie \[\]"),
        (lambda stored: stored["choices"].__setitem__(1, "w9"), "weights have 2 to 8 bits"),
        (lambda stored: stored.update(layers=[]), "layers: .*at least 1 item"),
        (lambda stored: stored["numel"].pop(), r"numel has shape \(2,\), expected \(3,\)"),
        (lambda stored: stored["macs"].append(1), r"macs has shape \(4,\), expected \(3,\)"),
        (lambda stored: stored["macs"].__setitem__(0, float("nan")), "macs of first.weight is nan"),
        (lambda stored: stored["numel"].__setitem__(1, float("inf")), "numel of second.weight is inf"),
        (lambda stored: stored["usage"].pop("weight_bytes"), "the usage lacks weight_bytes"),
        (lambda stored: stored["layers"].__setitem__(1, "first.weight"), "layer first.weight stands twice"),
        (lambda stored: stored["choices"].__setitem__(1, "w8a8"), "choice w8a8 stands twice"),
        (lambda stored: stored["usage"]["bit_ops"][0].__setitem__(0, None), "bit_ops of first.weight is inf"),
        (lambda stored: stored["standard_error"][0].__setitem__(0, None), "standard_error of first.weight is inf"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_what_is_wrong(tmp_path, edit, message):
    path = edited(tmp_path, edit)
    with pytest.raises(InvalidInput, match=rf"sensitivity\.json: .*{message}"):
        Sensitivity.load(path)


def test_usage_of_what_is_not_offered_may_be_missing(tmp_path):
    path = edited(tmp_path, lambda stored: stored["usage"]["bit_ops"][2].__setitem__(2, None))
    assert np.isposinf(Sensitivity.load(path).usage["bit_ops"][2, 2])


def test_a_single_sample_has_no_standard_error(tmp_path):
    table = small_table(standard_error=np.full((3, 3), np.inf), num_samples=1)
    table.save(tmp_path / "sensitivity.json")
    assert_same_table(Sensitivity.load(tmp_path / "sensitivity.json"), table)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "sensitivity.json"
    small_table().save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(InvalidInput, match=r"sensitivity\.json: not valid JSON"):
        Sensitivity.load(path)


def test_nan_is_refused_with_the_layer():
    loss = small_table().loss.copy()
    loss[1, 0] = np.nan
    with pytest.raises(InvalidInput, match=r"loss of second\.weight is nan; measure again"):
        small_table(loss=loss)


def test_tables_are_compared_by_identity():
    table = small_table()
    assert table == table  # noqa: PLR0124 comparing arrays would raise
    assert table != small_table()
    assert len({table, table}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": np.full((3, 3), 1e300)},
        {"standard_error": np.full((3, 3), -1.0)},
        {"numel": np.zeros(3)},
        {"numel": np.array([-1.0, 2.0, 3.0])},
        {"macs": np.array([-1.0, 2.0, 3.0])},
        {"num_samples": 0},
    ],
)
def test_what_no_measurement_gives_is_refused(changes):
    with pytest.raises(InvalidInput, match="measure again"):
        small_table(**changes)
