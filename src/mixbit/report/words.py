"""Numbers as the page writes them."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mixbit.core import Scheme

#: As long as a digit, unlike a hyphen.
MINUS = "\N{MINUS SIGN}"
#: What a figure that a run does not have is shown as.
NOTHING = "\N{EN DASH}"


def percent(value: float | None) -> str:
    """`99.12 %` of 0.9912; two decimals, as the command line prints."""
    return NOTHING if value is None else f"{100 * value:.2f} %"


def whole(value: float | None) -> str:
    """`21,997`."""
    return NOTHING if value is None else f"{value:,.0f}"


def nats(value: float | None) -> str:
    """A small number in three digits that count, without powers of ten where few zeros stand before them."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0 or 1e-5 <= abs(value) < 1e5:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
        return text.replace("-", MINUS)
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa} · 10^{int(power)}".replace("-", MINUS)


def ms(value: float | None) -> str:
    """Milliseconds with three decimals, as the command line prints."""
    return NOTHING if value is None else f"{value:.3f} ms"


def size(value: float | None) -> str:
    """`22.0 kB` of 21,997 bytes."""
    if value is None:
        return NOTHING
    for unit, base in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= base:
            return f"{value / base:.3g} {unit}"
    return f"{value:.0f} B"


def bits_of(scheme: Scheme) -> tuple[int | None, int | None]:
    """Bits of a weight and of an input; None in float32."""
    return (None if scheme.weight is None else scheme.weight.bits), (
        None if scheme.input is None else scheme.input.bits
    )


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def slug(text: str) -> str:
    """`not-reported`."""
    return text.replace(" ", "-")


def kinds(lines: Iterable[Any]) -> list[tuple[str, int]]:
    """How layers were executed, and how many were, the most first."""
    return Counter(line.kind for line in lines).most_common()


FILTERS = {
    "percent": percent, "whole": whole, "nats": nats, "ms": ms, "size": size, "sentence": sentence, "slug": slug,
    "kinds": kinds,
}  # fmt: skip
