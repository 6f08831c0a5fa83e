"""Roundings: how weights become integers; one method a file."""

from mixbit.roundings._input import (
    ROUNDINGS as ROUNDINGS,
    Rounding as Rounding,
    RoundingInput as RoundingInput,
    check_shared_out as check_shared_out,
    is_shared_out as is_shared_out,
)
