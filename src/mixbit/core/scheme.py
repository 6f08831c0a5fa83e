"""Formats of tensors and schemes of layers: `parse("w4a8")` and `str()` are inverses."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mixbit.core.errors import InvalidInput

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
INPUT_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
#: Floating-point types that weights are stored in; layers compute in float32.
FLOATS = ("float16", "bfloat16")
UNDERSTOOD = "write float, float16, w4 or w4a8, w4g32 (a scale for 32 weights), w8a8d (ranges at run time), w8a8@2:4"

_SCHEME = re.compile(
    r"w(?P<weight>[1-9][0-9]?)(?P<one>t)?(?:g(?P<group>[1-9][0-9]*))?(?P<zero>z)?"
    r"(?:a(?P<input>[1-9][0-9]?)(?P<dynamic>d(?:rz?|g(?P<part>[1-9][0-9]*))?)?)?"
    r"(?:@(?P<zeros>[1-9][0-9]?)(?::(?P<block>[1-9][0-9]?)|%))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Sparsity:
    """How many weights are zero: exactly `zeros` of every `block` along a row, or `zeros` percent of the tensor."""

    zeros: int
    block: int | None = None

    @property
    def share(self) -> float:
        """Zeros among all weights."""
        return self.zeros / (self.block or 100)

    def __str__(self) -> str:
        return f"{self.zeros}:{self.block}" if self.block else f"{self.zeros}%"


@dataclass(frozen=True)
class Format:
    """How one tensor is stored: integers of `bits` bits with their scales, or small floating-point numbers.

    A symmetric format holds -2^(bits-1) .. 2^(bits-1)-1, an asymmetric one 0 .. 2^bits-1 with a zero point among them.

    Attributes:
        bits: Of one number.
        granularity: What shares a scale: the tensor, an output channel, `group` weights of a channel or values of a
            row, or a row (a token) of an activation.
        symmetric: Whether there is no zero point.
        group: How many numbers share a scale, where they do in groups.
        dynamic: Whether an activation's range is taken from it at run time.
        floating: Name of the type where the numbers are floating-point.
        sparsity: How many of the weights are zero, where that is fixed.
    """

    bits: int
    granularity: Literal["tensor", "channel", "group", "row"]
    symmetric: bool
    group: int | None = None
    dynamic: bool = False
    floating: Literal["float16", "bfloat16"] | None = None
    sparsity: Sparsity | None = None

    @property
    def integer_range(self) -> tuple[int, int]:
        """The smallest and the largest integer of the format."""
        if self.symmetric:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


@dataclass(frozen=True)
class Scheme:
    """Formats of one layer's weight and input; None leaves that tensor in float32.

    As text, a weight's bits may be followed by `t` (one scale for the tensor) or `g32` (one for every 32 weights of a
    channel; otherwise one a channel) and `z` (with zero points); an input's by `d` (range taken at run time), `dr` (one
    a row), `drz` (the same with a zero point) or `dg32` (one for every 32 values of a row); and the whole by `@2:4` or
    `@50%`, the zeros among the weights.

    Example:
        >>> Scheme.parse("w4a8").weight_bits, str(Scheme.parse("w4g32a8d@2:4")), str(Scheme())
        (4, 'w4g32a8d@2:4', 'float')
    """

    weight: Format | None = None
    input: Format | None = None

    @classmethod
    @cache
    def parse(cls, text: str) -> "Scheme":
        """Read a scheme as text; raise InvalidInput for anything else."""
        if text == "float":
            return cls()
        if text in FLOATS:
            return cls(Format(16, "tensor", symmetric=True, floating=text))
        match = _SCHEME.fullmatch(text)
        if match is None or (match["one"] and match["group"]):
            raise InvalidInput(f"scheme {text!r} is not understood; {UNDERSTOOD}")
        weight_bits = int(match["weight"])
        if weight_bits not in WEIGHT_BITS:
            raise InvalidInput(f"scheme {text!r}: weights have 2 to 8 bits, not {weight_bits}")
        group = int(match["group"]) if match["group"] else None
        granularity = "tensor" if match["one"] else "group" if group else "channel"
        sparsity = None
        if match["zeros"] is not None:
            sparsity = Sparsity(int(match["zeros"]), int(match["block"]) if match["block"] else None)
            if sparsity.share >= 1:
                zeros = f"{sparsity.zeros} zeros of every {sparsity.block}"
                raise InvalidInput(f"scheme {text!r}: {zeros} leave no weight; write 2:4, say")
        weight = Format(weight_bits, granularity, match["zero"] is None, group, sparsity=sparsity)
        if match["input"] is None:
            return cls(weight)
        input_bits = int(match["input"])
        if input_bits not in INPUT_BITS:
            raise InvalidInput(f"scheme {text!r}: inputs have 2 to 8 or 16 bits, not {input_bits}")
        dynamic = match["dynamic"] or ""
        part = int(match["part"]) if match["part"] else None
        read = "tensor" if dynamic in ("", "d") else "group" if part else "row"
        symmetric = read != "tensor" and dynamic != "drz"
        return cls(weight, Format(input_bits, read, symmetric, part, dynamic=dynamic != ""))

    def __str__(self) -> str:
        if self.weight is None:
            return "float"
        if self.weight.floating:
            return self.weight.floating
        kind = {"tensor": "t", "group": f"g{self.weight.group}"}.get(self.weight.granularity, "")
        text = f"w{self.weight.bits}{kind}{'' if self.weight.symmetric else 'z'}"
        if self.input:
            text += f"a{self.input.bits}"
            if self.input.dynamic:
                row = "dr" if self.input.symmetric else "drz"
                text += {"row": row, "group": f"dg{self.input.group}"}.get(self.input.granularity, "d")
        return text + (f"@{self.weight.sparsity}" if self.weight.sparsity else "")

    @property
    def fallbacks(self) -> tuple["Scheme", ...]:
        """What replaces a scheme with an input ranged at run time, by preference: the input in float, no groups."""
        if self.input is None or not self.input.dynamic:
            return ()
        if self.weight is None or self.weight.group is None:
            return (Scheme(self.weight),)
        return Scheme(self.weight), Scheme(dataclasses.replace(self.weight, granularity="channel", group=None))

    @property
    def weight_bits(self) -> int:
        """Bits of one stored weight; 32 where it stays in float."""
        return self.weight.bits if self.weight else 32

    @property
    def input_bits(self) -> int:
        """Bits of one input value; 32 where it stays in float."""
        return self.input.bits if self.input else 32
