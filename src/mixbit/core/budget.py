"""Budgets: limits on what a plan may use."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from mixbit.core.arguments import checked, checked_class
from mixbit.core.errors import InvalidInput, pick

RESOURCES = {
    "weight_bytes": "bytes in the file for weights and their scales, those that stay in float included",
    "weight_ratio": "weight_bytes / bytes in float32 (0.25 is about uniform int8)",
    "file_bytes": "bytes of all the files, the graph too; the table must hold sizes of its choices",
    "flash_bytes": "bytes of an NPU's flash, the graph too; of target ethosu, the table must hold sizes of its choices",
    "sram_bytes": "most bytes of an NPU's SRAM at once; as flash_bytes",
    "cycles": "cycles of one inference on an NPU, as its compiler estimates them; as flash_bytes",
    "mean_bits": "mean bits of a weight, 32 where it stays in float, scales not counted",
    "bit_ops": "sum of multiply-accumulates x weight bits x input bits, one sample",
    "bit_ops_ratio": "bit_ops of uniform w8a8 / bit_ops of the plan: at least this",
    "bit_complexity_ratio": "the same with the larger of weight bits and input bits for their product: HAWQ's ratio",
    "activation_bytes": "most bytes of activations alive at once, one sample, 1 for 8 bits or fewer and 4 in float",
    "latency_ms": "milliseconds of one sample in the runtime; the table must hold times of its choices",
}
#: Those that are read from written files, and that only targets of NPUs tell but for the first.
OF_FILES = ("file_bytes", "flash_bytes", "sram_bytes", "cycles")
#: Name -> what no network uses more of, and what to write.
_MOST = {
    "mean_bits": (32, "2 to 32 bits, 32 of them where a weight stays in float"),
    "weight_ratio": (1, "up to 1, which is float32; 15 % is weight_ratio=0.15"),
}
#: Those of weights, which the ones that no layer covers use too.
OF_WEIGHTS = ("weight_bytes", "weight_ratio", "mean_bits")


def untold(name: str, target: str) -> str:
    """Why that one of OF_FILES is no budget for a target, and the way out."""
    return (
        f"budget {name}: files of target {target} do not tell it, as those of ethosu do; give file_bytes, or another "
        "target"
    )


@checked_class
@dataclass(frozen=True)
class MaxDrop:
    """The largest loss of accuracy, of the artefact on the evaluation data.

    Attributes:
        value: Of the share of right answers: 0.01 is 88.2 % to 87.2 %. Without labels, mean KL divergence in nats.
        percent: Whether it was given in percent, which only a share of right answers can be.

    Raises:
        InvalidInput: a value that is not a positive finite number; or, in percent, one that is not below 100 %.
    """

    value: float
    percent: bool = False

    def __post_init__(self) -> None:
        if not _is_positive(self.value):
            raise InvalidInput(f"max drop {self}: give a positive finite number, as in 1% or 0.01")
        if self.percent and self.value >= 1:
            raise InvalidInput(f"max drop {self}: give less than 100%; 1% is one point of accuracy")

    @classmethod
    def parse(cls, text: str) -> "MaxDrop":
        """Read `1%` or `0.01`; raises InvalidInput for anything else."""
        number = text.removesuffix("%").strip()
        try:
            value = float(number)
        except ValueError:
            raise InvalidInput(f"max drop {text!r} is not understood; write it as 1% or 0.01") from None
        percent = text.endswith("%")
        return cls(value / 100 if percent else value, percent)

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.percent else f"{self.value:g}"


class Budget:
    """What a plan must keep: limits by name, `Budget(mean_bits=4, weight_bytes=120_000)`, or `Budget(max_drop=0.01)`.

    Each is an upper limit, `bit_ops_ratio` and `bit_complexity_ratio` are lower ones; RESOURCES says what they mean.

    Args:
        max_drop: Instead of limits: the cheapest plan whose artefact loses no more, see `MaxDrop`.
        limits: Name -> limit.

    Raises:
        InvalidInput: an unknown name, no limit, limits beside a drop, or a value that is not positive and finite.
    """

    @checked
    def __init__(self, *, max_drop: "float | MaxDrop | None" = None, **limits: float) -> None:
        if (not limits) == (max_drop is None):
            raise InvalidInput(f"a budget needs max_drop, or at least one limit of: {', '.join(RESOURCES)}")
        self.max_drop = max_drop if isinstance(max_drop, MaxDrop | None) else MaxDrop(max_drop)
        for name, value in limits.items():
            pick("budget", name, RESOURCES)
            if not _is_positive(value):
                raise InvalidInput(f"budget {name}={value}: give a positive finite number")
            most, way_out = _MOST.get(name, (math.inf, ""))
            if value > most:
                raise InvalidInput(f"budget {name}={_in_full(value)}: no plan uses so much; give {way_out}")
        self.limits: Mapping[str, float] = {name: float(value) for name, value in limits.items()}

    @classmethod
    def parse(cls, texts: list[str]) -> "Budget":
        """Read `name=value` texts as the command line gives them; raises InvalidInput for anything else."""
        limits: dict[str, float] = {}
        for text in texts:
            name, separator, value = text.partition("=")
            if not separator:
                raise InvalidInput(f"budget {text!r} is not understood; write name=value, as in mean_bits=4")
            if name in limits:
                raise InvalidInput(f"budget {name} is given twice ({_in_full(limits[name])} and {value}); give it once")
            if value.endswith("%"):
                raise InvalidInput(f"budget {text!r}: write a ratio, not a percentage{_as_share(value)}")
            try:
                limits[name] = float(value)
            except ValueError:
                way_out = "; write --budget before each limit" if "=" in value else ""
                raise InvalidInput(f"budget {text!r}: {value!r} is not a number{way_out}") from None
        return cls(**limits)

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"max_drop={self.max_drop}"
        return ", ".join(f"{name}={_in_full(value)}" for name, value in self.limits.items())

    def __repr__(self) -> str:
        return f"Budget({self})"


def _is_positive(value: float) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _as_share(percentage: str) -> str:
    """` (15 % is 0.15)` of `15%`; nothing where that is no number."""
    try:
        return f" ({percentage.removesuffix('%')} % is {float(percentage.removesuffix('%')) / 100:g})"
    except ValueError:
        return ""


def _in_full(value: float) -> str:
    """Every digit, so that reading it gives the same number: 1234567, 0.15."""
    return repr(value).removesuffix(".0")
