"""Formats of tensors and schemes of layers: `parse("w4a8")` and `str()` are inverses."""

import re
from dataclasses import dataclass
from typing import Literal

from mixbit.errors import InvalidInput

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
INPUT_BITS = (2, 3, 4, 5, 6, 7, 8)

_SCHEME = re.compile(r"w(?P<weight>[1-9][0-9]?)(?:a(?P<input>[1-9][0-9]?))?")


@dataclass(frozen=True)
class Format:
    """How one tensor is stored: integers of `bits` bits, one scale per tensor or per output channel.

    A symmetric format has no zero point and holds the integers -2^(bits-1) .. 2^(bits-1)-1;
    an asymmetric one holds 0 .. 2^bits-1 with a zero point among them.
    """

    bits: int
    granularity: Literal["tensor", "channel"]
    symmetric: bool

    @property
    def integer_range(self) -> tuple[int, int]:
        """The smallest and the largest integer of the format."""
        if self.symmetric:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


@dataclass(frozen=True)
class Scheme:
    """Formats of one layer's weight and input; None leaves that tensor in float32.

    Example:
        >>> Scheme.parse("w4a8").weight_bits, str(Scheme.parse("w4")), str(Scheme())
        (4, 'w4', 'float')
    """

    weight: Format | None = None
    input: Format | None = None

    @classmethod
    def parse(cls, text: str) -> "Scheme":
        """Read `float`, `w4` (input in float) or `w4a8`; raise InvalidInput for anything else."""
        if text == "float":
            return cls()
        match = _SCHEME.fullmatch(text)
        if match is None:
            raise InvalidInput(f"scheme {text!r} is not understood; write float, w4 or w4a8")
        weight_bits = int(match["weight"])
        if weight_bits not in WEIGHT_BITS:
            raise InvalidInput(f"scheme {text!r}: weights have 2 to 8 bits, not {weight_bits}")
        weight = Format(weight_bits, "channel", symmetric=True)
        if match["input"] is None:
            return cls(weight)
        input_bits = int(match["input"])
        if input_bits not in INPUT_BITS:
            raise InvalidInput(f"scheme {text!r}: inputs have 2 to 8 bits, not {input_bits}")
        return cls(weight, Format(input_bits, "tensor", symmetric=False))

    def __str__(self) -> str:
        if self.weight is None:
            return "float"
        return f"w{self.weight.bits}" + (f"a{self.input.bits}" if self.input else "")

    @property
    def weight_bits(self) -> int:
        """Bits of one stored weight; 32 where it stays in float."""
        return self.weight.bits if self.weight else 32

    @property
    def input_bits(self) -> int:
        """Bits of one input value; 32 where it stays in float."""
        return self.input.bits if self.input else 32
