"""Budgets: limits on what a plan may use."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from mixbit.errors import InvalidInput
from mixbit.sensitivity import Sensitivity

RESOURCES = {
    "weight_bytes": "bytes in the file for weights and their scales",
    "weight_ratio": "weight_bytes / bytes in float32 (0.25 is about uniform int8)",
    "mean_bits": "mean bits of a weight, scales not counted",
    "bit_ops": "sum of multiply-accumulates x weight bits x input bits, one sample",
    "bit_ops_ratio": "bit_ops of uniform w8a8 / bit_ops of the plan: at least this",
}


@dataclass(frozen=True)
class Limit:
    """One linear limit on a choice per layer: the sum of `usage` [L, C] over the layers is at most `bound`."""

    name: str
    usage: NDArray[np.float64]
    bound: float


class Budget:
    """Limits by name, all of which a plan keeps: `Budget(mean_bits=4, weight_bytes=120_000)`.

    Each is an upper limit, `bit_ops_ratio` a lower one; RESOURCES says what they mean.

    Raises:
        InvalidInput: for an unknown name, no limit at all, or a value that is not a positive finite number.
    """

    def __init__(self, **limits: float) -> None:
        if not limits:
            raise InvalidInput(f"a budget needs at least one limit of: {', '.join(RESOURCES)}")
        for name, value in limits.items():
            if name not in RESOURCES:
                raise InvalidInput(f"budget {name!r} is unknown; known: {', '.join(RESOURCES)}")
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InvalidInput(f"budget {name}={value}: give a positive finite number")
        if limits.get("weight_ratio", 0) > 1:
            raise InvalidInput(
                f"budget weight_ratio={limits['weight_ratio']}: a share of float32's bytes is at most 1; "
                "15 % is weight_ratio=0.15"
            )
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
                raise InvalidInput(f"budget {text!r}: write a ratio, not a percentage (15 % is 0.15)")
            try:
                limits[name] = float(value)
            except ValueError:
                raise InvalidInput(f"budget {text!r}: {value!r} is not a number") from None
        return cls(**limits)

    def __str__(self) -> str:
        return ", ".join(f"{name}={_in_full(value)}" for name, value in self.limits.items())

    def __repr__(self) -> str:
        return f"Budget({self})"

    def over(self, table: Sensitivity) -> list[Limit]:
        """The limits as sums over the table's choices, each in the unit that its name states."""
        return [_limit(name, value, table) for name, value in self.limits.items()]


def _in_full(value: float) -> str:
    """Every digit, so that reading it gives the same number: 1234567, 0.15."""
    return repr(value).removesuffix(".0")


def _limit(name: str, value: float, table: Sensitivity) -> Limit:
    weights = float(table.numel.sum())
    match name:
        case "weight_ratio":
            return Limit(name, table.usage["weight_bytes"] / (4 * weights), value)
        case "mean_bits":
            return Limit(name, table.usage["weight_bits"] / weights, value)
        case "bit_ops_ratio":
            int8 = 64.0 * float(table.macs.sum())
            return Limit("bit_ops", table.usage["bit_ops"], int8 / value)
    return Limit(name, table.usage[name], value)
