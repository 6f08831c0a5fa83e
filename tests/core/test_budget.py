import json
import math

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from mixbit.core.budget import RESOURCES, Budget, MaxDrop
from mixbit.core.errors import InvalidInput
from tests.searches.fixtures import small_table


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "at least one limit of: weight_bytes"),
        ({"size": 1}, "budget 'size' is unknown; known: weight_bytes"),
        ({"mean_bits": 33}, "budget mean_bits=33: no plan uses so much; give 2 to 32 bits"),
        ({"mean_bits": 0}, "budget mean_bits=0: give a positive finite number"),
        ({"mean_bits": -1}, "give a positive finite number"),
        ({"mean_bits": math.nan}, "give a positive finite number"),
        ({"mean_bits": math.inf}, "give a positive finite number"),
        ({"mean_bits": "4"}, "give a positive finite number"),
        ({"mean_bits": True}, "give a positive finite number"),
        ({"mean_bits": np.bool_(True)}, "give a positive finite number"),
        ({"mean_bits": np.float32("nan")}, "give a positive finite number"),
        ({"weight_ratio": 15}, "15 % is weight_ratio=0.15"),
    ],
)
def test_bad_limits_are_refused(limits, message):
    with pytest.raises(InvalidInput, match=message):
        Budget(**limits)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["mean_bits"], "write name=value"),
        (["mean_bits=four"], "'four' is not a number"),
        (["weight_ratio=15%"], "write a ratio, not a percentage"),
        (["weight_bytes=1234567", "weight_bytes=5"], r"weight_bytes is given twice \(1234567 and 5\)"),
        (["mean_bits=nan"], "give a positive finite number"),
        ([], "at least one limit"),
    ],
)
def test_bad_texts_are_refused(texts, message):
    with pytest.raises(InvalidInput, match=message):
        Budget.parse(texts)


def test_parse_reads_several():
    assert Budget.parse(["mean_bits=4", "weight_bytes=1.2e5"]).limits == {"mean_bits": 4, "weight_bytes": 120_000}


@pytest.mark.parametrize("number", [np.int64(4), np.float32(4), np.uint8(4)])
def test_numbers_of_numpy_are_numbers(number):
    assert json.dumps(Budget(mean_bits=number).limits) == '{"mean_bits": 4.0}'


def test_numbers_are_printed_in_full():
    assert str(Budget(weight_bytes=1234567, weight_ratio=0.15)) == "weight_bytes=1234567, weight_ratio=0.15"


@given(st.dictionaries(st.sampled_from(sorted(RESOURCES)), st.floats(1e-9, 1), min_size=1))
@example({"bit_ops": 1e300, "weight_bytes": 123456789.0, "mean_bits": 10 / 3})
def test_parse_reads_what_str_writes(limits):
    assert Budget.parse(str(Budget(**limits)).split(", ")).limits == limits


@pytest.mark.parametrize(
    ("name", "value", "uniform"),
    [
        ("weight_bytes", 600, 600),
        ("weight_ratio", 0.25, 600 / 2400),
        ("mean_bits", 8, 8),
        ("bit_ops", 192000, 192000),
    ],
)
def test_a_limit_sums_to_its_own_unit(name, value, uniform):
    [limit] = small_table().limits(Budget(**{name: value}))
    assert limit.name == name
    assert limit.bound == value
    assert limit.usage[:, 0].sum() == pytest.approx(uniform)


def test_bit_ops_ratio_limits_bit_ops_from_above():
    [limit] = small_table().limits(Budget(bit_ops_ratio=2))
    assert limit.name == "bit_ops_ratio"
    assert limit.bound == 64 * 3000 / 2
    assert limit.named(32 * 3000) == 2
    np.testing.assert_array_equal(limit.usage.sum(axis=0), [64 * 3000, 32 * 3000, 16 * 3000])


def test_bit_complexity_counts_the_larger_of_weight_and_input_bits():
    table = small_table()
    [limit] = table.limits(Budget(bit_complexity_ratio=1.5))
    # w8a8 and w4a8 count as 8 bits, w4a4 as 4: 3 layers of 1000 multiply-accumulates
    np.testing.assert_array_equal(limit.usage.sum(axis=0), [24000, 24000, 12000])
    assert limit.bound == 16000
    assert limit.named(12000) == 2


def test_a_limit_on_what_the_table_does_not_hold():
    with pytest.raises(InvalidInput, match="latency_ms: the table holds no times of its choices; measure with"):
        small_table().limits(Budget(latency_ms=3))


def test_a_ratio_that_is_no_limit():
    with pytest.raises(InvalidInput, match="so small a ratio is no limit"):
        small_table().limits(Budget(bit_ops_ratio=5e-324))


@pytest.mark.parametrize(("name", "instead"), [("bit_ops_ratio", "take bit_ops"), ("activation_bytes", "known: ")])
def test_a_resource_must_add_up(name, instead):
    with pytest.raises(InvalidInput, match=f"resource '{name}' does not add up over layers.*{instead}"):
        small_table().usage_of(name)


def test_a_largest_drop_stands_alone_and_is_not_for_tables():
    budget = Budget(max_drop=0.01)
    assert (budget.max_drop, dict(budget.limits), str(budget)) == (MaxDrop(0.01), {}, "max_drop=0.01")
    assert Budget(mean_bits=4).max_drop is None
    with pytest.raises(InvalidInput, match="needs max_drop, or at least one limit of: weight_bytes"):
        Budget(max_drop=0.01, mean_bits=4)
    with pytest.raises(InvalidInput, match="max drop -1: give a positive finite number"):
        Budget(max_drop=-1)
    with pytest.raises(InvalidInput, match="a table does not tell accuracy"):
        small_table().limits(budget)
