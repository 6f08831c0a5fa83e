import pytest
from hypothesis import example, given, strategies as st

from mixbit.core.errors import InvalidInput
from mixbit.core.scheme import INPUT_BITS, WEIGHT_BITS, Format, Scheme


@given(st.sampled_from(WEIGHT_BITS), st.sampled_from(INPUT_BITS) | st.none())
def test_parse_reads_what_str_writes(weight_bits, input_bits):
    scheme = Scheme(
        Format(weight_bits, "channel", symmetric=True),
        Format(input_bits, "tensor", symmetric=False) if input_bits else None,
    )
    assert Scheme.parse(str(scheme)) == scheme
    assert (scheme.weight_bits, scheme.input_bits) == (weight_bits, input_bits or 32)


@pytest.mark.parametrize(
    ("text", "granularity", "group"),
    [
        ("w8a8d", "tensor", None),
        ("w8a8dr", "row", None),
        ("w4g64za8dg32", "group", 32),
        ("w8ta16", "tensor", None),
    ],
)
def test_inputs_share_ranges_as_the_text_says(text, granularity, group):
    scheme = Scheme.parse(text)
    assert str(scheme) == text
    assert (scheme.input.granularity, scheme.input.group) == (granularity, group)
    assert (scheme.input.dynamic, scheme.input.symmetric) == ("d" in text, granularity != "tensor")


@given(st.from_regex(r"w[0-9]{1,2}(a[0-9]{1,2})?", fullmatch=True) | st.text(max_size=6))
@example("float")
@example("w04")
@example("w4a08")
@example("w\u0664")
@example("w4a\u0668")
def test_str_writes_what_parse_reads(text):
    try:
        scheme = Scheme.parse(text)
    except InvalidInput:
        return
    assert str(scheme) == text


def test_float_is_the_scheme_without_formats():
    assert Scheme.parse("float") == Scheme()
    assert (Scheme().weight_bits, Scheme().input_bits) == (32, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not understood; write float, float16, w4 or w4a8"),
        ("int8", "'int8' is not understood"),
        ("w4a8 ", "'w4a8 ' is not understood"),
        ("w04", "'w04' is not understood"),
        ("w\u0664", "is not understood"),
        ("w1", "weights have 2 to 8 bits, not 1"),
        ("w9a8", "weights have 2 to 8 bits, not 9"),
        ("w8a9", "inputs have 2 to 8 or 16 bits, not 9"),
        ("w4tg32", "is not understood"),
        ("w8a8@4:4", "leave no weight"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(InvalidInput, match=message):
        Scheme.parse(text)


@given(st.integers(2, 8))
def test_a_format_holds_two_to_the_bits_integers(bits):
    for symmetric in (True, False):
        low, high = Format(bits, "tensor", symmetric).integer_range
        assert high - low + 1 == 2**bits
        assert low == (-(high + 1) if symmetric else 0)
