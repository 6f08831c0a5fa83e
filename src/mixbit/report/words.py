"""Numbers as the page writes them."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from mixbit.core import Scheme, clean
from mixbit.results.again import in_full

#: As long as a digit, unlike a hyphen.
MINUS = "\N{MINUS SIGN}"
#: Digits and the minus of powers.
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Factors of columns -> what is counted in them.
UNITS = {1.0: "", 1e-3: "thousandths of a ", 1e-6: "millionths of a ", 1e-9: "billionths of a "}
#: What a figure that a run does not have is shown as.
NOTHING = "\N{EN DASH}"


def percent(value: float | None) -> str:
    """`99.12 %` of 0.9912; two decimals, as the command line prints."""
    return NOTHING if value is None else f"{100 * value:.2f} %"


def whole(value: float | None) -> str:
    """`21,997`."""
    return NOTHING if value is None else f"{value:,.0f}"


def nats(value: float | None) -> str:
    """A number in three digits that count: `0.00240`, `3.85 · 10⁻⁷`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", MINUS)
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa} · {_power_of_ten(int(power))}".replace("-", MINUS)


def tick(value: float) -> str:
    """A round number beside an axis: `0.01`, `10⁻⁵`, `3 · 10⁻⁵`."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.12g}".replace("-", MINUS)
    mantissa, _, power = f"{value:.0e}".partition("e")
    return _power_of_ten(int(power)) if mantissa == "1" else f"{mantissa} · {_power_of_ten(int(power))}"


def _power_of_ten(power: int) -> str:
    return "10" + str(power).translate(SUPERSCRIPTS)


def ms(value: float | None) -> str:
    """Milliseconds with three decimals, as the command line prints."""
    return NOTHING if value is None else f"{value:.3f} ms"


def size(value: float | None) -> str:
    """`22.0 kB` of 21,997 bytes."""
    if value is None:
        return NOTHING
    for unit, base in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= base:
            return f"{_three_digits(value / base)} {unit}"
    return f"{value:.0f} B"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def bits_of(scheme: Scheme) -> tuple[int | None, int | None]:
    """Bits of a weight and of an input; None in float32."""
    return (None if scheme.weight is None else scheme.weight.bits), (
        None if scheme.input is None else scheme.input.bits
    )


def unit_of(largest: float) -> float:
    """The factor of UNITS in which the largest number of a column has one to three digits before the point."""
    return next((unit for unit in UNITS if largest >= unit), min(UNITS))


def in_unit(value: float | None, unit: float) -> str:
    """A number of a column: three digits that count, no more than three behind the point."""
    if value is None or not math.isfinite(value):
        return NOTHING
    count = value / unit
    places = 3 if abs(count) < 0.1 else 2 - math.floor(math.log10(abs(count)))
    return f"{count:,.{max(0, places)}f}".replace("-", MINUS)


def breakable(text: str) -> Markup:
    """The text, which may be broken after dots."""
    return Markup(".<wbr>").join(clean(text).split("."))  # which escapes the parts


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def slug(text: str) -> str:
    """`not-reported`."""
    return text.replace(" ", "-")


def kinds(lines: Iterable[Any]) -> list[tuple[str, int]]:
    """How layers were executed, and how many were, the most first."""
    return Counter(line.kind for line in lines).most_common()


def in_words(value: Any) -> str:
    """A setting: lists with commas, tables as `name=value`."""
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={in_words(part)}" for name, part in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


FILTERS = {
    "percent": percent, "whole": whole, "nats": nats, "ms": ms, "size": size, "sentence": sentence, "slug": slug,
    "kinds": kinds, "in_full": in_full, "tick": tick, "in_unit": in_unit, "breakable": breakable,
    "in_words": in_words,
}  # fmt: skip
